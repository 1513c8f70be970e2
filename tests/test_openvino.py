"""A model runs on Intel's OpenVINO where its config asks for it."""

import json

import numpy as np
import onnxruntime as ort
import pytest
import tritonclient.grpc as grpcclient
from conftest import QUICK
from course import ROOT

from helpers import embedded, images, openvino

CNN = "efficientnet_lite0"
REPOSITORY = ROOT / "data" / "model_repository"
FP32 = REPOSITORY / CNN / "1" / "model.onnx"
EXPLICIT = {"model_control_mode": "explicit", "load_model": CNN, **QUICK}


@pytest.fixture(scope="module")
def client():
    with (
        openvino.start(REPOSITORY, **EXPLICIT) as triton,
        grpcclient.InferenceServerClient(triton.grpc) as client,
    ):
        yield client


def load(client, parameters):
    """Load the classifier once more, on OpenVINO."""
    config = client.get_model_config(CNN, as_json=True)["config"]
    config |= {"name": "intel"}
    config["output"][0]["label_filename"] = ""
    openvino = {"name": "openvino", "parameters": parameters}
    asked = {"execution_accelerators": {"cpu_execution_accelerator": [openvino]}}
    client.load_model(
        "intel",
        config=json.dumps(config | {"optimization": asked}),
        files={"file:1/model.onnx": FP32.read_bytes()},
    )


def ask(client, model, picture):
    tensor = grpcclient.InferInput("image", picture.shape, "FP32")
    tensor.set_data_from_numpy(picture)
    return client.infer(model, [tensor]).as_numpy("logits")


def test_it_answers_as_the_ordinary_build_does(client):
    load(client, {"num_of_threads": "1"})
    picture = images.read_photo(images.PHOTOS / "chelsea.png")[np.newaxis]
    [expected] = ort.InferenceSession(FP32).run(None, {"image": picture})
    for model in (CNN, "intel"):
        np.testing.assert_allclose(ask(client, model, picture), expected, atol=1e-3)
    # Two engines that round alike in every bit would be one engine.
    assert (ask(client, "intel", picture) != ask(client, CNN, picture)).any()


def test_an_option_that_openvino_does_not_know_is_refused(client):
    with pytest.raises(
        grpcclient.InferenceServerException, match="could not start its"
    ):
        load(client, {"num_of_wheels": "3"})


def test_without_a_network_a_sentence_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(openvino, "FOLDER", tmp_path / "cache")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(embedded.StartError) as caught:
        openvino.start(REPOSITORY)
    assert "python -m helpers.openvino" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(openvino.FOLDER.iterdir())
