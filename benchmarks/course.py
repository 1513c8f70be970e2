"""`python -m benchmarks.course`: what the course itself costs, in a clone of its own.

It clones what is committed, and notes what pip fetches, the seconds from the empty
folder to the first right answer, the heaviest packages, and the slowest tests. The
notes go to .cache/benchmarks/course.json; `python -m benchmarks report` shows them.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.servers import CACHE, HERE, download_mb
from helpers import bootstrap

NOTES = CACHE / "course.json"
LOCKS = [HERE.parent / name for name in bootstrap.LOCKS]
FIRST_ANSWER = """
import numpy as np
import tritonclient.http as http
from helpers import images, server

with http.InferenceServerClient(server.connect().http) as client:
    photo = images.read_photo("data/photos/coffee.png")[None]
    given = http.InferInput("image", photo.shape, "FP32")
    given.set_data_from_numpy(photo)
    wanted = http.InferRequestedOutput("logits", class_count=1)
    found = client.infer("efficientnet_lite0", [given], outputs=[wanted])
    print(found.as_numpy("logits"))
"""

PACKAGES = """
import importlib.metadata, json
from benchmarks.servers import installed_mb

found = importlib.metadata.distributions()
packages = [(installed_mb(package), package.name) for package in found]
print(json.dumps(sorted(packages, reverse=True)))
"""


def timed(folder: Path, *command: str, **variables: str) -> tuple[float, str]:
    """Run a command in a folder; return its seconds and what it printed."""
    begin = time.perf_counter()
    ran = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        text=True,
    )
    if ran.returncode:
        sys.exit(f"{ran.stdout[-5000:]}\n{' '.join(command)}: {ran.returncode}")
    return time.perf_counter() - begin, ran.stdout


def slowest(report: str, count: int = 10) -> list[tuple[float, str]]:
    """Return what pytest's `--durations` lists as the slowest, from all its runs."""
    found = re.findall(r"^([\d.]+)s (?:call|setup) +(.+)$", report, re.MULTILINE)
    return sorted(((float(s), name) for s, name in found), reverse=True)[:count]


def main() -> None:
    """Measure, and note it."""
    wire = [download_mb("--requirement", lock) for lock in LOCKS]
    notes: dict[str, Any] = {"fetched_mb": wire[0], "tests_mb": wire[1]}
    with tempfile.TemporaryDirectory(prefix="course-") as scratch:
        Path(scratch).chmod(0o755)  # one test is another user
        course = Path(scratch) / "course"
        notes["clone_s"], _ = timed(
            Path(scratch), "git", "clone", "--quiet", str(HERE.parent), str(course)
        )
        notes["setup_s"], _ = timed(course, "make", "setup")
        python = str(course / ".venv" / "bin" / "python")
        notes["answer_s"], said = timed(course, python, "-c", FIRST_ANSWER)
        notes["answer"] = said.strip().splitlines()[-1]
        timed(course, python, "-m", "helpers.server", "stop")
        packages = json.loads(timed(course, python, "-c", PACKAGES)[1])
        notes["installed_mb"] = sum(mb for mb, _ in packages)
        notes["heaviest"] = packages[:10]
        timed(course, "make", "everything")
        options = {"PYTEST_ADDOPTS": "--durations=10 --durations-min=0"}
        notes["tests_s"], report = timed(course, "make", "test", **options)
        notes["tests"] = re.findall(r"(\d+) passed", report)
        notes["slowest"] = slowest(report)
    CACHE.mkdir(parents=True, exist_ok=True)
    NOTES.write_text(json.dumps(notes, indent=1))
    print(NOTES.read_text(), file=sys.stderr)


if __name__ == "__main__":
    main()
