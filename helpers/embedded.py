"""NVIDIA's own `tritonserver`, started out of the `nvidia-pytriton` wheel.

Each server has a folder of its own under `state()`: its record (`server.json`), its
log and its backend directory. Another kernel finds it by the record; all processes
of a server are known by a variable in their environment.
"""

import contextlib
import dataclasses
import functools
import getpass
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import secrets
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from helpers import bootstrap

TOKEN = "TRITON_NOTEBOOKS_SERVER"
HOST = "127.0.0.1"
PROTOCOLS = ("http", "grpc", "metrics")
FIRST_PORTS = range(8000, 9000, 10)
START_TIMEOUT_S = 180
STUB_TIMEOUT_S = 10  # far longer than Triton waits for the end of a sound stub
EXIT_TIMEOUT_S = 3
METRICS_INTERVAL_MS = 200  # an end waits for the next of these; the default is 2000
SHM = Path("/dev/shm")
PROC = Path("/proc")
TEMPORARY = Path("/tmp")  # whatever TMPDIR says, Triton makes its own folders here:
UNPACKED = "python_env_"  # what its Python backend unpacks; it goes at an orderly end
SENT = "folder"  # files of a model that a client sent; they go with its unload

Process = tuple[int, int]  # process id, and its start in ticks since boot
Flags = dict[str, list[str]]


class StartError(RuntimeError):
    """A server can't be had: one sentence with the reason and the cure.

    IPython shows that sentence alone, without a traceback of ours.
    """

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


@dataclasses.dataclass
class Server:
    """A started server, as its record on disk tells it."""

    name: str
    flags: Flags  # what the caller asked for
    ports: dict[str, int]
    arguments: list[str]  # what tritonserver was given
    shared: bool  # may another kernel use it?
    owner: Process  # who started it
    process: Process | None = None
    unpacked: str | None = None  # its Python backend's folder in /tmp
    stubs: list[Process] = dataclasses.field(default_factory=list)  # once it listened
    ending: bool = False  # somebody has told it to end

    @property
    def folder(self) -> Path:
        """Where its record, its log and its backend directory are."""
        return state() / self.name

    def write(self) -> None:
        """Save the record, whole or not at all."""
        part = self.folder / "server.json.part"
        part.write_text(json.dumps(dataclasses.asdict(self)))
        part.replace(self.folder / "server.json")

    def note(self) -> None:
        """Save the record again, unless it is gone meanwhile or the disk is full."""
        with contextlib.suppress(OSError):
            self.write()

    def log(self) -> str:
        """Return what the server has written to its log so far."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "log").read_text(errors="replace")
        return ""

    def words(self) -> list[str]:
        """Return the command that runs, word by word."""
        return ["tritonserver", *self.arguments]

    def short_words(self) -> list[str]:
        """Return that command without the defaults that we add."""
        return ["tritonserver", *as_arguments(self.flags)]

    def current(self) -> bool:
        """Return whether a server started now would be of the same program."""
        return True

    def broken(self) -> bool:
        """Return whether it ends, or a stub of its models has died: it answers no more.

        Triton starts no stub anew, and goes on to say that the model is ready.
        """
        return self.ending or not all(map(lives, self.stubs))

    def wait(self) -> None:
        """Return when it listens; end it and raise StartError if it never will."""
        try:
            wait_until_listening(self)
        except StartError:
            self.end()
            raise

    def print_log(self) -> None:
        """Write its log to stderr until it ends."""
        with (self.folder / "log").open() as log:
            while self.alive():
                sys.stderr.write(log.read())
                time.sleep(0.1)
            sys.stderr.write(log.read())

    def end(self) -> None:
        """End it, and remove all that it leaves."""
        end(self)

    def alive(self) -> bool:
        """Return whether it runs, or is about to be started by a live process."""
        return lives(self.process or self.owner)

    def listening(self) -> bool:
        """Return whether this very process listens on all ports that it was given."""
        with contextlib.suppress(psutil.NoSuchProcess):
            connections = psutil.Process(self.process[0]).net_connections("tcp")
            mine = {c.laddr.port for c in connections if c.status == "LISTEN"}
            wanted = {
                port
                for protocol, port in self.ports.items()
                if f"--allow-{protocol}=false" not in self.arguments
            }
            return wanted <= mine
        return False


def state() -> Path:
    """Return the folder of this user's records; it is there while a server is."""
    user = os.getuid() if hasattr(os, "getuid") else getpass.getuser()
    return Path(tempfile.gettempdir()) / f"triton-notebooks-{user}"


