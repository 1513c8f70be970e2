"""The lessons on a server that another process started: TRITON=http://HOST:PORT."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from course import LESSONS, ROOT
from test_server import refusal

from helpers import repository, server

RULES = [Path(__file__).with_name(name) for name in ("sanitize.cfg", "elsewhere.cfg")]
SUMMARIES = {
    "model_control_mode": "explicit",
    "load_model": "efficientnet_lite0",
    "metrics_config": [
        "summary_latencies=true",
        "summary_quantiles=0.5:0.05,0.99:0.001",
    ],
}
# What the server elsewhere was started with, and how many cells need one of their own.
NEEDS = {"02": ({}, 14), "03": ({}, 0), "04": (SUMMARIES, 0)}


def address_of(triton):
    ports = [a.split(":")[1] for a in (triton.http, triton.grpc, triton.metrics)]
    return f"127.0.0.1:{','.join(ports)}"


@contextlib.contextmanager
def elsewhere(monkeypatch, **flags):
    """Name a server with these flags in TRITON, as if somebody else had started it."""
    with server.start(repository.build(), **flags) as theirs:
        monkeypatch.setenv("TRITON", address_of(theirs))
        yield theirs
        monkeypatch.delenv("TRITON")


@pytest.mark.parametrize("number", NEEDS)
def test_a_lesson_passes_strictly_and_skips_what_needs_its_own(
    number, tmp_path, monkeypatch
):
    (lesson,) = [path for path in LESSONS if path.name.startswith(number)]
    flags, skipped = NEEDS[number]
    rules = tmp_path / "sanitize.cfg"
    rules.write_text("".join(path.read_text() for path in RULES))
    command = [sys.executable, "-m", "pytest", "-p", "conftest", str(lesson)]
    with elsewhere(monkeypatch, **flags):
        answer = subprocess.run(
            [*command, "-p", "no:cacheprovider", f"--nbval-sanitize-with={rules}"],
            cwd=ROOT,
            env={**os.environ, "KEEP_TRITON": "1", "PYTHONPATH": "tests"},
            capture_output=True,
            text=True,
        )
    assert answer.returncode == 0, answer.stdout
    assert answer.stdout.count(f" {skipped} skipped in") == (skipped > 0)
    assert ("this step needs one of its own" in answer.stdout) == (skipped > 0)


def test_a_start_uses_a_server_elsewhere_that_has_what_it_asks(monkeypatch, capsys):
    with elsewhere(monkeypatch, **SUMMARIES) as theirs:
        with server.start(repository.REPOSITORY, **SUMMARIES) as found:
            assert found.http == theirs.http
        assert server.answers(f"http://{theirs.http}/v2")  # what is theirs goes on
        assert capsys.readouterr().out.count("started by somebody else") == 1


@pytest.mark.parametrize(
    ("flags", "lacks"),
    [
        ({"model_control_mode": "explicit"}, "with --model-control-mode=explicit"),
        ({"metrics_config": "summary_latencies=true"}, "with --metrics-config=summary"),
        ({"metrics_config": "summary_quantiles=0.9:0.1"}, "with --metrics-config=summ"),
        ({"load_model": "nobody"}, "which serves nobody"),
        ({"strict_readiness": False}, "with --strict-readiness"),
    ],
)
def test_a_start_says_what_a_server_elsewhere_lacks(monkeypatch, flags, lacks):
    with elsewhere(monkeypatch):
        sentence = refusal(repository.REPOSITORY, **flags)
        assert "names a server that somebody else runs, and this step needs" in sentence
        assert f"one of its own, {lacks}" in sentence


def test_a_start_on_another_repository_is_refused(monkeypatch, echo_repository):
    with elsewhere(monkeypatch):
        assert "on another model repository" in refusal(echo_repository)
