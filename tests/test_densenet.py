"""densenet_onnx: how it comes into the repository, and how it is served there.

Its weights can't be had without a network. In their place stands the graph of the same
shape that the `onnx` package ships, sent by a server of our own.
"""

import hashlib
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tritonclient.http as httpclient
from conftest import QUICK, command_line
from test_download import Far, fails, impatient, whole  # noqa: F401

from helpers import download, repository, server
from helpers.download import Remote
from helpers.images import read_photo
from helpers.repository import DATA, FETCHED_MODELS, RepositoryError

LIGHT = Path(onnx.__file__).parent / "backend/test/data/light/light_densenet121.onnx"
WEIGHTS = LIGHT.read_bytes()
PHOTO = (DATA / "photos" / "rocket.jpg").read_bytes()
INSTALLED = ["1/model.onnx", "config.pbtxt", "densenet_labels.txt"]
ROOT = DATA.parent


class Course:
    """Folders like those of the course, and a server for each of the two files."""

    def __init__(self, folder, monkeypatch):
        self.weights, self.photo = Far(whole(data=WEIGHTS)), Far(whole(data=PHOTO))
        self.models = folder / "model_repository"
        self.downloads, self.photos = folder / "downloads", folder / "photos"
        self.photos.mkdir()
        self.fetched = (
            self.remote(self.weights, "densenet-7.onnx", WEIGHTS),
            self.remote(self.photo, "mug.jpg", PHOTO),
        )
        monkeypatch.setattr(repository, "FETCHED", {"densenet_onnx": self.fetched})
        monkeypatch.setattr(repository, "DOWNLOADS", self.downloads)
        monkeypatch.setattr(repository, "PHOTOS", self.photos)

    @staticmethod
    def remote(far, name, data):
        url = far.url.replace("file.bin", name)
        return Remote((url,), hashlib.sha256(data).hexdigest(), len(data))

    def fetch(self):
        return repository.build(self.models, ["densenet_onnx"])

    def files(self, folder=None):
        folder = folder or self.models / "densenet_onnx"
        found = (f.relative_to(folder) for f in folder.rglob("*") if f.is_file())
        return sorted(map(str, found))

    def asked(self):
        return len(self.weights.asked), len(self.photo.asked)


@pytest.fixture
def course(tmp_path, monkeypatch):
    made = Course(tmp_path, monkeypatch)
    yield made
    made.weights.end()
    made.photo.end()


def refusal(course):
    with pytest.raises(RepositoryError) as caught:
        course.fetch()
    message = str(caught.value)
    assert "\n" not in message
    return message


# How it comes into the repository


def test_the_repository_gets_weights_config_and_labels_and_the_photos_a_mug(course):
    assert course.fetch() == course.models
    folder = course.models / "densenet_onnx"
    assert course.files() == INSTALLED
    assert (folder / "1" / "model.onnx").read_bytes() == WEIGHTS
    for name in INSTALLED[1:]:
        held = FETCHED_MODELS / "densenet_onnx" / name
        assert (folder / name).read_bytes() == held.read_bytes()
    assert (course.photos / "mug.jpg").read_bytes() == PHOTO
    assert course.files(course.models) == [f"densenet_onnx/{f}" for f in INSTALLED]
    assert course.files(course.photos) == ["mug.jpg"]


def test_it_says_what_it_did_and_that_a_running_server_does_not_know(course, capsys):
    course.fetch()
    assert capsys.readouterr().out.splitlines() == [
        f"Fetching densenet-7.onnx from {course.weights.host} ...",
        f"{course.models / 'densenet_onnx'} is there. A server that runs already"
        " doesn't see it: end it with `python -m helpers.server stop`.",
        f"Fetching mug.jpg from {course.photo.host} ...",
        f"{course.photos / 'mug.jpg'} is there.",
    ]


def test_a_second_run_asks_nobody_changes_nothing_and_says_nothing(course, capsys):
    def times():
        return [f.stat().st_mtime_ns for f in sorted(course.models.rglob("*"))]

    course.fetch()
    before = times()
    capsys.readouterr()
    course.fetch()
    assert capsys.readouterr().out == ""
    assert times() == before
    assert course.asked() == (1, 1)