PORTS_LOCK = Path("/tmp") / f"ports-of-{state().name}"


def course() -> str:
    """Return what all servers of this user have in their name, and nobody else's."""
    return hashlib.sha256(str(state()).encode()).hexdigest()[:4]


def new_name() -> str:
    """Return a name that no other server has, which its shared memory begins with."""
    return f"triton-{course()}-{secrets.token_hex(4)}"


def identity(pid: int, zombie: bool = False) -> Process:
    """Return what tells a process from a later one with the same number.

    The kernel counts a process's start in ticks since boot, which no change of the
    clock moves; other systems than Linux tell the time of the start instead. Raises
    OSError for a process that is not there, or a zombie unless that may be one.
    """
    if not PROC.exists():
        try:
            return pid, int(psutil.Process(pid).create_time() * 100)
        except psutil.NoSuchProcess:
            raise ProcessLookupError(pid) from None
    status = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    if status[0] == "Z" and not zombie:
        raise ProcessLookupError(pid)
    return pid, int(status[19])


def age(process: Process) -> float:
    """Return how long ago a process started, in seconds, to the hundredth."""
    ticks_per_second = os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - process[1] / ticks_per_second


def lives(process: Sequence[int]) -> bool:
    """Return whether the process of this identity still runs."""
    with contextlib.suppress(OSError):
        return identity(process[0]) == tuple(process)
    return False


def records() -> list[Server]:
    """Return the records of all servers, of live ones and of dead ones."""
    found = []
    for path in sorted(state().glob("*/server.json")):
        with contextlib.suppress(OSError, ValueError, TypeError):
            found.append(Server(**json.loads(path.read_text())))
    return found


# --- Before the start: can it work here, with this repository? ---------------------


@functools.cache
def site_packages() -> Path:
    """Return the folder of the wheel's `pytriton` and `nvidia_pytriton.libs`."""
    problem = bootstrap.platform_problem(
        platform.system(), platform.machine(), platform.libc_ver()
    )
    if problem:
        raise StartError(problem)
    try:
        wheel = importlib.metadata.distribution("nvidia-pytriton")
    except importlib.metadata.PackageNotFoundError:
        raise StartError(
            "NVIDIA's server is not installed in this Python: run `make setup`, or"
            " `pip install nvidia-pytriton==0.7.0`."
        ) from None
    return Path(wheel.locate_file("")).resolve()


def wheel() -> Path:
    """Return the server's part of the wheel: bin, backends, caches and stubs."""
    return site_packages() / "pytriton" / "tritonserver"


def environment() -> dict[str, str]:
    """Return the environment in which the wheel's programs find their parts.

    The stub that runs Python models takes its packages from the first `python3` on
    PATH, and libpython from LD_LIBRARY_PATH, where this Python's own has to be first.
    """
    paths = {
        "PATH": [Path(sys.executable).parent],
        "LD_LIBRARY_PATH": [
            sysconfig.get_config_var("LIBDIR"),
            site_packages() / "nvidia_pytriton.libs",
        ],
        "PYTHONPATH": [site_packages()],
    }
    before = {name: os.environ.get(name) for name in paths}
    joined = {
        name: ":".join(str(part) for part in (*parts, before[name]) if part)
        for name, parts in paths.items()
    }
    return {**os.environ, **joined}


def make_backends(folder: Path) -> Path:
    """Fill a backend directory with the wheel's Python backend and with ours.

    Triton refuses a library that is a link to another folder. The stub is a copy, too,
    since the wheel's own was found without its rights for others after some servers.
    """
    source = wheel() / "backends" / "python"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = wheel() / "python_backend_stubs" / version / "triton_python_backend_stub"
    target = folder / "backends" / "python"
    target.mkdir(parents=True)
    for file in (stub, source / "libtriton_python.so"):
        shutil.copyfile(file, target / file.name)
    (target / stub.name).chmod(0o755)
    utilities = "triton_python_backend_utils.py"
    (target / utilities).symlink_to(source / utilities)
    for module in (Path(__file__).parent / "backends").glob("*/*.py"):
        link = folder / "backends" / module.parent.name / module.name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(module)
    return folder / "backends"


def check_stub(backends: Path) -> None:
    """Refuse a Python without its shared library: a load would wait for ever."""
    stub = backends / "python" / "triton_python_backend_stub"
    answer = subprocess.run([stub], env=environment(), capture_output=True, text=True)
    if answer.returncode == 127:
        missing = answer.stderr.partition("libraries: ")[2].partition(":")[0]
        missing = missing or "a library"
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise StartError(
            f"Triton's Python backend can't start because {missing} is missing: install"
            f" it (for example `apt install libpython{version}`) and try again."
        )


