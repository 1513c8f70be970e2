"""The servers that are compared: how each is installed, started, asked and ended."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks import wire
from helpers import images, repository, server

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent / ".cache" / "benchmarks"
PEERS = HERE / "peers"
TOKEN = "TRITON_NOTEBOOKS_BENCHMARK"
START_TIMEOUT_S = 120
PHOTOS = 4  # different ones, so that a mixed-up answer is a wrong one

Setting = dict[str, Any]
# What Triton divides a request's time into.
STEPS = ("queue", "compute_input", "compute_infer", "compute_output")


class NotMeasured(Exception):
    """Why a server is not in the table, in one sentence."""


@dataclass
class Running:
    """A server that has answered rightly."""

    port: int
    start_s: float  # from the command to the first right answer
    processes: list[psutil.Process]
    http: str = ""  # Triton's own address, where its statistics are

    def spent_ms(self) -> dict[str, float]:
        """Return what Triton has counted so far of requests' time, by step."""
        if not self.http:
            return {}
        address = f"http://{self.http}/v2/models/{wire.MODEL}/stats"
        with urllib.request.urlopen(address) as answer:
            (model,) = json.load(answer)["model_stats"]
        return {step: model["inference_stats"][step]["ns"] / 1e6 for step in STEPS}

    def pss_mb(self) -> float:
        """Return its memory, each shared page counted in shares among its owners."""
        return self.total(lambda process: process.memory_full_info().pss) / 1e6

    def reads(self) -> int:
        """Return how often its processes have asked the kernel for bytes so far."""
        return self.total(lambda process: process.io_counters().read_count)

    def total(self, number: Callable[[psutil.Process], int]) -> int:
        """Add up a number of each process that is still there."""
        found = 0
        for process in self.processes:
            with contextlib.suppress(psutil.Error):
                found += number(process)
        return found

    def cpu_s(self) -> dict[str, float]:
        """Return the processor time that it has taken so far, by name of process."""
        found: dict[str, float] = {}
        for process in self.processes:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                name = process.name()
                found[name] = found.get(name, 0.0) + times.user + times.system
        return found

    def cpu_s_since(self, before: dict[str, float]) -> dict[str, float]:
        """Return the processor time that it has taken since then, by process."""
        return {name: s - before[name] for name, s in self.cpu_s().items()}


