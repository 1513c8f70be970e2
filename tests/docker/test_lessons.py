"""The first five lessons on a real engine, strictly, and what lesson 05 teaches."""

import os
import subprocess
from pathlib import Path

import pytest
from course import LESSONS, ON_DOCKER, PYTEST, ROOT
from test_docker import asked_for_docker, running_engine, stopped_after  # noqa: F401

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("stopped_after")]


def pass_strictly(tmp_path, *arguments):
    """Run pytest on a server in a container, with what differs there sanitized."""
    rules = [ROOT / "tests" / "sanitize.cfg", Path(__file__).parent / "sanitize.cfg"]
    both = tmp_path / "sanitize.cfg"
    both.write_text("".join(path.read_text() for path in rules))
    answer = subprocess.run(
        [*PYTEST, f"--nbval-sanitize-with={both}", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "KEEP_TRITON": "1"},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize("lesson", LESSONS[:5], ids=lambda path: path.stem)
def test_a_lesson_passes(lesson, tmp_path):
    pass_strictly(tmp_path, lesson)


@pytest.mark.parametrize("lesson", ON_DOCKER, ids=lambda path: path.stem)
def test_one_that_runs_docker_itself_is_compared_and_can_be_solved(lesson, tmp_path):
    pass_strictly(tmp_path, "tests/test_strictness.py", "-k", lesson.stem)