def test_a_second_run_does_not_miss_the_downloads(course):
    course.fetch()
    shutil.rmtree(course.downloads)
    course.fetch()
    assert not course.downloads.exists()
    assert course.asked() == (1, 1)


def test_another_folder_gets_it_without_a_network(course):
    course.fetch()
    course.models = course.models.with_name("of my own")
    course.fetch()
    assert course.files() == INSTALLED
    assert course.asked() == (1, 1)


def test_downloads_put_there_by_hand_are_taken(course):
    course.downloads.mkdir()
    (course.downloads / "densenet-7.onnx").write_bytes(WEIGHTS)
    (course.downloads / "mug.jpg").write_bytes(PHOTO)
    course.fetch()
    assert course.files() == INSTALLED
    assert course.asked() == (0, 0)


def test_what_nvidia_s_own_script_fetched_is_taken(course):
    version = course.models / "densenet_onnx" / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").write_bytes(WEIGHTS)
    course.fetch()
    assert course.files() == INSTALLED
    assert course.asked() == (0, 1)


def test_wrong_weights_are_replaced_and_an_edited_config_stays(course):
    course.fetch()
    folder = course.models / "densenet_onnx"
    (folder / "1" / "model.onnx").write_bytes(b"damaged")
    (folder / "config.pbtxt").write_text("# edited")
    (folder / "densenet_labels.txt").unlink()
    course.fetch()
    assert course.files() == INSTALLED
    assert (folder / "1" / "model.onnx").read_bytes() == WEIGHTS
    assert (folder / "config.pbtxt").read_text() == "# edited"


def test_a_failed_download_leaves_the_repository_as_it_is(course):
    course.weights.behaviours = [fails(404)]
    where = course.downloads / "densenet-7.onnx"
    message = refusal(course)
    assert message.startswith("densenet-7.onnx can't be fetched (127.0.0.1:")
    assert message.endswith(
        f"a copy with the SHA-256 {course.fetched[0].sha256} and put it at {where}."
    )
    assert not course.models.exists()


def test_a_missing_mug_does_not_keep_the_model_away(course):
    course.photo.behaviours = [fails(404)]
    assert refusal(course).startswith("mug.jpg can't be fetched (127.0.0.1:")
    assert course.files() == INSTALLED
    assert course.files(course.photos) == []


