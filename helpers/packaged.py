"""Files that come in Python packages: weights, read as they are, and checked."""

import hashlib
import importlib.util
from pathlib import Path


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
