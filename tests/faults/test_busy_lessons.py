"""The lessons, in a random order, with no core to spare."""

import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from course import LESSONS, ON_DOCKER, PYTEST

ROUNDS = int(os.environ.get("LESSONS", "1"))


@contextlib.contextmanager
def busy_cores() -> Iterator[None]:
    """Keep every core at work that nobody needs."""
    command = [sys.executable, "-c", "while True: pass"]
    workers = [subprocess.Popen(command) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def run_strictly(lesson: Path) -> str:
    """Return nothing if a lesson's outputs are the committed ones, else the report."""
    answer = subprocess.run([*PYTEST, lesson], capture_output=True, text=True)
    return answer.stdout[-3000:] if answer.returncode else ""


@pytest.mark.faults
def test_lessons_pass_in_any_order_while_all_cores_are_busy(draw: random.Random):
    order = [lesson for lesson in LESSONS if lesson not in ON_DOCKER] * ROUNDS
    draw.shuffle(order)
    with busy_cores():
        lost = {lesson.stem: said for lesson in order if (said := run_strictly(lesson))}
    print(f"{len(order)} runs, {len(lost)} lessons lost")
    assert not lost, "\n".join(f"{name}:\n{said}" for name, said in lost.items())
