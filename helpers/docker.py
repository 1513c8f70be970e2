"""NVIDIA's Triton container, run by the `docker` command.

A container's labels are its record: they say who started it, with which flags and
ports, so that another kernel finds it, and nothing has to be kept on disk.
"""

import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helpers import embedded, engine
from helpers.embedded import (
    FIRST_PORTS,
    HOST,
    PROTOCOLS,
    Flags,
    PortLostError,
    StartError,
)

LABEL = "triton-notebooks"
STARTED = {"http": "HTTPService", "grpc": "GRPCInferenceService", "metrics": "Metrics"}
STOP_TIMEOUT_S = 5


@dataclasses.dataclass
class Server:
    """A started container, as its labels tell it."""

    name: str
    image: str
    flags: Flags  # what the caller asked for
    mounts: dict[str, str]  # a path on this machine: that in the container
    ports: dict[str, int]
    published: bool  # port by port; else the container uses this machine's network
    gpus: str = "0"
    shared: bool = False  # may another kernel use it?
    owner: embedded.Process = (0, 0)  # who started it
    written: list[str] = dataclasses.field(default_factory=list)
    follower: threading.Thread | None = None

    def words(self) -> list[str]:
        """Return the command that runs it, word by word."""
        known = ("flags", "ports", "published", "gpus", "shared", "owner")
        record = {name: getattr(self, name) for name in known}
        record["flags"] = without_repositories(self.flags)
        inside = inside_ports(self.flags)
        network = [f"-p{HOST}:{self.ports[p]}:{inside[p]}" for p in PROTOCOLS]
        own: Flags = {}
        if not self.published:
            network = ["--net=host"]
            own |= {f"{protocol}-address": [HOST] for protocol in PROTOCOLS}
            own |= {f"{p}-port": [str(port)] for p, port in self.ports.items()}
        repositories = [to for to in self.mounts.values() if is_repository(to)]
        flags = {"model-repository": repositories, **own, **record["flags"]}
        return [
            *("docker", "run", "--rm", "-d", f"--name={self.name}"),
            f"--label={LABEL}={embedded.course()}",
            f"--label={LABEL}.record={json.dumps(record, separators=(',', ':'))}",
            *([f"--gpus={self.gpus}"] if self.gpus != "0" else []),
            "--shm-size=1g",
            *network,
            *(f"-v{path}:{to}:ro" for path, to in self.mounts.items()),
            *(self.image, "tritonserver", *embedded.as_arguments(flags)),
        ]

    def short_words(self) -> list[str]:
        """Return that command without what only serves to find it again."""
        return [w for w in self.words() if not w.startswith(("--name=", "--label="))]

    def current(self) -> bool:
        """Return whether a server started now would be of the same image."""
        return self.image == engine.image_name()

    def broken(self) -> bool:
        """Return False: what runs in a container can't be seen from here."""
        return False

    def alive(self) -> bool:
        """Return whether the container runs."""
        asked = ["inspect", "--format={{.State.Running}}", self.name]
        with contextlib.suppress(StartError):
            return engine.docker(*asked).strip() == "true"
        return False

    def exists(self) -> bool:
        """Return whether there is still anything of the container."""
        return engine.run("inspect", self.name).returncode == 0

    def log(self) -> str:
        """Return what it has written; after its end, as far as we followed it."""
        answer = engine.run("logs", self.name, stderr=subprocess.STDOUT)
        return "".join(self.written) if answer.returncode else answer.stdout

    def follow(self) -> None:
        """Keep what it writes, because Docker forgets that with the container."""

        def keep() -> None:
            with subprocess.Popen(
                [engine.program(), "logs", "--follow", self.name],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # Ctrl-C is for the kernel alone
            ) as process:
                self.written.extend(process.stdout)

        self.follower = threading.Thread(target=keep, daemon=True)
        self.follower.start()

    def print_log(self) -> None:
        """Write its log to stderr until it ends."""
        shown = 0
        while self.follower.is_alive() or shown < len(self.written):
            new = self.written[shown:]
            sys.stderr.write("".join(new))
            shown += len(new)
            time.sleep(0.1)

    def listening(self) -> bool:
        """Return whether it says, or where it must not talk, shows, that it listens."""
        allowed = [p for p in PROTOCOLS if self.flags.get(f"allow-{p}") != ["false"]]
        if self.flags.get("log-info") == ["false"] or "log-file" in self.flags:
            asked = [p for p in allowed if p != "grpc"]
            return all(answers(self.ports[protocol]) for protocol in asked)
        log = "".join(self.written)
        return all(re.search(rf"Started {STARTED[p]}\b", log) for p in allowed)

    def wait(self) -> None:
        """Return when it listens; raise StartError when it ends or takes long."""
        if not self.follower:
            self.follow()
        deadline = time.monotonic() + embedded.START_TIMEOUT_S
        while not self.listening():
            if not self.follower.is_alive():
                raise embedded.failure(self.last_words())
            if time.monotonic() > deadline:
                raise embedded.too_slow("".join(self.written))
            time.sleep(0.05)

    def last_words(self) -> str:
        """Return the log of a container that has ended.

        One that ends at once can be gone before its log is followed: the same command,
        run once more in the foreground, tells why.
        """
        log = "".join(self.written)
        if not re.search(r"^Error.*(No such container|can not get logs)", log, re.M):
            return log
        self.end()
        words = [word for word in self.words()[1:] if word != "-d"]
        with contextlib.suppress(subprocess.TimeoutExpired):
            return engine.run(*words, stderr=subprocess.STDOUT, timeout=20).stdout
        return ""

    def end(self) -> None:
        """End it, politely first; nothing of it stays."""
        engine.run("stop", "-t", str(STOP_TIMEOUT_S), self.name)
        engine.run("rm", "--force", self.name)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while self.exists() and time.monotonic() < deadline:
            time.sleep(0.05)  # --rm takes its time
        if self.follower:
            self.follower.join(2)