def check_paths(repositories: Sequence[str]) -> None:
    """Refuse a path that Triton would hand to a shell in two pieces, or not find.

    Its Python backend opens files by names in ASCII, whatever the locale is.
    """
    for path in (sys.prefix, tempfile.gettempdir(), *repositories):
        if " " in str(path):
            raise StartError(
                f"Triton can't work with the space in '{path}': move it to a path"
                " without one."
            )
    for path in (tempfile.gettempdir(), *repositories):
        if not str(path).isascii():
            raise StartError(
                f"Triton's Python backend can't work with the letters of '{path}': move"
                " it to a path of plain ones, a to z."
            )


def check_repositories(repositories: Sequence[str]) -> None:
    """Refuse what Triton would choke on: no such folder, no model."""
    for repository in map(Path, repositories):
        if not repository.is_dir():
            raise StartError(
                f"There is no model repository at '{repository}': give the folder that"
                " holds one folder per model."
            )
        if not any(entry.is_dir() for entry in repository.iterdir()):
            raise StartError(
                f"The model repository '{repository}' is empty: put a model's folder"
                " into it, as in MODEL/config.pbtxt and MODEL/1/model.onnx."
            )


# --- Ports -------------------------------------------------------------------------


def is_free(port: int, address: str = HOST) -> bool:
    """Return whether a server could listen on this port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
        return True


def ports_of_servers() -> set[int]:
    """Return the ports of all servers here, also of those that don't listen yet.

    Another user's are told by their command lines, as are those of other folders.
    """
    ports = {port for server in records() for port in server.ports.values()}
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == "tritonserver":
            command = " ".join(process.info["cmdline"] or [])
            ports |= {int(port) for port in re.findall(r"-port=(\d+)", command)}
    return ports


@contextlib.contextmanager
def choosing_ports() -> Iterator[None]:
    """Let one start at a time look for ports, of either kind and whatever TMPDIR says.

    From the spawn on, a server's command line tells others which ports are its own.
    """
    with bootstrap.alone(PORTS_LOCK):
        try:
            yield
        finally:
            remove_if_empty(PORTS_LOCK)


def choose_ports(flags: Flags, claimed: set[int]) -> dict[str, int]:
    """Return a port per protocol: those asked for, else the first free three in a row.

    8000, 8001 and 8002 come first, then 8010, 8011 and 8012, and so on; `claimed` are
    the ports of servers that have not begun to listen yet.
    """
    asked = {
        protocol: int(flags[f"{protocol}-port"][-1])
        for protocol in PROTOCOLS
        if f"{protocol}-port" in flags
    }
    for protocol, port in asked.items():
        if port in claimed or not is_free(port):
            raise StartError(
                f"The port {port} that you ask for with --{protocol}-port is taken: ask"
                " for another, or for none and get a free one."
            )
    for first in FIRST_PORTS:
        ports = {p: first + i for i, p in enumerate(PROTOCOLS)} | asked
        chosen = [ports[p] for p in PROTOCOLS if p not in asked]
        if all(port not in claimed and is_free(port) for port in chosen):
            return ports
    raise StartError(
        f"No three ports in a row are free from {FIRST_PORTS[0]} on: end some servers"
        " with `python -m helpers.server stop`."
    )


# --- Start -------------------------------------------------------------------------


def full_arguments(
    repositories: Sequence[str], flags: Flags, ports: dict[str, int], folder: Path
) -> list[str]:
    """Return all arguments of tritonserver: the caller's, and defaults for the rest."""
    defaults = {f"{protocol}-address": [HOST] for protocol in PROTOCOLS}
    defaults |= {f"{protocol}-port": [str(port)] for protocol, port in ports.items()}
    defaults |= {
        "backend-directory": [str(folder / "backends")],
        "cache-directory": [str(wheel() / "caches")],
        "exit-timeout-secs": [str(EXIT_TIMEOUT_S)],
        "metrics-interval-ms": [str(METRICS_INTERVAL_MS)],
    }
    if not Path("/dev/nvidiactl").exists():
        defaults["allow-gpu-metrics"] = ["false"]
        defaults["pinned-memory-pool-byte-size"] = ["0"]
    merged = {**defaults, **flags}
    # Two servers that share /dev/shm must not share the names of their regions.
    merged["backend-config"] = [
        f"python,shm-region-prefix-name={folder.name}",
        *flags.get("backend-config", []),
    ]
    return as_arguments({"model-repository": repositories, **merged})


