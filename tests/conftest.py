"""Tests run against live servers of their own, and leave none behind.

They keep their records in a temporary folder, so that a server that the reader has
running is neither used nor ended.
"""

import contextlib
import os
import random
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import numpy as np
import psutil
import pytest
import tritonclient.http as httpclient
from course import ON_DOCKER, cells, solutions, tags
from nbval.plugin import IPyNbCell
from xdist.scheduler import LoadScopeScheduling

from helpers import embedded, server


def pytest_configure() -> None:
    # Tests say themselves where their servers come from; KEEP_TRITON=1 lets the
    # variable stand, for lessons that are to run on what it names.
    if not os.environ.get("KEEP_TRITON"):
        os.environ.pop("TRITON", None)
    # A worker's folder is within that of the process that runs the workers.
    parent = os.environ["TMPDIR"] if "PYTEST_XDIST_WORKER" in os.environ else "/tmp"
    os.environ["TMPDIR"] = tempfile.mkdtemp(prefix="tests-", dir=parent)
    tempfile.tempdir = None
    os.environ.setdefault("SEED", str(secrets.randbelow(2**32)))


def pytest_report_header() -> str:
    return f"SEED={os.environ['SEED']} (say it before make, and the same is drawn)"


def sized(short: int, long: int) -> pytest.MarkDecorator:
    """Run a test with a small `count` in `make test`, a large in `make test-faults`."""
    large = pytest.param(long, marks=pytest.mark.faults)
    return pytest.mark.parametrize("count", [short, large])


@pytest.fixture
def draw(request: pytest.FixtureRequest) -> random.Random:
    """What a test draws from: the same again with the same SEED."""
    return random.Random(f"{os.environ['SEED']} {request.node.name}")


