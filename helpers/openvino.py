"""ONNX Runtime in Intel's build: `python -m helpers.openvino` brings it.

The package onnxruntime-openvino is the module `onnxruntime` once more, with Intel's
OpenVINO in it, so that it can't be installed beside the ordinary one. It lies in a
folder of its own, and only the servers that are started for it use it.
"""

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

from helpers import bootstrap, embedded, packaged, server
from helpers.server import Triton

VARIABLE = "TRITON_NOTEBOOKS_ONNXRUNTIME"  # read by helpers/backends/onnxruntime
FOLDER = Path(bootstrap.ROOT) / ".cache" / "openvino"
# The wheels for Python 3.10, 3.11 and 3.12 on x86-64; pip refuses anything else.
WHEEL = (
    "onnxruntime-openvino==1.23.0"
    " --hash=sha256:288cacec7ecbc7fc12ecccfc26edbbd760881c1e9e105dd922b68f9f8c7ed083"
    " --hash=sha256:91938837e6e92e30c63d12fad68a8a4959c40d2eade2bd60f38bdd5b6392f8d3"
    " --hash=sha256:b963ea19bf9856f3d6b2f719d451f2eeae482a8f69c729906465aa4f27f4d39c"
)


def start(
    repository: str | Path | Sequence[str | Path], **flags: server.Flag
) -> Triton:
    """Start a server whose ONNX models run on Intel's build, as `server.start` does.

    Fetches that build the first time, 70 MB, and says so. Raises StartError.
    """
    with mock.patch.dict(os.environ, {VARIABLE: str(find())}):
        return server.start(repository, **flags)


def find() -> Path:
    """Return the folder to import it from, fetched once. Raises StartError."""
    folder = FOLDER / f"{sys.version_info.major}.{sys.version_info.minor}"
    try:
        with bootstrap.alone(FOLDER):
            if not folder.exists():
                fetch(folder)
    except OSError as error:
        raise embedded.StartError(
            f"There is no OpenVINO here ({error}): run `python -m helpers.openvino`"
            " once with a network, on x86-64, or leave this step out."
        ) from None
    return folder


def fetch(folder: Path) -> None:
    """Install the package into a folder, whole or not at all."""
    print("Fetching OpenVINO's build of ONNX Runtime (70 MB, once) ...")
    with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
        packaged.pip("install --no-deps --target new", WHEEL, scratch)
        Path(scratch, "new").replace(folder)


def main() -> None:
    """Make sure that it is there."""
    try:
        find()
    except embedded.StartError as error:
        sys.exit(str(error))
    print("OpenVINO's build of ONNX Runtime is ready.")


if __name__ == "__main__":
    main()
