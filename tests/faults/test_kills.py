"""kill -9 at random moments: afterwards all is as if nothing had been."""

import collections
import contextlib
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import process_of, sized, traces
from kernel import check_sums

from helpers import embedded, server

KERNEL = Path(__file__).with_name("kernel.py")
# What a reader may meet when a server dies under their hands: its own words, those of
# Triton, and those of a connection that is gone.
EXPLAINED = (
    r"helpers\.embedded\.(StartError|PortLostError): .+[.)]"
    r"|tritonclient\.utils\.InferenceServerException: .+"
    r"|ConnectionRefusedError: .+|ConnectionResetError: .+|BrokenPipeError: .+"
    r"|geventhttpclient\.response\.HTTPConnectionClosed: .+"
)
# Triton may never answer what a stub had in hand as it died, nor, as long as a stub has
# its connection, what a server had in hand; docs/troubleshooting.md.
UNANSWERED = "TimeoutError: timed out"
# How long each step takes on a quiet machine, in seconds: the moment is within it.
STEPS = {
    "own": {"start": 0.4, "load": 1.5, "inference": 0.5, "stop": 2},
    "shared": {"start": 0.8, "inference": 0.5, "stop": 2},
}


def victims(who: str, kernel: subprocess.Popen) -> list[psutil.Process]:
    """Return the processes of this kind that run now."""
    if who == "kernel":
        return [psutil.Process(kernel.pid)] if kernel.poll() is None else []
    found = []
    for record in embedded.records():
        for process in embedded.processes_of(record):
            is_server = bool(record.process) and process.pid == record.process[0]
            if is_server == (who == "server"):
                found.append(process)
    return found


def kill_one(who: str, kernel: subprocess.Popen, draw: random.Random) -> bool:
    """Kill one as soon as there is one; return False if the kernel ends before."""
    while not (running := victims(who, kernel)):
        if kernel.poll() is not None:
            return False
        time.sleep(0.01)
    with contextlib.suppress(psutil.NoSuchProcess):
        draw.choice(running).kill()
    return True


def run_and_kill(who: str, draw: random.Random, errors: Path) -> tuple[str, bool]:
    """Run a kernel, kill at a random moment; return the step and whether one died."""
    kind = draw.choice(list(STEPS))
    step = draw.choice(list(STEPS[kind]))
    command = [sys.executable, str(KERNEL), kind]
    with (
        errors.open("w") as stderr,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as kernel,
    ):
        try:
            for line in kernel.stdout:
                if line == f"step {step}\n":
                    break
            time.sleep(draw.uniform(0, STEPS[kind][step]))
            killed = kill_one(who, kernel, draw)
            kernel.communicate(timeout=embedded.START_TIMEOUT_S + 60)
        finally:
            kernel.kill()
    said = errors.read_text().strip().splitlines()[-1:]
    if kernel.returncode > 0:
        unanswered = who != "kernel" and said == [UNANSWERED]
        assert unanswered or re.fullmatch(EXPLAINED, said[0]), errors.read_text()
    return f"{kind}: {step}", killed


@pytest.fixture(autouse=True)
def ended():
    server.stop_all()
    yield
    server.stop_all()


@sized(short=2, long=100)
def test_a_kill_leaves_nothing_and_a_connect_works(count, draw, tmp_path):
    before, moments = traces(), []
    while len(moments) < count:
        who = draw.choice(["server", "stub", "kernel"])
        step, hit = run_and_kill(who, draw, tmp_path / "errors")
        moments += [f"{who}, {step}"] * hit
        triton = server.connect()
        check_sums(triton)
        process_of(triton).kill()
        folders = [record.unpacked for record in embedded.records() if record.unpacked]
        server.stop_all()
        assert traces() == before, (who, step)
        assert not any(Path(folder).exists() for folder in folders), (who, step)
    print(dict(sorted(collections.Counter(moments).items())))
