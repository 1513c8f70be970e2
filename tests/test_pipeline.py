"""The repository that reads text: where its weights come from, and its Python steps."""

import hashlib
import io
import json

import make_signs
import numpy as np
import onnx
import pytest
import tritonclient.grpc as grpcclient
from google.protobuf import text_format
from matplotlib import pyplot
from PIL import Image
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from helpers import plots, repository, server
from helpers.repository import DATA, OCR_MODELS, PIPELINE, RepositoryError

TRUTH = json.loads((DATA / "signs" / "texts.json").read_text(encoding="utf-8"))
CONFIGS = sorted(PIPELINE.glob("*/config.pbtxt"))
CHARACTERS = (PIPELINE / "decode" / "characters.txt").read_text(encoding="utf-8")
AGAIN = "pip install --no-deps --force-reinstall rapidocr-onnxruntime==1.4.4"


def config(path):
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


# Where the weights come from


@pytest.fixture
def empty(monkeypatch, tmp_path):
    """A pipeline's repository without weights."""
    monkeypatch.setattr(repository, "PIPELINE", tmp_path / "pipeline")
    return tmp_path / "pipeline"


def weights(folder):
    return {
        name: file.read_bytes()
        for name in OCR_MODELS
        if (file := folder / name / "1" / "model.onnx").exists()
    }


def test_the_weights_are_copied_and_a_second_time_nothing_happens(empty, capsys):
    assert repository.build_pipeline() == empty
    hashes = {n: hashlib.sha256(d).hexdigest() for n, d in weights(empty).items()}
    assert hashes == {name: sha256 for name, (_, sha256) in OCR_MODELS.items()}
    assert capsys.readouterr().out.count("Copied ") == 2
    repository.build_pipeline()
    assert capsys.readouterr().out == ""


def test_damaged_weights_are_copied_again(empty):
    repository.build_pipeline()
    file = empty / "detect" / "1" / "model.onnx"
    good = file.read_bytes()
    file.write_bytes(good[:-1] + b"?")
    (file.parent / ".left.part").touch()
    repository.build_pipeline()
    assert file.read_bytes() == good
    assert [path.name for path in file.parent.iterdir()] == ["model.onnx"]


def test_without_the_package_it_says_how_to_get_it(empty, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(RepositoryError) as caught:
        repository.build_pipeline()
    assert str(caught.value) == (
        f"The package rapidocr-onnxruntime is not installed: {AGAIN}"
    )


@pytest.mark.parametrize(
    ("there", "sentence"),
    [(b"other weights", "is not the file we know"), (None, "No such file")],
)
def test_with_one_wrong_file_nothing_is_copied(
    empty, monkeypatch, tmp_path, there, sentence
):
    package = tmp_path / "site" / "rapidocr_onnxruntime"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    files = [file for file, _ in OCR_MODELS.values()]
    original = weights(repository.build_pipeline())["detect"]
    (package / files[0]).write_bytes(original)
    if there:
        (package / files[1]).write_bytes(there)
    monkeypatch.setattr(repository, "PIPELINE", tmp_path / "other")
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(RepositoryError, match=sentence) as caught:
        repository.build_pipeline()
    assert str(caught.value).endswith(AGAIN)
    assert weights(tmp_path / "other") == {}


def test_a_folder_that_cannot_be_written_to_is_said_to_be_one(empty):
    empty.touch()
    with pytest.raises(RepositoryError, match="can't hold the repository"):
        repository.build_pipeline()


# What it holds


@pytest.fixture(scope="session")
def pipeline():
    return repository.build_pipeline()


@pytest.mark.parametrize("name", OCR_MODELS)
def test_a_config_says_what_the_model_has_and_old_containers_read_it(pipeline, name):
    model = onnx.load(pipeline / name / "1" / "model.onnx")
    assert model.ir_version <= 9
    assert all(o.domain == "" and o.version <= 20 for o in model.opset_import)
    wanted = config(pipeline / name / "config.pbtxt")
    (given,), (made,) = model.graph.input, model.graph.output
    for tensor, value in ((wanted.input[0], given), (wanted.output[0], made)):
        assert tensor.name == value.name
        dims = [d.dim_value or -1 for d in value.type.tensor_type.shape.dim]
        assert dims[0] == -1  # the batch
        assert all(b in (-1, a) for a, b in zip(tensor.dims, dims[1:], strict=True))
    # NVIDIA's backend takes an output only as the model has it.
    assert list(wanted.output[0].dims) == dims[1:]


def test_the_characters_are_those_of_the_recogniser(pipeline):
    model = onnx.load(pipeline / "recognise" / "1" / "model.onnx")
    (own,) = [p.value for p in model.metadata_props if p.key == "character"]
    assert f"{own}\n" == CHARACTERS
    assert model.graph.output[0].type.tensor_type.shape.dim[2].dim_value == 6625
    assert len(CHARACTERS.split("\n")[:-1]) == 6623


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.parent.name)
def test_each_model_runs_as_one_instance_on_the_cpu(path):
    found = config(path)
    assert found.name == path.parent.name
    if found.platform != "ensemble":
        (group,) = found.instance_group
        assert (group.kind, group.count) == (group.KIND_CPU, 1)


