"""NVIDIA's load generator: `python -m helpers.perf_analyzer` brings it.

Its later releases need glibc 2.38. The one in tritonclient's wheel of 2.44.0 runs on an
older one, with two libraries that nvidia-pytriton has under other names. pip can't
install two versions of tritonclient, so the program alone is taken out of that wheel.
"""

import csv
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from helpers import bootstrap, embedded, packaged

FOLDER = Path(bootstrap.ROOT) / ".cache" / "perf_analyzer"
# The wheels for x86-64 and aarch64; pip refuses anything else.
WHEEL = (
    "tritonclient==2.44.0"
    " --hash=sha256:ed8a64ecbb7594ea196dfdc9678d6356b24fdf484995f53400004a195ef33749"
    " --hash=sha256:64f6a48db0a2f2b57f9c03c338669ee9203eeda30aa7d007a10daabd1acd3689"
)
LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}


class PerfAnalyzerError(RuntimeError):
    """perf_analyzer can't be had, or fails; the message is a sentence with the reason.

    IPython shows that sentence alone, without a traceback of ours.
    """

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


def run(words: str) -> list[dict[str, float]]:
    """Run perf_analyzer, as a shell would, and return what it measured.

    That is a row for each concurrency or request rate, in rising order (the program
    sorts them by throughput): the columns of its file of comma-separated values, the
    load first, times in microseconds. Prints the command. Raises PerfAnalyzerError.
    """
    print(f"$ perf_analyzer {words}")
    program = find()
    with tempfile.TemporaryDirectory() as scratch:
        table = Path(scratch) / "table.csv"
        command = [program, *shlex.split(words), "-f", table]
        answer = subprocess.run(
            command, env=environment(program), capture_output=True, text=True
        )
        if answer.returncode != 0 or not table.exists():
            said = (answer.stderr or answer.stdout).strip() or str(answer.returncode)
            raise PerfAnalyzerError(f"perf_analyzer failed: {said.splitlines()[-1]}")
        with table.open(newline="") as file:
            columns, *rows = csv.reader(file)
        measured = [[float(value) for value in row] for row in rows]
        return [dict(zip(columns, row, strict=True)) for row in sorted(measured)]


def find() -> Path:
    """Return the program: one of the reader's own on PATH, else ours, fetched once.

    Raises PerfAnalyzerError.
    """
    if own := shutil.which("perf_analyzer"):
        return Path(own)
    program = FOLDER / "perf_analyzer"
    try:
        with bootstrap.alone(FOLDER):
            if not program.exists():
                fetch(program)
            link_libraries()
    except (OSError, embedded.StartError) as error:
        raise PerfAnalyzerError(no_program(str(error))) from None
    return program


def fetch(program: Path) -> None:
    """Take the program out of the wheel, whole or not at all."""
    with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
        packaged.pip("download --no-deps", WHEEL, scratch)
        [file] = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(file) as wheel:
            name = next(n for n in wheel.namelist() if n.endswith("/bin/perf_analyzer"))
            new = Path(wheel.extract(name, scratch))
        new.chmod(0o755)
        new.replace(program)


def link_libraries() -> None:
    """Give the two libraries the names that the program asks for."""
    libraries = embedded.site_packages() / "nvidia_pytriton.libs"
    for name, pattern in LIBRARIES.items():
        there = next(libraries.glob(pattern), libraries / pattern)
        link = FOLDER / name
        if not link.is_symlink() or link.readlink() != there:
            link.unlink(missing_ok=True)
            link.symlink_to(there)


def environment(program: Path) -> dict[str, str]:
    """Return the environment in which the program finds its libraries."""
    if program.parent != FOLDER:
        return dict(os.environ)
    before = os.environ.get("LD_LIBRARY_PATH")
    paths = f"{FOLDER}:{before}" if before else str(FOLDER)
    return {**os.environ, "LD_LIBRARY_PATH": paths}


def no_program(reason: str) -> str:
    """Return what to do without the program."""
    return (
        f"There is no perf_analyzer here ({reason}): run `python -m"
        " helpers.perf_analyzer` once with a network, or put NVIDIA's own (in the SDK"
        " container) on PATH."
    )


def main() -> None:
    """Make sure that the program is there and runs."""
    try:
        program = find()
        answer = subprocess.run(
            [program, "--version"],
            env=environment(program),
            capture_output=True,
            text=True,
        )
        if answer.returncode != 0:
            raise PerfAnalyzerError(no_program(answer.stderr.strip()))
    except PerfAnalyzerError as error:
        sys.exit(str(error))
    print(f"perf_analyzer is ready: {program}")


if __name__ == "__main__":
    main()
