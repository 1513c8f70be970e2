"""The course's model repository: `python -m helpers.repository [MODEL ...]`.

git holds each model's config.pbtxt and labels in data/model_repository; the weights
are built beside them. Built files are the same to the byte on every machine, so their
hashes tell what is there already from what is missing, damaged or out of date.

densenet_onnx, the model of Triton's quickstart, is not built but fetched, and only if
named. It comes into the repository whole, because a server refuses half a model.

data/pipeline_repository is a repository of its own, of models that work together. Its
weights are files of a package, and copied from there.
"""

import argparse
import errno
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from helpers import bootstrap, download, packaged
from helpers.download import Remote, has_hash

if TYPE_CHECKING:  # importing onnx takes longer than finding nothing to do
    from onnx import ModelProto

DATA = Path(__file__).resolve().parent.parent / "data"
REPOSITORY = DATA / "model_repository"
PIPELINE = DATA / "pipeline_repository"
FETCHED_MODELS = DATA / "fetched_models"  # configs and labels of what is fetched
DOWNLOADS = DATA / "downloads"
PHOTOS = DATA / "photos"


class RepositoryError(Exception):
    """The repository can't be built; the message is one sentence with the cure."""


def simple() -> "ModelProto":
    """Return Triton's classic example: the sum and the difference of two tensors.

    INPUT0 and INPUT1 to OUTPUT0 and OUTPUT1, all int32 [batch, 16].
    """
    from onnx import TensorProto, helper

    a, b, total, difference = (
        helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", 16])
        for name in ("INPUT0", "INPUT1", "OUTPUT0", "OUTPUT1")
    )
    nodes = [
        helper.make_node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"], "add"),
        helper.make_node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"], "subtract"),
    ]
    return helper.make_model(
        helper.make_graph(nodes, "simple", [a, b], [total, difference]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
        producer_name="helpers.repository",
    )


def efficientnet_lite0() -> "ModelProto":
    """Return the image classifier; see helpers/efficientnet.py."""
    from helpers import efficientnet

    try:
        return efficientnet.model()
    except efficientnet.WeightsError as error:
        raise RepositoryError(str(error)) from error


# What makes each model's 1/model.onnx, and the SHA-256 of what it makes.
MODELS: dict[str, tuple[Callable[[], "ModelProto"], str]] = {
    "simple": (
        simple,
        "931117c8875df5555d6f586ed3b9c54d950635d92da937326d8b3f58746a7c78",
    ),
    "efficientnet_lite0": (
        efficientnet_lite0,
        "68b6bf5dfc0a38f1bf9241262ecb32f8b5d446d456364de5a7d1d534d855d5dc",
    ),
}


# The zoo's Git LFS files on GitHub, and the copy that it moved to in July 2025.
ZOO = "validated/vision/classification/densenet-121/model"
DENSENET = Remote(
    (
        f"https://media.githubusercontent.com/media/onnx/models/main/{ZOO}/densenet-7.onnx",
        f"https://huggingface.co/onnxmodelzoo/legacy_models/resolve/main/{ZOO}/densenet-7.onnx",
    ),
    "79c3bc0974696a2ea9efd2f7bca19fdd630834bd0086f1b4a1c3db3dce3b2a51",
    32_719_461,
)
MUG = Remote(
    (
        "https://raw.githubusercontent.com/triton-inference-server/server/main/qa/images/mug.jpg",
    ),
    "8a995147a2fbd92b1994317efb131549bbe183f65a5aa0baad84bb4e9ff9aa5e",
)

# What is fetched only if named: each model's weights, and a photograph to try it on.
FETCHED: dict[str, tuple[Remote, Remote]] = {"densenet_onnx": (DENSENET, MUG)}


# What reads text: PP-OCRv4's detector and recogniser, as files of this package.
OCR_PACKAGE = "rapidocr-onnxruntime"
OCR_VERSION = "1.4.4"
OCR_MODELS: dict[str, tuple[str, str]] = {
    "detect": (
        "models/ch_PP-OCRv4_det_infer.onnx",
        "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
    ),
    "recognise": (
        "models/ch_PP-OCRv4_rec_infer.onnx",
        "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
    ),
}


def build(
    path: Path = REPOSITORY,
    models: Sequence[str] = (),
    timeout_s: float = download.TIMEOUT_S,
) -> Path:
    """Build what is missing of the model repository at `path`, and return its path.

    Without `models`, all that need no network. Prints a line for each model built and
    nothing for what is there already. A folder other than data/model_repository also
    gets copies of the configs and labels; those it has already, perhaps edited, stay as
    they are. Raises RepositoryError.
    """
    path = Path(path).absolute()
    if not REPOSITORY.is_dir():
        raise RepositoryError(
            f"{REPOSITORY} is missing: clone the whole course and install it from there"
            " with `pip install --editable .`."
        )
    for name in models:
        if name not in (*MODELS, *FETCHED):
            known = ", ".join([*MODELS, *FETCHED])
            raise RepositoryError(
                f"There is no model '{name}': name any of {known}, or a folder of your"
                f" own, as in ./{name}."
            )
    try:
        if path.exists() and not path.is_dir():
            raise RepositoryError(f"{path} is a file: name a folder instead.")
        for name in models or MODELS:
            if name in MODELS:
                _build_model(path / name)
            else:
                _fetch_model(path / name, timeout_s)
    except ModuleNotFoundError as error:
        raise RepositoryError(
            f"The package {error.name} is not installed: run `make setup`."
        ) from error
    except download.DownloadError as error:
        raise RepositoryError(str(error)) from error
    except OSError as error:
        raise RepositoryError(_explain(error, path)) from error
    return path


def build_pipeline() -> Path:
    """Copy what is missing of data/pipeline_repository's weights, and return its path.

    They come out of a package, all or none. Prints a line for each model copied and
    nothing for what is there already. Raises RepositoryError.
    """
    copied: dict[Path, bytes] = {}
    for name, (file, sha256) in OCR_MODELS.items():
        weights = PIPELINE / name / "1" / "model.onnx"
        if not has_hash(weights, sha256):
            copied[weights] = _read_packaged(file, sha256)
    try:
        for weights, data in copied.items():
            weights.parent.mkdir(parents=True, exist_ok=True)
            with bootstrap.alone(weights.parent):
                for leftover in weights.parent.glob(".*.part"):
                    leftover.unlink()  # of a run that was killed
                _write(weights, data)
            print(f"Copied {weights} from {OCR_PACKAGE}, {len(data) / 1e6:.1f} MB")
    except OSError as error:
        raise RepositoryError(_explain(error, PIPELINE)) from error
    return PIPELINE


def _read_packaged(file: str, sha256: str) -> bytes:
    """Return a file of the package, which is not imported: it would want OpenCV."""
    requirement = f"{OCR_PACKAGE}=={OCR_VERSION}"
    return packaged.read(requirement, file, sha256, RepositoryError, "--no-deps ")


def _build_model(folder: Path) -> None:
    make, sha256 = MODELS[folder.name]
    weights = folder / "1" / "model.onnx"
    texts = [file.name for file in (REPOSITORY / folder.name).glob("[!.]*.*")]

    def missing() -> list[str]:
        return [name for name in texts if not (folder / name).exists()]

    if has_hash(weights, sha256) and not missing():
        return
    weights.parent.mkdir(parents=True, exist_ok=True)
    with bootstrap.alone(folder):
        # Whoever holds the lock is alone, so these are of a build that was killed.
        for leftover in folder.rglob(".*.part"):
            leftover.unlink()
        for name in missing():
            _write(folder / name, (REPOSITORY / folder.name / name).read_bytes())
        if not has_hash(weights, sha256):  # unless built while this one waited
            _build_weights(weights, make, sha256)


def _fetch_model(folder: Path, timeout_s: float) -> None:
    weights, photo = FETCHED[folder.name]
    if not _is_complete(folder):
        if not has_hash(folder / "1" / "model.onnx", weights.sha256):
            download.fetch(weights, DOWNLOADS / weights.name, timeout_s)
        with bootstrap.alone(DOWNLOADS):
            if not _is_complete(folder):  # unless installed while this one waited
                _install(folder)
    if not has_hash(PHOTOS / photo.name, photo.sha256):
        download.fetch(photo, DOWNLOADS / photo.name, timeout_s)
        _write(PHOTOS / photo.name, (DOWNLOADS / photo.name).read_bytes())
        print(f"{PHOTOS / photo.name} is there.")


def _is_complete(folder: Path) -> bool:
    texts = (FETCHED_MODELS / folder.name).glob("[!.]*.*")
    right = has_hash(folder / "1" / "model.onnx", FETCHED[folder.name][0].sha256)
    return right and all((folder / text.name).exists() for text in texts)


def _install(folder: Path) -> None:
    """Put a fetched model into the repository: a new one all at once."""
    weights = FETCHED[folder.name][0]
    stage = folder
    if not folder.exists():
        stage = DOWNLOADS / f"{folder.name}.part"
        shutil.rmtree(stage, ignore_errors=True)  # of a run that was killed
    (stage / "1").mkdir(parents=True, exist_ok=True)
    if not has_hash(stage / "1" / "model.onnx", weights.sha256):
        data = (DOWNLOADS / weights.name).read_bytes()
        _write(stage / "1" / "model.onnx", data)
    for text in (FETCHED_MODELS / folder.name).glob("[!.]*.*"):
        if not (stage / text.name).exists():
            _write(stage / text.name, text.read_bytes())
    if stage != folder:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(stage, folder)
    print(
        f"{folder} is there. A server that runs already doesn't see it: end it with"
        " `python -m helpers.server stop`."
    )


def _build_weights(file: Path, make: Callable[[], "ModelProto"], sha256: str) -> None:
    print(f"Building {file} ... ", end="", flush=True)
    start, outcome = time.monotonic(), "failed"
    try:
        data = make().SerializeToString(deterministic=True)
        _write(file, data)
        size = f"{len(data) / 1e6:.1f} MB" if len(data) >= 1e5 else f"{len(data)} bytes"
        outcome = f"{size}, done in {time.monotonic() - start:.1f} s"
        if hashlib.sha256(data).hexdigest() != sha256:
            outcome += " (not to the byte the file that this course was tested with)"
    finally:
        print(outcome, flush=True)


def _write(file: Path, data: bytes) -> None:
    """Write a file whole or not at all, whatever happens in between."""
    descriptor, name = tempfile.mkstemp(".part", ".", file.parent)
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(descriptor)
        partial.chmod(0o644)  # a container's server runs as another user
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _explain(error: OSError, path: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"No space left for {path}: free 40 MB there or name another folder."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"You may not write to {path}: name a folder of your own."
    return f"{path} can't hold the repository ({error}): name another folder."


def main() -> None:
    """Build or fetch the models that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.repository",
        description="Build the course's model repository, and if nothing is named, copy"
        " the weights of its pipeline, too; a second run does nothing.",
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="MODEL|PATH",
        help=f"any of {', '.join(MODELS)}, which are built if none is named, and of"
        f" {', '.join(FETCHED)}, which is fetched from the internet; and a folder of"
        " your own, with a / in it, instead of data/model_repository",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=download.TIMEOUT_S,
        metavar="SECONDS",
        help="how long a server may keep silent (%(default)g)",
    )
    given = parser.parse_args()
    paths = [word for word in given.words if "/" in word or word == "."]
    models = [word for word in given.words if word not in paths]
    if len(paths) > 1:
        sys.exit(f"One folder at a time, not {' and '.join(paths)}.")
    try:
        path = build(Path(*paths) if paths else REPOSITORY, models, given.timeout)
        print(f"The model repository is ready: {path}")
        if not given.words:
            print(f"The pipeline's repository is ready: {build_pipeline()}")
    except RepositoryError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Interrupted; run it again to finish.")


if __name__ == "__main__":
    main()