SLOW_FIRST = (
    "test_kills",
    "test_mixed_load",
    "test_crowds",  # goes to the worker of the kills, so the lessons go to the other
    "test_busy_lessons",
    "test_server_life",
    "test_site",
    "test_lab",
    "test_colab",
    "test_server.py",
    "test_backend",
    "ipynb",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, so that no worker ends long after the others."""
    items[:] = [each for item in items for each in (item, *solved(item))]
    for item in items:
        if item.path in ON_DOCKER and isinstance(item, IPyNbCell):
            item.add_marker("docker")

    def rank(item: pytest.Item) -> int:
        slow = [n for n, part in enumerate(SLOW_FIRST) if part in item.nodeid]
        return slow[0] if slow else len(SLOW_FIRST)

    items.sort(key=rank)


# --- Exercises ----------------------------------------------------------------------


class SolvedCell(IPyNbCell):
    """A check once more, after its exercise's solution: now it has to say Right."""

    def runtest(self) -> None:
        super().runtest()
        printed = "".join(output.get("text", "") for output in self.test_outputs)
        assert re.search(r"^Right", printed, re.MULTILINE), printed


def solved(item: pytest.Item) -> Iterator[SolvedCell]:
    """Yield what follows an exercise's check, as it follows in a learner's kernel."""
    if not isinstance(item, IPyNbCell) or "check" not in tags(item.cell):
        return
    checks = [c for c in cells(item.parent.nb, "code") if "check" in tags(c)]
    solution = solutions(item.parent.nb)[checks.index(item.cell)]
    cell = nbformat.v4.new_code_cell(f"{solution}\n{item.cell.source}")
    yield SolvedCell.from_parent(
        item.parent,
        name=f"{item.name} solved",
        cell_num=item.cell_num,
        cell=cell,
        options=item.options,
    )


# --- Lessons on a server elsewhere, with KEEP_TRITON=1 ------------------------------


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what follows a cell that needs a server of its own and can't have one."""
    if reason := getattr(item.parent, "needs_its_own", None):
        pytest.skip(reason)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator:
    report = (yield).get_result()
    failed = isinstance(item, IPyNbCell) and call.excinfo
    said = getattr(call.excinfo.value, "inner_traceback", None) if failed else None
    if refused := re.search(r"TRITON=\S+ names a server that .*", said or ""):
        item.parent.needs_its_own = refused[0]
        report.outcome = "skipped"
        report.longrepr = (str(item.path), None, f"Skipped: {refused[0]}")


# --- The order of the tests ---------------------------------------------------------


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if "not docker" in config.option.markexpr:
        terminalreporter.write_line(
            "SKIPPED tests/docker and what runs Docker itself: `make test-docker` runs"
            " them, as root on Debian 12."
        )


class ByFile(LoadScopeScheduling):
    """Keep a file's tests on one worker, but spread the checks of lessons."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid if "test_strictness" in nodeid else nodeid.split("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByFile:
    return ByFile(config, log)


def pytest_unconfigure() -> None:
    server.stop_all()
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    # While workers run, what a killed server left in /tmp could be another worker's.
    for records in Path(os.environ["TMPDIR"]).glob("tests-*/triton-notebooks-*"):
        tempfile.tempdir = str(records.parent)
        server.stop_all()
    shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)


@pytest.fixture(scope="session")
def echo_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one small Python model, which returns what it is sent."""
    return write_echo(tmp_path_factory.mktemp("repository"))


def write_echo(repository: Path, name: str = "echo") -> Path:
    version = repository / name / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(
        """
import triton_python_backend_utils as pb_utils


def answer(request):
    array = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
    return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", array)])


class TritonPythonModel:
    def execute(self, requests):
        return [answer(request) for request in requests]
"""
    )
    (repository / name / "config.pbtxt").write_text(
        """
backend: "python"
input [ { name: "IN" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "OUT" data_type: TYPE_FP32 dims: [ -1 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""
    )
    return repository


QUICK = {"disable_auto_complete_config": True}


def echo(triton: server.Triton) -> list[float]:
    """Send three numbers through the model and return what comes back."""
    sent = httpclient.InferInput("IN", [3], "FP32")
    sent.set_data_from_numpy(np.arange(3, dtype=np.float32))
    with httpclient.InferenceServerClient(triton.http) as client:
        return client.infer("echo", [sent]).as_numpy("OUT").tolist()


def python(code: str, *arguments: object, **options: object) -> subprocess.Popen:
    """Run code in another process, as another kernel would."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


def command_line(*arguments: object) -> subprocess.CompletedProcess:
    """Run `python -m helpers.repository` with these words, as in a shell."""
    return subprocess.run(
        [sys.executable, "-m", "helpers.repository", *map(str, arguments)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )


def process_of(triton: server.Triton) -> psutil.Process:
    return psutil.Process(triton._process.process[0])


def wait_for(condition: Callable[[], object], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@contextlib.contextmanager
def squatter(port: int = 0) -> Iterator[int]:
    """Hold a port of 127.0.0.1 that somebody else has taken, any one if it is 0."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        yield taken.getsockname()[1]


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    """A real browser; tests that need one are skipped where none can be had."""
    import chromium

    with contextlib.ExitStack() as stack:
        try:
            running = stack.enter_context(chromium.browser())
        except chromium.CannotRunError as problem:
            pytest.skip(f"No browser: {problem}")
        yield running


@pytest.fixture
def no_server() -> Iterator[None]:
    """Nothing runs before the test, and nothing is left after it."""
    server.stop_all()
    before = traces()
    yield
    server.stop_all()
    assert traces() == before


def traces() -> set[str]:
    """Return all that the servers of this test process could leave on the machine.

    The record of a dead server may wait until one that is older ends; see embedded.end.
    """
    ours = embedded.new_name()[:-8]
    records = embedded.records()
    waiting = {r.folder for r in records if not r.alive() and not r.unpacked}
    within = [*embedded.state().glob("*")]
    found = {*embedded.SHM.glob(f"{ours}*"), *within} - waiting
    found |= {*embedded.state().parent.glob("triton-*")}
    if within:
        found.discard(embedded.state())
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(embedded.TOKEN, "").startswith(ours):
                found.add(f"process {process.pid}")
    return set(map(str, found))