def test_the_code_takes_as_many_lines_at_once_as_the_recogniser():
    batch = config(PIPELINE / "read_text_bls" / "config.pbtxt").parameters["batch"]
    limit = config(PIPELINE / "recognise" / "config.pbtxt").max_batch_size
    assert int(batch.string_value) == limit


def test_each_sign_has_its_text_as_it_was_drawn():
    assert make_signs.texts() == TRUTH
    pictures = {path.stem for path in (DATA / "signs").glob("*.jpg")}
    assert pictures == set(TRUTH)
    both = [[text.isascii() for text in lines] for lines in TRUTH.values()]
    assert all(True in lines and False in lines for lines in both)


# What the steps do, on a live server


@pytest.fixture(scope="module")
def ask(pipeline):
    """Return a function that asks a model and returns the answer's tensors."""
    with (
        server.start(
            pipeline,
            model_control_mode="explicit",
            load_model=["read_text", "read_text_bls"],
            disable_auto_complete_config=True,
        ) as triton,
        grpcclient.InferenceServerClient(triton.grpc) as client,
    ):

        def infer(model, **arrays):
            inputs = []
            for name, array in arrays.items():
                kind = np_to_triton_dtype(array.dtype)
                inputs.append(grpcclient.InferInput(name, array.shape, kind))
                inputs[-1].set_data_from_numpy(array)
            answer = client.infer(model, inputs)
            names = [output.name for output in answer.get_response().outputs]
            return {name: answer.as_numpy(name) for name in names}

        yield infer


def file(picture, kind="JPEG"):
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def texts(answer):
    return [text.decode() for text in answer["texts"]]


@pytest.mark.parametrize("model", ["read_text", "read_text_bls"])
def test_every_sign_is_read(ask, model):
    for name, lines in TRUTH.items():
        photo = np.fromfile(DATA / "signs" / f"{name}.jpg", np.uint8)
        assert texts(ask(model, photo=photo)) == lines


@pytest.mark.parametrize(
    ("size", "expected"),
    [((640, 480), (480, 640)), ((1920, 1080), (544, 960)), ((9, 5), (32, 32))],
)
def test_an_image_fits_the_detector(ask, size, expected):
    image = ask("prepare", photo=file(Image.new("RGB", size, "red")))["image"]
    assert image.shape == (1, 3, *expected)
    blue, green, red = image[0].mean(axis=(1, 2))
    assert red > 0.95
    assert max(blue, green) < -0.95


def crop(ask, *regions, size=(320, 160), background=0.0):
    """Return what is cut out where the map is 0.9 in (left, top, right, bottom)."""
    found = np.full((1, 1, size[1], size[0]), background, np.float32)
    for left, top, right, bottom in regions:
        found[..., top:bottom, left:right] = 0.9
    return ask("crop", photo=file(Image.new("RGB", size)), map=found)


