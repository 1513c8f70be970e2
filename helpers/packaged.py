"""What comes in Python packages: networks, and wheels that can't be installed."""

import hashlib
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from helpers import bootstrap
from helpers.download import has_hash

if TYPE_CHECKING:  # importing onnx takes longer than finding nothing to do
    from onnx import ModelProto


def read(
    requirement: str, file: str, sha256: str, error: type[Exception], options: str = ""
) -> bytes:
    """Return a file of a package, given as `name==version`, which is not imported.

    Raises `error`, with one sentence that says what to do, when the package is missing
    or its file is another one; `options` are further words for pip.
    """
    name = requirement.partition("==")[0]
    again = f"pip install {options}--force-reinstall {requirement}"
    package = importlib.util.find_spec(name.replace("-", "_"))
    if package is None or not package.submodule_search_locations:
        raise error(f"The package {name} is not installed: {again}")
    path = Path(package.submodule_search_locations[0], file)
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise error(f"{path}: {problem.strerror}; try: {again}") from problem
    if hashlib.sha256(data).hexdigest() != sha256:
        raise error(f"{path} is not the file we know (its SHA-256): {again}")
    return data


def keep(weights: Path, sha256: str, make: Callable[[], "ModelProto"]) -> None:
    """Write a model's weights, whole or not at all, unless the right ones are there."""
    with bootstrap.alone(weights.parent.parent):
        if not has_hash(weights, sha256):
            data = make().SerializeToString(deterministic=True)
            weights.parent.mkdir(exist_ok=True)
            part = weights.with_suffix(".part")
            part.write_bytes(data)
            part.replace(weights)


def pip(words: str, requirement: str, scratch: str | Path) -> None:
    """Run pip in a scratch folder on one pinned requirement with its hashes.

    Raises OSError with the first of pip's own reasons.
    """
    Path(scratch, "wheel.txt").write_text(requirement)
    command = f"-m pip --disable-pip-version-check {words} --quiet"
    command += " --only-binary=:all: --require-hashes --requirement=wheel.txt"
    answer = subprocess.run(
        [sys.executable, *command.split()], cwd=scratch, capture_output=True, text=True
    )
    if answer.returncode != 0:
        lines = answer.stderr.splitlines()
        errors = [line[7:] for line in lines if line.startswith("ERROR: ")]
        raise OSError((errors or ["no wheel came"])[0].partition(". ")[0])