@dataclass
class Peer:
    """A server in an environment of its own, under .cache/benchmarks."""

    name: str
    command: Callable[[Path, int, Setting, Path], list[str]]
    settings: list[Setting]
    protocol: str = "http"
    dialect: str = "plain"
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def package(self) -> str:
        """The package whose version names this server's, and its folders."""
        return self.name.partition("-")[0]

    @property
    def python(self) -> Path:
        """The Python of its environment."""
        return CACHE / self.package / "bin" / "python"

    def install(self) -> None:
        """Make its environment, unless it is there as its requirements ask."""
        asked = (PEERS / self.package / "requirements.txt").read_text()
        done = CACHE / self.package / "requirements.txt"
        if done.exists() and done.read_text() == asked:
            return
        shutil.rmtree(CACHE / self.package, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", CACHE / self.package], check=True)
        pip = [self.python, "-m", "pip", "install", "--quiet", "--no-deps", "-r"]
        found = subprocess.run(
            [*pip, PEERS / self.package / "requirements.txt"],
            capture_output=True,
            text=True,
        )
        if found.returncode:
            last = (found.stderr.strip().splitlines() or ["no word"])[-1]
            raise NotMeasured(f"pip could not install it: {last}")
        done.write_text(asked)

    def version(self) -> str:
        """Return the release that is measured."""
        text = (PEERS / self.package / "requirements.txt").read_text()
        return re.search(rf"^{self.package}==(\S+)", text, re.MULTILINE)[1]

    def size_mb(self) -> float:
        """Return what its environment holds beyond Python and pip."""
        (site,) = (CACHE / self.package / "lib").glob("python3*/site-packages")
        return (
            sum(
                file.lstat().st_size
                for file in site.rglob("*")
                if not re.match(
                    r"pip|setuptools|__pycache__", file.relative_to(site).parts[0]
                )
                and file.suffix != ".pyc"
                and file.is_file()
            )
            / 1e6
        )

    def download_mb(self) -> float:
        """Return what pip fetches for its environment."""
        return download_mb("--requirement", PEERS / self.package / "requirements.txt")

    @contextlib.contextmanager
    def running(self, setting: Setting, tensors: Path) -> Iterator[Running]:
        """Start it, wait for a right answer, and end it with all that it left."""
        port, token = free_port(), secrets.token_hex(8)
        with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
            environment = {
                **os.environ,
                **self.variables,
                **{name: str(value) for name, value in setting.items()},
                "PATH": f"{self.python.parent}:{os.environ['PATH']}",
                "PORT": str(port),
                "MODEL": str(model_file()),
                "SCRATCH": scratch,
                "TMPDIR": scratch,
                "LOG_LOCATION": scratch,  # TorchServe's
                "METRICS_LOCATION": scratch,
                TOKEN: token,
            }
            log = Path(scratch) / "log"
            begin = time.perf_counter()
            with log.open("wb") as out:
                process = subprocess.Popen(
                    self.command(self.python.parent, port, setting, Path(scratch)),
                    cwd=PEERS / self.package,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            try:
                seconds = first_answer(self, port, tensors, begin, process, log)
                yield Running(port, seconds, of_token(TOKEN, token))
            finally:
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)
                end_all(TOKEN, token)
                process.wait()


@dataclass
class Embedded:
    """NVIDIA's own server out of its wheel, as this course starts it."""

    name: str
    protocol: str
    settings: list[Setting]
    dialect: str = "v2"
    packages = ("nvidia-pytriton", "onnxruntime", "numpy")

    def install(self) -> None:
        """It is there already: the course runs on it."""

    def version(self) -> str:
        """Return the release that is measured."""
        return "2.51.0"

    def size_mb(self) -> float:
        """Return what the server and its backend need, with all they depend on."""
        return sum(map(installed_mb, needed_by(*self.packages)))

    def download_mb(self) -> float:
        """Return what pip fetches for the same."""
        return download_mb(*map(pinned, needed_by(*self.packages)))

    @contextlib.contextmanager
    def running(self, setting: Setting, tensors: Path) -> Iterator[Running]:
        """Start it on a repository of this one model, and end it."""
        with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
            folder = Path(scratch) / wire.MODEL
            shutil.copytree(model_file().parent.parent, folder)
            text = (folder / "config.pbtxt").read_text()
            (folder / "config.pbtxt").write_text(configured(text, setting))
            begin = time.perf_counter()
            with (
                contextlib.redirect_stdout(sys.stderr),
                server.start(
                    scratch,
                    disable_auto_complete_config=True,
                    **setting.get("flags", {}),
                ) as triton,
            ):
                address = triton.grpc if self.protocol == "grpc" else triton.http
                port = int(address.rpartition(":")[2])
                seconds = first_answer(self, port, tensors, begin)
                name = triton._process.name
                found = of_token(server.embedded.TOKEN, name)
                yield Running(port, seconds, found, triton.http)


@dataclass
class InProcess:
    """onnxruntime without a server, called by as many threads as there are clients."""

    name: str
    settings: list[Setting]
    protocol: str = "in-process"
    dialect: str = ""
    packages = ("onnxruntime", "numpy")

    def install(self) -> None:
        """It is there already."""

    def version(self) -> str:
        """Return the release that is measured."""
        return importlib.metadata.version("onnxruntime")

    def size_mb(self) -> float:
        """Return what onnxruntime needs."""
        return sum(map(installed_mb, needed_by(*self.packages)))

    def download_mb(self) -> float:
        """Return what pip fetches for the same."""
        return download_mb(*map(pinned, needed_by(*self.packages)))

    @contextlib.contextmanager
    def running(self, _setting: Setting, tensors: Path) -> Iterator[Running]:
        """Tell how long Python takes to its first answer, and how much memory."""
        code = (
            "import sys, numpy as np, onnxruntime as ort\n"
            "x = np.load(sys.argv[2])['x']\n"
            "session = ort.InferenceSession(sys.argv[1])\n"
            "session.run(None, {'image': x[0]})\n"
            "print('done', flush=True)\n"
            "sys.stdin.read()\n"
        )
        command = [sys.executable, "-c", code, model_file(), tensors]
        ends = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        begin = time.perf_counter()
        with subprocess.Popen(command, **ends) as process:
            process.stdout.readline()
            seconds = time.perf_counter() - begin
            yield Running(0, seconds, [psutil.Process(process.pid)])
            process.stdin.close()


def configured(text: str, setting: Setting) -> str:
    """Return a config.pbtxt with this count of instances and these threads.

    Where the setting says nothing, the file's own words, or Triton's default, hold.
    """
    if "instances" in setting:
        text = re.sub(r"instance_group \[.*?\n\]\n", "", text, flags=re.DOTALL)
        count = f" count: {setting['instances']}" if setting["instances"] else ""
        text += f"instance_group [ {{ kind: KIND_CPU{count} }} ]\n"
    for key, value in setting.get("parameters", {}).items():
        text += f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}\n'
    return text + setting.get("text", "")


