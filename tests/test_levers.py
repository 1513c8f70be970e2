"""What lesson 14 leans on: labelled crops, INT8, shared memory, a model for files."""

import json
import os
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from helpers import images, quantise, repository, server, shared

CNN = "efficientnet_lite0"
FILES = repository.DATA / "file_repository"


@pytest.fixture(scope="module")
def client():
    repositories = [repository.build(), FILES]
    flags = {"model_control_mode": "explicit", "disable_auto_complete_config": True}
    with (
        server.start(
            repositories, load_model=[CNN, "classify_file"], **flags
        ) as triton,
        grpcclient.InferenceServerClient(triton.grpc) as client,
    ):
        yield client


def logits(client, model, tensor):
    return client.infer(model, [tensor]).as_numpy("logits")


def tensor(array, name="image", kind="FP32"):
    return grpcclient.InferInput(name, array.shape, kind).set_data_from_numpy(array)


def files(*contents):
    return tensor(
        np.array([[content] for content in contents], object), "file", "BYTES"
    )


def test_crops_come_with_mirror_images_and_with_labels_that_the_classifier_knows():
    crops, names = images.labelled_crops(3, seed=1)
    assert crops.shape == (24, 3, 224, 224)
    assert np.array_equal(crops[0], crops[1][:, :, ::-1])
    known = (
        (repository.REPOSITORY / CNN / "imagenet_labels.txt").read_text().splitlines()
    )
    assert {name for right in names for name in right} <= set(known)
    assert names[0] != names[-1]
    assert np.array_equal(crops, images.labelled_crops(3, seed=1)[0])
    assert not np.array_equal(crops, images.labelled_crops(3, seed=2)[0])


def test_int8_agrees_with_a_scale_for_each_channel_and_leaves_no_other_file(tmp_path):
    fp32 = repository.build() / CNN / "1" / "model.onnx"
    crops, _ = images.labelled_crops(1, seed=6)
    quantise.to_int8(fp32, tmp_path / "int8", crops)
    best = [
        ort.InferenceSession(model).run(None, {"image": crops})[0].argmax(1)
        for model in (fp32, tmp_path / "int8")
    ]
    assert (best[0] == best[1]).sum() >= 7
    assert [path.name for path in tmp_path.iterdir()] == ["int8"]


def test_a_tensor_in_shared_memory_gets_the_same_answer_and_leaves_nothing(client):
    photo = images.read_photo(images.PHOTOS / "coffee.png")[np.newaxis]
    with (
        shared.lying(client, "image", photo) as pointer,
        shared.lying(client, "image", photo) as other,  # as another thread might
    ):
        got = [logits(client, CNN, each) for each in (pointer, other)]
        assert len(client.get_system_shared_memory_status().regions) == 2
    assert np.array_equal(got, [logits(client, CNN, tensor(photo))] * 2)
    assert not client.get_system_shared_memory_status().regions
    assert not list(Path("/dev/shm").glob(f"lesson-{os.getpid()}-*"))


def test_shared_memory_is_free_again_after_an_error(client):
    photo = np.zeros((1, 3, 224, 224), np.float32)
    with pytest.raises(InferenceServerException), shared.lying(client, "x", photo) as x:
        client.infer(CNN, [x])
    assert not client.get_system_shared_memory_status().regions


def test_files_are_classified_as_their_tensors_are(client):
    paths = [images.PHOTOS / name for name in ("coffee.png", "rocket.jpg")]
    got = logits(client, "classify_file", files(*(path.read_bytes() for path in paths)))
    photos = np.stack([images.read_photo(path) for path in paths])
    assert np.allclose(got, logits(client, CNN, tensor(photos)), atol=1e-4)


def test_what_is_no_picture_is_said_to_be_none(client):
    with pytest.raises(InferenceServerException, match="cannot identify image file"):
        logits(client, "classify_file", files(b"no picture"))


def test_a_failure_of_the_classifier_is_passed_on(client):
    picture = (images.PHOTOS / "rocket.jpg").read_bytes()
    config = json.dumps(client.get_model_config(CNN, as_json=True)["config"])
    client.unload_model(CNN)
    with pytest.raises(InferenceServerException, match=CNN):
        logits(client, "classify_file", files(picture))
    client.load_model(CNN, config=config)