def records() -> list[Server]:
    """Return all containers of this user's kernels; none where Docker is not there."""
    asked = f"--filter=label={LABEL}={embedded.course()}"
    with contextlib.suppress(StartError):
        names = engine.docker("ps", "--all", "--quiet", "--no-trunc", asked).split()
        # One that ends meanwhile makes the command fail, and prints the others.
        found = engine.run("inspect", *names).stdout if names else "[]"
        return [from_docker(container) for container in json.loads(found)]
    return []


def from_docker(container: dict[str, Any]) -> Server:
    """Return a server as `docker inspect` tells it."""
    binds = [bind.rsplit(":", 2) for bind in container["HostConfig"]["Binds"]]
    known = json.loads(container["Config"]["Labels"][f"{LABEL}.record"])
    repositories = [path for path, to, _ in binds if is_repository(to)]
    known["flags"] = {"model-repository": repositories, **known["flags"]}
    return Server(
        name=container["Name"].removeprefix("/"),
        image=container["Config"]["Image"],
        mounts={path: to for path, to, _ in binds},
        **known,
    )


def is_repository(path: str) -> bool:
    """Return whether a path in the container is a model repository's."""
    return bool(re.fullmatch(r"/models\d*", path))


def without_repositories(flags: Flags) -> Flags:
    """Return all flags but those that name the model repositories."""
    return {name: flags[name] for name in flags if name != "model-repository"}


def inside_ports(flags: Flags) -> dict[str, int]:
    """Return the ports within the container: those asked for, else Triton's own."""
    return {
        protocol: int(flags.get(f"{protocol}-port", [FIRST_PORTS[0] + number])[-1])
        for number, protocol in enumerate(PROTOCOLS)
    }


def mounts(repositories: Sequence[str], flags: Flags) -> dict[str, str]:
    """Return what to mount: the repositories, and the files that flags name.

    A file that is there, such as a certificate, has the same path in the container.
    """
    numbers = ["", *range(2, len(repositories) + 1)]
    places = [f"/models{number}" for number in numbers]
    found = dict(zip(repositories, places, strict=True))
    for value in (value for values in flags.values() for value in values):
        path = value.rpartition("=")[2]
        if path.startswith("/") and Path(path).is_file():
            found[path] = path
    return found


def answers(port: int) -> bool:
    """Return whether something speaks HTTP at a port of this machine."""
    try:
        urllib.request.urlopen(f"http://{HOST}:{port}/", timeout=2).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


def free_ports(flags: Flags, lost: set[int]) -> dict[str, int]:
    """Return a port on this machine per protocol, as the embedded server does."""
    others = [*embedded.records(), *records()]
    claimed = {port for other in others for port in other.ports.values()}
    return embedded.choose_ports(flags, claimed | lost)


# --- Start --------------------------------------------------------------------------


def launch(
    repositories: Sequence[str],
    flags: Flags,
    shared: bool,
    lost: set[int] = frozenset(),
) -> Server:
    """Start a container and return it when its server listens on its ports.

    Where it loses a port to somebody else, it tries others; `lost` are such. Raises
    StartError with the reason, as far as Docker or the server's log tells it.
    """
    embedded.check_repositories(repositories)
    able = engine.about()
    gpus, name = engine.gpus(able), embedded.new_name()
    engine.ensure_image(able)
    server = None
    try:
        with embedded.choosing_ports():
            server = Server(
                name=name,
                image=engine.image_name(),
                flags={"model-repository": list(repositories), **flags},
                mounts=mounts(repositories, flags),
                ports=free_ports(flags, lost),
                published=engine.has_bridge(),
                gpus=gpus,
                shared=shared,
                owner=embedded.identity(os.getpid()),
            )
            engine.docker(*server.words()[1:])
        server.wait()
    except BaseException as error:
        if server:
            server.end()
        asked = any(f"{protocol}-port" in flags for protocol in PROTOCOLS)
        if isinstance(error, PortLostError) and len(lost) < 6 and not asked:
            lost = lost | set(server.ports.values())
            return launch(repositories, flags, shared, lost)
        raise
    return server


def show_help() -> int:
    """Print the help of the image's tritonserver and return its exit status."""
    engine.ensure_image(engine.about())
    words = ["run", "--rm", engine.image_name(), "tritonserver", "--help"]
    return engine.run(*words, stdout=None, stderr=None).returncode