def test_a_region_becomes_a_wider_box(ask):
    answer = crop(ask, (100, 60, 200, 80))
    # 1.6 times its area over its circumference: 1.6 * 2000 / 240
    assert answer["boxes"].tolist() == [[87, 47, 213, 93]]
    assert answer["crops"].shape == (1, 3, 48, 320)


def test_a_region_of_any_shape_is_one(ask):
    u = [(60, 40, 70, 90), (200, 40, 210, 90), (60, 80, 210, 90)]
    assert len(crop(ask, *u)["boxes"]) == 1
    assert len(crop(ask, *u[:2])["boxes"]) == 2


def test_lines_come_from_top_to_bottom_and_a_long_one_widens_all(ask):
    answer = crop(ask, (20, 110, 300, 120), (150, 20, 180, 40))
    tops = answer["boxes"][:, 1]
    assert tops[0] < tops[1]
    long = answer["crops"].shape[3]
    assert long > 320
    assert not answer["crops"][0, :, :, long // 2 :].any()  # the short one ends in grey


def test_specks_and_what_is_unlikely_are_no_lines(ask):
    assert crop(ask, (100, 60, 200, 63))["boxes"].shape == (0, 4)
    answer = crop(ask, background=0.4)
    assert answer["boxes"].shape == (0, 4)
    assert answer["crops"].shape == (1, 3, 48, 320)  # Triton refuses a batch of none


def test_a_box_stays_within_the_photograph_whatever_the_scale_of_the_map(ask):
    found = np.full((1, 1, 160, 320), 0.9, np.float32)
    answer = ask("crop", photo=file(Image.new("RGB", (640, 320))), map=found)
    assert answer["boxes"].tolist() == [[0, 0, 640, 320]]


def test_repeats_are_one_character_unless_something_is_between_them(ask):
    alphabet = ["", *CHARACTERS.split("\n")[:-1], " "]
    rows = [[*"aab", "", *"b  c"], [""] * 8, ["安"] * 7 + ["全"]]
    best = [[alphabet.index(character) for character in row] for row in rows]
    probabilities = np.eye(len(alphabet), dtype=np.float32)[best]
    assert texts(ask("decode", probabilities=probabilities)) == ["abb c", "安全"]


@pytest.mark.parametrize("model", ["prepare", "read_text", "read_text_bls"])
def test_what_is_no_photograph_is_refused_with_a_reason(ask, model):
    with pytest.raises(InferenceServerException, match="the photo cannot be read"):
        ask(model, photo=np.frombuffer(b"nothing", np.uint8))


# The pictures of an ensemble and of times


def step(model, inputs, outputs):
    return {"model_name": model, "input_map": inputs, "output_map": outputs}


STEPS = [
    step("first", {"x": "photo"}, {"y": "half"}),
    step("second", {"a": "half", "b": "photo"}, {"c": "text"}),
]
DRAWN = {
    ("request", "photo", "first"),
    ("first", "half", "second"),
    ("request", "photo", "second"),
    ("second", "text", "response"),
}


@pytest.mark.parametrize("steps", [STEPS, STEPS[::-1]], ids=["in order", "reversed"])
def test_an_ensemble_is_drawn_from_its_names_in_whatever_order(steps):
    ensemble = {
        "ensemble_scheduling": {"step": steps},
        "input": [{"name": "photo"}],
        "output": [{"name": "text"}],
    }
    assert set(plots.ensemble_edges(ensemble)) == DRAWN
    figure = plots.draw_ensemble(ensemble)
    place = {text.get_text(): text.get_position()[0] for text in figure.axes[0].texts}
    nodes = ["request", "first", "second", "response"]
    assert [place[node] for node in nodes] == [0, 1, 2, 3]
    pyplot.close(figure)


def test_parts_follow_each_other_within_a_bar():
    figure = plots.draw_parts({"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 4}}, "s")
    bars = [(bar.get_x(), bar.get_width()) for bar in figure.axes[0].patches]
    assert bars == [(0, 1), (0, 3), (1, 2), (3, 4)]
    pyplot.close(figure)