def as_arguments(flags: Flags) -> list[str]:
    """Return flags as a command line has them; one without a value stands alone."""
    return [
        f"--{name}={value}" if value else f"--{name}"
        for name, values in flags.items()
        for value in values
    ]


def launch(
    repositories: Sequence[str], flags: Flags, shared: bool, attempts: int = 3
) -> Server:
    """Start a server and return it when it, and no other, listens on its ports.

    Raises StartError with the reason, as far as the server's log tells it.
    """
    check_paths(repositories)
    check_repositories(repositories)
    server = None
    try:
        with choosing_ports():
            server = claim(repositories, flags, shared)
            check_stub(make_backends(server.folder))
            spawn(server)
        wait_until_listening(server)
    except PortLostError:
        end(server, by_itself=True)
        if attempts > 1 and not any(f"{p}-port" in flags for p in PROTOCOLS):
            return launch(repositories, flags, shared, attempts - 1)
        raise
    except StubLostError:
        end(server)
        if attempts > 1:
            return launch(repositories, flags, shared, attempts - 1)
        raise
    except BaseException as error:
        stopped = server is not None and not server.folder.exists()
        if server:
            by_itself = isinstance(error, StartError) and not server.alive()
            end(server, by_itself)
        if isinstance(error, OSError):
            raise (ended_from_outside() if stopped else not_writable(error)) from None
        raise
    return server


def not_writable(error: OSError) -> StartError:
    """Return what there is to say when a server's own files can't be written."""
    return StartError(
        f"Triton did not start, because its files can't be written to {state()}"
        f" ({error.strerror}): make 10 MB of room there, or name another folder with"
        " the variable TMPDIR."
    )


def claim(repositories: Sequence[str], flags: Flags, shared: bool) -> Server:
    """Write the record of a server that is about to start, and so claim its ports."""
    with bootstrap.alone(state()):
        sweep()
        try:
            ports = choose_ports(flags, ports_of_servers())
        except StartError:
            remove_if_empty(state())
            raise
        name = new_name()
        server = Server(
            name=name,
            flags={"model-repository": list(repositories), **flags},
            ports=ports,
            arguments=full_arguments(repositories, flags, ports, state() / name),
            shared=shared,
            owner=identity(os.getpid()),
        )
        server.folder.mkdir()
        server.write()
    return server


def show_help() -> int:
    """Print tritonserver's own help and return its exit status."""
    return subprocess.run(
        [wheel() / "bin" / "tritonserver", "--help"], env=environment()
    ).returncode