def test_a_run_killed_while_it_installs_leaves_no_half_model(course, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(repository.shutil, "move", die)
        with pytest.raises(KeyboardInterrupt):
            course.fetch()
    assert course.files(course.models) == []
    (course.downloads / "densenet_onnx.part" / "litter").touch()
    course.fetch()
    assert course.files() == INSTALLED
    assert course.files(course.downloads) == ["densenet-7.onnx", "mug.jpg"]


def test_two_at_once_do_the_work_once(course, capsys):
    threads = [threading.Thread(target=course.fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert course.files() == INSTALLED
    assert course.asked() == (1, 1)
    assert capsys.readouterr().out.count("A server that runs already") == 1


def test_nothing_is_fetched_unless_named(course, monkeypatch):
    monkeypatch.setattr(repository, "MODELS", {"simple": repository.MODELS["simple"]})
    repository.build(course.models)
    assert course.files(course.models) == ["simple/1/model.onnx", "simple/config.pbtxt"]
    assert course.asked() == (0, 0)


def test_only_what_is_named_is_built(course):
    repository.build(course.models, ["simple"])
    assert course.files(course.models) == ["simple/1/model.onnx", "simple/config.pbtxt"]


# The command


def test_a_word_that_is_neither_model_nor_folder_is_refused():
    done = command_line("densenet")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "There is no model 'densenet': name any of simple, efficientnet_lite0,"
        " densenet_onnx, or a folder of your own, as in ./densenet.\n"
    )


def test_two_folders_are_refused(tmp_path):
    done = command_line(tmp_path / "one", tmp_path / "two")
    assert done.returncode == 1
    assert (
        done.stderr == f"One folder at a time, not {tmp_path}/one and {tmp_path}/two.\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_the_command_builds_what_it_names_where_it_is_told_to(tmp_path):
    done = command_line("simple", tmp_path / "models")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"The model repository is ready: {tmp_path}/models\n")
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["simple"]


def test_the_command_passes_its_patience_on(course, monkeypatch):
    passed = []
    monkeypatch.setattr(download, "fetch", lambda *given: passed.append(given[2]))
    monkeypatch.setattr(repository, "_install", lambda _: None)
    monkeypatch.setattr(repository, "_write", lambda *_: None)
    (course.downloads).mkdir()
    (course.downloads / "mug.jpg").touch()
    words = ["", "densenet_onnx", str(course.models), "--timeout", "7"]
    monkeypatch.setattr(sys, "argv", words)
    repository.main()
    assert passed == [7, 7]


def test_without_the_packages_it_says_how_to_get_them(course, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert refusal(course) == "The package tqdm is not installed: run `make setup`."


# What is fetched


def test_the_addresses_and_hashes_are_those_of_the_quickstart():
    weights, photo = repository.FETCHED["densenet_onnx"]
    assert (weights.name, photo.name) == ("densenet-7.onnx", "mug.jpg")
    assert weights.size == 32_719_461
    assert weights.sha256.startswith("79c3bc09")
    assert photo.sha256.startswith("8a995147")
    for url in weights.urls + photo.urls:
        assert url.startswith("https://")
        assert url.endswith(
            ("/densenet-121/model/densenet-7.onnx", "/qa/images/mug.jpg")
        )


def test_git_ignores_all_that_is_fetched():
    fetched = [
        "data/downloads/densenet-7.onnx.part",
        "data/model_repository/densenet_onnx/config.pbtxt",
        "data/photos/mug.jpg",
    ]
    ignored = subprocess.check_output(
        ["git", "check-ignore", "--no-index", *fetched], cwd=ROOT, text=True
    )
    assert ignored.split() == fetched


# How it is served


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        course = Course(tmp_path_factory.mktemp("course"), patch)
        yield course.fetch()
        course.weights.end()
        course.photo.end()


@pytest.fixture(scope="module")
def triton(fetched):
    with server.start(fetched, **QUICK) as started:
        yield started


@pytest.fixture(scope="module")
def client(triton):
    with httpclient.InferenceServerClient(triton.http) as connected:
        yield connected


def infer(client, tensor, **wanted):
    image = httpclient.InferInput("data_0", tensor.shape, "FP32")
    image.set_data_from_numpy(tensor)
    output = httpclient.InferRequestedOutput("fc6_1", **wanted)
    return client.infer("densenet_onnx", [image], outputs=[output]).as_numpy("fc6_1")


def test_the_official_config_is_served_as_it_is(client):
    assert client.is_model_ready("densenet_onnx")
    served = client.get_model_metadata("densenet_onnx")
    assert served["platform"] == "onnxruntime_onnx"
    (given,), (gives,) = served["inputs"], served["outputs"]
    assert given == {"name": "data_0", "datatype": "FP32", "shape": [3, 224, 224]}
    assert gives == {"name": "fc6_1", "datatype": "FP32", "shape": [1000]}


@pytest.mark.parametrize("photo", ["coffee.png", "chelsea.png"])
def test_the_server_answers_as_the_model_itself(client, photo):
    tensor = read_photo(DATA / "photos" / photo)
    session = onnxruntime.InferenceSession(LIGHT, providers=["CPUExecutionProvider"])
    (local,) = session.run(["fc6_1"], {"data_0": tensor[None]})
    answer = infer(client, tensor)
    assert (answer.dtype, answer.shape) == (np.float32, (1000,))
    np.testing.assert_allclose(answer, local.reshape(1000), rtol=1e-4)


def test_classes_come_with_their_labels(client):
    labels = (FETCHED_MODELS / "densenet_onnx" / "densenet_labels.txt").read_text()
    labels = labels.splitlines()
    three = infer(client, read_photo(DATA / "photos" / "coffee.png"), class_count=3)
    assert three.shape == (3,)
    for line in three:
        _, index, label = line.decode().split(":")
        assert label == labels[int(index)]


def test_a_batch_is_refused_because_the_model_has_none(client):
    with pytest.raises(httpclient.InferenceServerException, match="unexpected shape"):
        infer(client, np.zeros((1, 3, 224, 224), np.float32))
