"""Build the course's model repository: `python -m helpers.repository [PATH]`.

git holds each model's config.pbtxt and labels in data/model_repository; the weights
are built beside them. Built files are the same to the byte on every machine, so their
hashes tell what is there already from what is missing, damaged or out of date.
"""

import argparse
import errno
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from helpers import bootstrap

if TYPE_CHECKING:  # importing onnx takes longer than finding nothing to do
    from onnx import ModelProto

DATA = Path(__file__).resolve().parent.parent / "data"
REPOSITORY = DATA / "model_repository"


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


def build(path: Path = REPOSITORY) -> Path:
    """Build what is missing of the model repository at `path`, and return its path.

    Prints a line for each model built and nothing for what is there already. A folder
    other than data/model_repository also gets copies of the configs and labels; those
    it has already, perhaps edited, stay as they are. Raises RepositoryError.
    """
    path = Path(path).absolute()
    if not REPOSITORY.is_dir():
        raise RepositoryError(
            f"{REPOSITORY} is missing: clone the whole course and install it from there"
            " with `pip install --editable .`."
        )
    try:
        if path.exists() and not path.is_dir():
            raise RepositoryError(f"{path} is a file: name a folder instead.")
        for name in MODELS:
            _build_model(path / name)
    except ModuleNotFoundError as error:
        raise RepositoryError(
            f"The package {error.name} is not installed: run `make setup`."
        ) from error
    except OSError as error:
        raise RepositoryError(_explain(error, path)) from error
    return path


def _build_model(folder: Path) -> None:
    make, sha256 = MODELS[folder.name]
    weights = folder / "1" / "model.onnx"
    texts = [file.name for file in (REPOSITORY / folder.name).glob("[!.]*.*")]

    def missing() -> list[str]:
        return [name for name in texts if not (folder / name).exists()]

    if _has_hash(weights, sha256) and not missing():
        return
    weights.parent.mkdir(parents=True, exist_ok=True)
    with bootstrap.alone(folder):
        # Whoever holds the lock is alone, so these are of a build that was killed.
        for leftover in folder.rglob(".*.part"):
            leftover.unlink()
        for name in missing():
            _write(folder / name, (REPOSITORY / folder.name / name).read_bytes())
        if not _has_hash(weights, sha256):  # unless built while this one waited
            _build_weights(weights, make, sha256)


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


def _has_hash(file: Path, sha256: str) -> bool:
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == sha256


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
        return f"No space left for {path}: free 20 MB there or name another folder."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"You may not write to {path}: name a folder of your own."
    return f"{path} can't hold the repository ({error}): name another folder."


def main() -> None:
    """Build the repository that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.repository",
        description="Build the course's model repository; a second run does nothing.",
    )
    parser.add_argument("path", type=Path, nargs="?", default=REPOSITORY)
    try:
        print(f"The model repository is ready: {build(parser.parse_args().path)}")
    except RepositoryError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Interrupted; run it again to finish.")


if __name__ == "__main__":
    main()