def spawn(server: Server) -> None:
    """Run tritonserver in a session of its own, so that it outlives this process."""
    with (server.folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [wheel() / "bin" / "tritonserver", *server.arguments],
            env={**environment(), TOKEN: server.name},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server.process = identity(process.pid, zombie=True)  # it may be over already
    server.write()
    # Without someone who waits for it, an ended server would stay as a zombie.
    threading.Thread(target=process.wait, daemon=True).start()


def wait_until_listening(server: Server) -> None:
    """Return when this server listens; raise StartError when it ends or takes long."""
    deadline = time.monotonic() + START_TIMEOUT_S
    listening, looks, lost = False, 0, {}
    while not listening:
        listening = server.listening()
        note_unpacked(server)
        if not server.alive():
            raise failure(server.log())
        if time.monotonic() > deadline:
            raise too_slow(server.log())
        looks += 1
        if looks % 50 == 0:
            now = time.monotonic()
            lost = {one: lost.get(one, now) for one in waits_for(server.process[0])}
            if any(now - since > STUB_TIMEOUT_S for since in lost.values()):
                raise StubLostError()
        time.sleep(0.02)
    if not server.stubs:
        server.stubs = stubs_of(server)
        server.note()
    if server.broken():
        raise StubLostError()


class StubLostError(StartError):
    """Triton waits for a stub that will never do what it waits for, or ended of it.

    A stub that dies before its first word stays as a zombie, and Triton waits for that
    word. One that is held up for two seconds counts as dead, and Triton waits for its
    end if it was in its model's `initialize`: both as long as Triton lives. If it was
    in an import, Triton ends with a lock_exception.
    """

    def __init__(self) -> None:
        super().__init__(
            "Triton did not start, because the process of a model was killed or held up"
            " for seconds as it loaded, which Triton does not get over: start it again"
            " when the machine has more to spare."
        )


def waits_for(pid: int) -> list[int]:
    """Return a server's zombies, and those of its threads that wait for a child's end.

    A sound server has each for a moment only.
    """
    found = []
    for thread in PROC.glob(f"{pid}/task/*"):
        with contextlib.suppress(OSError):  # it has just ended
            if (thread / "wchan").read_text() == "do_wait":
                found.append(int(thread.name))
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if child.status() == psutil.STATUS_ZOMBIE:
                    found.append(child.pid)
    return found


def too_slow(log: str) -> StartError:
    """Return what there is to say when the wait is over."""
    last = messages(log)[-1:] or ["nothing"]
    return StartError(
        f"Triton was not ready after {START_TIMEOUT_S} s, and was ended; its log's last"
        f" word is: {last[0].rstrip('.')}. See what that waits for, or give it less to"
        " load."
    )


# --- Reading the log ---------------------------------------------------------------


class PortLostError(StartError):
    """Somebody took a port between our look at it and the server's use of it."""


def messages(log: str, severity: str = "EWI") -> list[str]:
    """Return the log's messages of these severities, without their time and place."""
    pattern = rf'^[{severity}]\d{{4}} [^\]]*\] *"?(.*?)"?$'
    return [m.replace("\\n", "\n") for m in re.findall(pattern, log, re.MULTILINE)]


def failure(log: str) -> StartError:
    """Return why the server ended, in the words of its log, with the cure."""
    if "Unable to create secure server" in log:  # which Triton takes for a taken port
        reason = re.findall(r" ssl_transport_security\S+ +(.+)\.$", log, re.MULTILINE)
        return StartError(
            f"Triton did not start, because gRPC can't use what it was given for TLS:"
            f" {(reason or ['see the log'])[0]}. Check that --grpc-server-cert and"
            " --grpc-server-key name files that are there and belong together."
        )
    if taken := re.search(r"Socket '(\S+)' already in use", log):
        return PortLostError(
            f"Triton did not start, because somebody else took {taken[1]} meanwhile:"
            " ask for another port, or for none and get a free one."
        )
    if "boost::interprocess::lock_exception" in log:
        return StubLostError()
    if flag := re.search(r"unrecognized option '([^'=]+)", log):
        return StartError(
            f"Triton has no flag {flag[1]}: `python -m helpers.server --help` lists"
            " those that it has."
        )
    if flag := re.search(r'Bad option: "(.+)"\.\n(.+)', log):
        return StartError(f"Triton did not start: {flag[2]} ({flag[1]}).")
    if re.search("initialize shared memory.* No space left on device", log):
        return StartError(
            "Triton did not start, because there is no room in /dev/shm, of which each"
            " instance of a model takes 1 MB: end what fills it, or give a container"
            " more with --shm-size=1g."
        )
    syntax = re.findall(r"Error parsing text-format \S+: (.+)", log)
    model = [
        message.splitlines()[0]
        for message in messages(log, "E")
        if re.match("failed to (load|poll)|Poll failed", message)
    ]
    if model:
        reason = "; ".join([*model, *(f"line {text}" for text in syntax)]).rstrip(".")
        return StartError(
            f"Triton did not start, because a model did not load: {reason}. Mend it and"
            " start again, or pass exit_on_error=False to serve the others without it."
        )
    last = log.strip().rpartition("\n")[2]
    # At its work, with no word of an end: a table is none, nor that it has no GPU.
    if not last or re.match(r"I\d{4} |[+|]|E\d{4} .*CudaDriverHelper", last):
        return ended_from_outside()
    return StartError(f"Triton did not start; its log ends with: {last}")


def ended_from_outside() -> StartError:
    """Return what there is to say of a server that somebody else has ended."""
    return StartError(
        "Triton was ended while it started, by another kernel or for want of memory:"
        " start it again."
    )


# --- End ---------------------------------------------------------------------------


def end(server: Server, by_itself: bool = False) -> None:
    """End a server, politely first, and remove all that it leaves.

    The record of one that was killed stays until its folder in /tmp is surely gone; of
    one that ended `by_itself` nothing more is to be found out, so its record goes now.
    """
    sent = []
    if server.process and lives(server.process):
        note_unpacked(server)
        sent = folders_of(server.process[0], SENT) or []
        server.ending = True
        server.note()
        with contextlib.suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
            process = psutil.Process(server.process[0])
            process.terminate()
            process.wait(EXIT_TIMEOUT_S + 2)
            by_itself = True
    with bootstrap.alone(state()):
        clean_up_after(server, by_itself)
        for folder in sent:
            shutil.rmtree(folder, ignore_errors=True)
        sweep()
        remove_if_empty(state())


def sweep() -> None:
    """Clean up after servers that were killed; call it with the lock of `state()`."""
    for server in records():
        if not server.alive():
            clean_up_after(server)


def clean_up_after(server: Server, by_itself: bool = False) -> None:
    """Remove what a server has left, and its record when nothing more can be left."""
    kill_rest(server)
    if remove_unpacked(server) or by_itself:
        shutil.rmtree(server.folder, ignore_errors=True)


def stubs_of(server: Server) -> list[Process]:
    """Return the processes in which a server's models run, or ran until they died."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(server.process[0]).children():
            with contextlib.suppress(OSError):
                found.append(identity(child.pid, zombie=True))
    return found


def processes_of(server: Server) -> list[psutil.Process]:
    """Return what runs of a server: itself and the stubs of its models."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(TOKEN) == server.name:
                found.append(process)
    return found


def kill_rest(server: Server) -> None:
    """Kill what still runs of a server and free its shared memory."""
    left = processes_of(server)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=2)
    for region in SHM.glob(f"{server.name}*"):
        region.unlink(missing_ok=True)


