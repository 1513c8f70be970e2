"""The lessons, in a random order, with no core to spare."""

import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from course import LESSONS, ON_DOCKER, PYTEST

ROUNDS = int(os.environ.get("LESSONS", "1"))
CORES = os.cpu_count() or 1


@contextlib.contextmanager
def busy_cores() -> Iterator[None]:
    """Keep every core at work that nobody needs."""
    command = [sys.executable, "-c", "while True: pass"]
    workers = [subprocess.Popen(command) for _ in range(CORES)]
    try:
        yield
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def lost(lesson: Path) -> str:
    """Return nothing if a lesson's outputs are the committed ones, else the report."""
    answer = subprocess.run([*PYTEST, lesson], capture_output=True, text=True)
    return f"{lesson.stem}:\n{answer.stdout[-3000:]}" if answer.returncode else ""


@pytest.mark.faults
def test_lessons_pass_in_any_order_while_all_cores_are_busy(draw: random.Random):
    order = [lesson for lesson in LESSONS if lesson not in ON_DOCKER] * ROUNDS
    draw.shuffle(order)
    # As many at a time as there are cores: each also takes what the others could use.
    with busy_cores(), ThreadPoolExecutor(CORES) as pool:
        reports = [report for report in pool.map(lost, order) if report]
    print(f"{len(order)} runs, {len(reports)} lost")
    assert not reports, "\n".join(reports)