def model_file() -> Path:
    """Return the classifier's weights, which are built where they are missing."""
    with contextlib.redirect_stdout(sys.stderr):
        return repository.build() / wire.MODEL / "1" / "model.onnx"


def tensors() -> Path:
    """Write the photographs that are asked about, and onnxruntime's answers."""
    import onnxruntime as ort

    path = CACHE / "tensors.npz"
    CACHE.mkdir(parents=True, exist_ok=True)
    files = sorted(images.PHOTOS.iterdir())[:PHOTOS]
    x = np.stack([images.read_photo(file)[None] for file in files])
    session = ort.InferenceSession(model_file())
    y = np.stack([session.run(None, {"image": image})[0].ravel() for image in x])
    np.savez(path, x=x, y=y)
    return path


def ask(job: dict[str, Any]) -> dict[str, Any]:
    """Let the load generator do a job, in a process of its own."""
    found = subprocess.run(
        [sys.executable, "-m", "benchmarks.client"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        cwd=HERE.parent,
    )
    if found.returncode:
        raise NotMeasured(
            f"the clients failed: {found.stderr.strip().splitlines()[-1]}"
        )
    return json.loads(found.stdout)


def first_answer(
    asked: "Peer | Embedded | InProcess",
    port: int,
    tensors: Path,
    begin: float,
    process: subprocess.Popen[bytes] | None = None,
    log: Path | None = None,
) -> float:
    """Return how long after `begin` the first right answer came."""
    from benchmarks import client

    with client.tensors_of(tensors) as (x, y):
        while (seconds := time.perf_counter() - begin) < START_TIMEOUT_S:
            if process and process.poll() is not None:
                raise NotMeasured(f"it ended: {last_words(log)}")
            with contextlib.suppress(Exception), contextlib.ExitStack() as stack:
                job = {"port": port, "dialect": asked.dialect}
                make = client.PROTOCOLS[asked.protocol]
                caller = make(job, x[:1], 0)
                stack.callback(caller.close)
                if client.is_right(caller(0), y[0]):
                    return time.perf_counter() - begin
            time.sleep(0.02)
    raise NotMeasured(f"no right answer in {seconds:.0f} s: {last_words(log)}")


def last_words(log: Path | None) -> str:
    """Return the end of a log, without machine paths."""
    lines = log.read_text(errors="replace").strip().splitlines() if log else []
    return re.sub(r"/\S+/", "", " | ".join(lines[-3:]))[-300:] or "its log is empty"


def free_port() -> int:
    """Return a port that nobody listens on, nor on the two after it."""
    for port in range(19000, 19900, 10):
        if all(server.embedded.is_free(port + i) for i in range(5)):
            return port
    raise NotMeasured("no port is free")


def of_token(name: str, value: str) -> list[psutil.Process]:
    """Return the processes with this variable in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(name) == value:
                found.append(process)
    return found


def end_all(name: str, value: str) -> None:
    """Kill what is left of a server."""
    left = of_token(name, value)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=5)


def needed_by(*names: str) -> list[importlib.metadata.Distribution]:
    """Return these installed packages and all that they need."""
    from packaging.requirements import Requirement

    found: dict[str, importlib.metadata.Distribution] = {}
    open_names = list(names)
    while open_names:
        name = open_names.pop()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        for text in found[name].requires or []:
            asked = Requirement(text)
            if not asked.marker or asked.marker.evaluate({"extra": ""}):
                open_names.append(asked.name.lower())
    return list(found.values())


def pinned(package: importlib.metadata.Distribution) -> str:
    """Return a package as pip is asked for it."""
    return f"{package.name}=={package.version}"


def installed_mb(package: importlib.metadata.Distribution) -> float:
    """Return the size of a package's files, but for what Python compiled of them."""
    size = 0
    for file in package.files or []:
        with contextlib.suppress(OSError):
            size += 0 if file.suffix == ".pyc" else file.locate().stat().st_size
    return size / 1e6


def download_mb(*asked: str | Path) -> float:
    """Return what pip would fetch for these words, were nothing there yet.

    For the same words and files it is looked up once, and kept.
    """
    texts = [a.read_text() if isinstance(a, Path) else a for a in asked]
    kept = CACHE / "downloads" / hashlib.sha256("\n".join(texts).encode()).hexdigest()
    if kept.exists():
        return float(kept.read_text())
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"]
    options = ["--no-deps", "--quiet", "--report", "-"]
    report = subprocess.run(
        [*pip, *options, *asked], capture_output=True, text=True, check=True
    )
    addresses = [
        found["download_info"]["url"] for found in json.loads(report.stdout)["install"]
    ]

    def size(address: str) -> int:
        question = urllib.request.Request(address, method="HEAD")
        with urllib.request.urlopen(question) as answer:
            return int(answer.headers["Content-Length"])

    with ThreadPoolExecutor(4) as pool:
        total = sum(pool.map(size, addresses)) / 1e6
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(f"{total}")
    return total


# --- How each peer is started ------------------------------------------------------


def fastapi(binaries: Path, port: int, setting: Setting, _scratch: Path) -> list[str]:
    """Start uvicorn with its faster event loop and parser."""
    where = ["--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
    fast = ["--loop", "uvloop", "--http", "httptools", "--no-access-log"]
    workers = ["--workers", str(setting["WORKERS"])]
    module = [str(binaries / "python"), "-m", "uvicorn", "serve:app"]
    return [*module, *where, *fast, *workers]


def mlserver(binaries: Path, port: int, setting: Setting, scratch: Path) -> list[str]:
    """Write MLServer's two files of settings and start it."""
    folder = scratch / "model"
    folder.mkdir()
    shutil.copy(PEERS / "mlserver" / "serve.py", folder)
    settings = {
        "host": "127.0.0.1",
        "grpc_port": port,
        "http_port": port + 1,
        "metrics_port": port + 2,
        "parallel_workers": setting["WORKERS"],
        "debug": False,
        "use_structured_logging": False,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    model = {"name": wire.MODEL, "implementation": "serve.OnnxModel"}
    (folder / "model-settings.json").write_text(json.dumps(model))
    return [str(binaries / "mlserver"), "start", str(folder)]


def script(binaries: Path, _port: int, _setting: Setting, _scratch: Path) -> list[str]:
    """Run the peer's own script."""
    return [str(binaries / "python"), "serve.py"]


def bentoml(binaries: Path, port: int, _setting: Setting, _scratch: Path) -> list[str]:
    """Start BentoML's server for production."""
    where = ["--host", "127.0.0.1", "--port", str(port)]
    return [str(binaries / "bentoml"), "serve", "serve:Classifier", *where]


def torchserve(binaries: Path, port: int, setting: Setting, scratch: Path) -> list[str]:
    """Write TorchServe's settings, pack the model, and start its front end."""
    if not shutil.which("java"):
        raise NotMeasured("its front end is a Java program, and there is no java")
    store = scratch / "store"
    store.mkdir()
    handler = PEERS / "torchserve" / "serve.py"
    archive = ["--model-name", wire.MODEL, "--version", "1", "--handler", handler]
    packer = [binaries / "torch-model-archiver", *archive, "--export-path", store]
    subprocess.run(packer, check=True, capture_output=True)
    lines = [
        f"inference_address=http://127.0.0.1:{port}",
        f"management_address=http://127.0.0.1:{port + 1}",
        f"metrics_address=http://127.0.0.1:{port + 2}",
        f"default_workers_per_model={setting['WORKERS']}",
        "disable_token_authorization=true",
    ]
    (scratch / "config.properties").write_text("\n".join(lines) + "\n")
    flags = ["--start", "--foreground", "--disable-token-auth", "--ncs"]
    given = ["--model-store", str(store), "--models", f"{wire.MODEL}={wire.MODEL}.mar"]
    file = ["--ts-config", str(scratch / "config.properties")]
    return [str(binaries / "torchserve"), *flags, *given, *file]


CORES = len(os.sched_getaffinity(0))
# A process with a thread on each core, or a process of one thread for each core.
GRID = [{"WORKERS": 1, "THREADS": CORES}, {"WORKERS": CORES, "THREADS": 1}]
# Triton runs with its default, an instance group without a count, and beside it with
# the two settings between which everybody else has to choose.
DEFAULT: list[Setting] = [{"instances": 0}]
ONE = {"instances": 1, "parameters": {"intra_op_thread_count": CORES}}
EACH = {"instances": CORES, "parameters": {"intra_op_thread_count": 1}}
SERVERS = {
    found.name: found
    for found in (
        InProcess("in-process", [{}]),
        Embedded("triton-http", "http", DEFAULT),
        Embedded("triton-http-one", "http", [ONE]),
        Embedded("triton-http-each", "http", [EACH]),
        Embedded("triton-grpc", "grpc", DEFAULT),
        Embedded("triton-shm", "shm", DEFAULT),
        Peer(
            "fastapi",
            fastapi,
            [
                {"WORKERS": 1, "SLOTS": CORES, "THREADS": 1},
                {"WORKERS": 1, "SLOTS": CORES, "THREADS": CORES},
                {"WORKERS": CORES, "SLOTS": 1, "THREADS": 1},
                {"WORKERS": CORES, "SLOTS": 1, "THREADS": CORES},
            ],
        ),
        Peer("fastapi-one", fastapi, [{"WORKERS": 1, "SLOTS": 1, "THREADS": CORES}]),
        Peer(
            "mlserver",
            mlserver,
            [{"WORKERS": 0, "THREADS": CORES}, {"WORKERS": CORES, "THREADS": 1}],
            "grpc",
            "v2",
        ),
        Peer("bentoml", bentoml, GRID, variables={"BENTOML_DO_NOT_TRACK": "True"}),
        Peer("litserve", script, [{**setting, "SLOTS": 1} for setting in GRID]),
        Peer("ray", script, GRID, variables={"RAY_USAGE_STATS_ENABLED": "0"}),
        Peer("torchserve", torchserve, GRID, dialect="torchserve"),
    )
}