def note_unpacked(server: Server) -> None:
    """Write into a live server's record which folder in /tmp is its own."""
    if not server.unpacked and (found := find_unpacked(server.process[0])):
        server.unpacked = found
        server.note()


def find_unpacked(pid: int) -> str | None:
    """Return the folder that the Python backend of a live tritonserver made in /tmp."""
    return next(iter(folders_of(pid, UNPACKED) or []), None)


def folders_of(pid: int, *prefixes: str) -> list[str] | None:
    """Return the folders in /tmp, of these prefixes, that a live tritonserver has made.

    Nothing but the server's own memory tells whose such a folder is, and a server that
    is killed leaves it behind. Returns None without the right to look.
    """
    process, found = PROC / str(pid), set()
    pattern = rf"/tmp/(?:{'|'.join(prefixes)})\w{{6}}".encode()
    try:
        with (process / "mem").open("rb", 0) as memory:
            for line in (process / "maps").read_text().splitlines():
                place, access, _, _, file = line.split()[:5]
                start, end = (int(number, 16) for number in place.split("-"))
                # In the allocator's regions, at most 64 MB; 8 MB is a thread's stack.
                small = end - start <= 2**26 and end - start != 2**23
                if access.startswith("rw") and file == "0" and small:
                    memory.seek(start)
                    found.update(re.findall(pattern, memory.read(end - start)))
    except OSError:
        return None
    return [path for path in map(bytes.decode, sorted(found)) if Path(path).is_dir()]


def remove_unpacked(server: Server) -> bool:
    """Remove what a killed server left in /tmp; return whether that is certain.

    Where its memory was not read, age decides: a folder that is younger than the server
    can belong to no other, unless it is a living one's. Where a living one's memory may
    not be read, nothing is removed, and a later sweep tries again.
    """
    if server.unpacked:
        shutil.rmtree(server.unpacked, ignore_errors=True)
    if not server.process:
        return True
    found = [
        folder
        for prefix in (UNPACKED, SENT)
        for folder in TEMPORARY.glob(f"{prefix}??????")
        if left_by(server, folder)
    ]
    if not found:
        return True
    claimed = {other.unpacked for other in records()}
    for process in psutil.process_iter(["name", "status"]):
        zombie = process.info["status"] == psutil.STATUS_ZOMBIE
        if process.info["name"] != "tritonserver" or zombie:
            continue
        theirs = folders_of(process.pid, UNPACKED, SENT)
        if theirs is None:
            return bool(server.unpacked)
        claimed.update(theirs)
    for folder in found:
        if str(folder) not in claimed:
            shutil.rmtree(folder, ignore_errors=True)
    return True


def left_by(server: Server, folder: Path) -> bool:
    """Return whether a folder in /tmp can be what a dead server made there."""
    with contextlib.suppress(OSError):
        status = folder.stat()
        younger = time.time() - status.st_mtime < age(server.process) - 0.01
        triton = folder.name.startswith(UNPACKED) or (folder / "config.pbtxt").exists()
        return younger and triton and status.st_uid == os.getuid()
    return False


def remove_if_empty(folder: Path) -> None:
    """Remove a folder unless something is in it."""
    with contextlib.suppress(OSError):
        folder.rmdir()
