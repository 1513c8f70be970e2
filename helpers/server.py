"""Where a live Triton comes from: `connect` to one, or `start` one of your own.

The environment variable TRITON decides:

- `embedded`, the default: starts NVIDIA's own server out of its wheel;
- `docker`: starts NVIDIA's container; see helpers/docker.py;
- `http://HOST:PORT` or `HOST:HTTP,GRPC,METRICS`: uses a server that runs elsewhere.

From a shell, `python -m helpers.server --model-repository=PATH [any other flag]` runs
a server in the foreground, `… stop` ends all that run, `… list` tells which run.
"""

import itertools
import json
import os
import re
import shlex
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Protocol

from helpers import bootstrap, docker, embedded, repository
from helpers.embedded import StartError

__all__ = ["StartError", "Triton", "connect", "start", "stop_all"]

# Flags that take no value; False leaves them out.
SWITCHES = {"disable-auto-complete-config"}
# The default repository's models have complete configs: nothing is left to find out,
# which saves a second of the start.
DEFAULT_FLAGS: embedded.Flags = {"disable-auto-complete-config": [""]}

Flag = str | int | float | bool | Path | Sequence[str]


# What can start a server here, by the value of TRITON.
KINDS = {"embedded": embedded, "docker": docker}


class Process(Protocol):
    """A server that was started here, whatever it runs in."""

    flags: embedded.Flags  # what the caller asked for
    ports: dict[str, int]
    shared: bool  # may another kernel use it?
    owner: embedded.Process  # who started it

    def words(self) -> list[str]: ...
    def short_words(self) -> list[str]: ...
    def current(self) -> bool: ...
    def alive(self) -> bool: ...
    def broken(self) -> bool: ...
    def wait(self) -> None: ...
    def log(self) -> str: ...
    def print_log(self) -> None: ...
    def end(self) -> None: ...


class Triton:
    """A live server: its three addresses, its command, its log, its end.

    `http`, `grpc` and `metrics` are addresses such as "127.0.0.1:8000", as tritonclient
    wants them. As a context manager it stops the server at the end of the block.
    """

    def __init__(
        self, http: str, grpc: str, metrics: str, process: Process | None = None
    ) -> None:
        self.http, self.grpc, self.metrics = http, grpc, metrics
        self._process = process
        self._last_log = ""

    @property
    def command(self) -> str:
        """The whole command that runs, one flag a line, as a person would type it."""
        if not self._process:
            return f"TRITON={self.http}  # started by somebody else"
        return typed(self._process.words(), " \\\n  ")

    @property
    def addresses(self) -> str:
        """The three addresses in a line."""
        return f"HTTP {self.http}, gRPC {self.grpc}, metrics {self.metrics}"

    def log(self, lines: int = 20) -> str:
        """Return the log's last lines; after the stop, those that were its last."""
        if not self._process:
            return "The log of this server is on the machine that runs it."
        return "\n".join((self._process.log() or self._last_log).splitlines()[-lines:])

    def stop(self) -> None:
        """End the server, unless somebody else started it; ending it twice is fine."""
        if self._process:
            self._last_log = self._process.log() or self._last_log
            self._process.end()

    def __enter__(self) -> "Triton":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"Triton(http={self.http}, grpc={self.grpc}, metrics={self.metrics})"


def connect() -> Triton:
    """Return the server that runs already, else start the default one.

    The default one serves `data/model_repository`, outlives this kernel, and is shared
    by all kernels. Raises StartError if none can be had.
    """
    if source() not in KINDS:
        triton = attach(source())
        for sentence in lacking(triton):
            print(sentence)
        return triton
    kind = KINDS[source()]
    try:
        repositories = [str(repository.build())]
    except repository.RepositoryError as error:
        raise StartError(str(error)) from None
    with bootstrap.alone(repositories[0]):
        for server in kind.records():
            same = server.flags["model-repository"] == repositories
            loaded = "model-control-mode" not in server.flags
            usable = server.shared and server.current() and server.alive()
            if same and loaded and usable:
                if server.broken():
                    server.end()
                    continue
                server.wait()
                return announce(server)
        return announce(kind.launch(repositories, DEFAULT_FLAGS, shared=True))


def start(repository: str | Path | Sequence[str | Path], **flags: Flag) -> Triton:
    """Start a server of your own on a model repository, or on several.

    Any flag of tritonserver can be given by its own name with `_` for `-`: a bool is
    passed as true or false, a list as one flag for each of its items. Doing the same
    start again in this kernel, or after its restart, ends the earlier server first.
    Raises StartError if it can't start.

    Where TRITON names a server elsewhere nothing is started: that server is returned,
    or StartError raised if it lacks what is asked for or that can't be seen from here.
    """
    many = isinstance(repository, Sequence) and not isinstance(repository, str)
    repositories = [
        str(Path(r).resolve()) for r in (repository if many else [repository])
    ]
    given = {
        name: texts(value) if name not in SWITCHES else [""] * bool(value)
        for name, value in ((n.replace("_", "-"), v) for n, v in flags.items())
    }
    if source() not in KINDS:
        return borrow(repositories, given)
    kind = KINDS[source()]
    end_earlier(kind, {"model-repository": repositories, **given})
    return announce(kind.launch(repositories, given, shared=False))


def stop_all() -> int:
    """End all servers that this user's kernels and shells started; return how many."""
    started = all_records()
    running = [server for server in started if server.alive()]
    for server in started:
        server.end()
    return len(running)


def all_records() -> list[Process]:
    """Return the records of the servers of both kinds, of live ones and dead ones."""
    return [server for kind in KINDS.values() for server in kind.records()]


def source() -> str:
    """Return what TRITON says: a key of KINDS, or a server's address elsewhere."""
    return os.environ.get("TRITON", "").strip() or "embedded"


def starter() -> ModuleType:
    """Return what starts servers here; raise StartError where TRITON says not to."""
    if source() not in KINDS:
        raise needs_its_own("")
    return KINDS[source()]


def needs_its_own(reason: str) -> StartError:
    """Return the refusal of a step that can't use the server that TRITON names."""
    return StartError(
        f"TRITON={source()} names a server that somebody else runs, and this step needs"
        f" one of its own{reason}: unset TRITON, or say TRITON=docker, to take it."
    )


def borrow(repositories: Sequence[str], flags: embedded.Flags) -> Triton:
    """Return the server that TRITON names in place of one with these flags."""
    if repositories != [str(repository.REPOSITORY)]:
        raise needs_its_own(", on another model repository")
    if unseen := sorted(set(flags) - BORROWED):
        raise needs_its_own(f", with --{unseen[0]}")
    triton = attach(source())
    for model in flags.get("load-model", []):
        if not answers(f"http://{triton.http}/v2/models/{model}/ready"):
            raise needs_its_own(f", which serves {model}")
    if "model-control-mode" in flags and not has_explicit_control(triton):
        raise needs_its_own(", with --model-control-mode=explicit")
    for setting in flags.get("metrics-config", []):
        if not has_summaries(triton, re.findall(r"([\d.]+):", setting)):
            raise needs_its_own(f", with --metrics-config={setting}")
    return triton


# What `borrow` can see of a server from outside; the last changes no answer.
BORROWED = {"load-model", "model-control-mode", "metrics-config", *SWITCHES}


def has_explicit_control(triton: Triton) -> bool:
    """Return whether models can be loaded by request, by asking for one that is not."""
    nobody = f"http://{triton.http}/v2/repository/models/no_such_model/load"
    try:
        urllib.request.urlopen(nobody, data=b"{}", timeout=5).close()
    except urllib.error.HTTPError as error:
        return b"not allowed" not in error.read()
    return True


def has_summaries(triton: Triton, quantiles: Sequence[str]) -> bool:
    """Return whether the metrics have summaries, and these quantiles in them."""
    with urllib.request.urlopen(f"http://{triton.metrics}/metrics", timeout=5) as page:
        text = page.read().decode()
    wanted = ["_summary_us", *(f'quantile="{quantile}"' for quantile in quantiles)]
    return all(part in text for part in wanted)


def attach(address: str) -> Triton:
    """Return a server that runs elsewhere, given as `http://HOST:PORT` or its ports.

    With one port, gRPC and metrics are taken to be on the next two, as by default.
    """
    match = re.fullmatch(r"(?:http://)?([^/:]+|\[.+\]):([\d,]+)/?", address)
    ports = match[2].split(",") if match else []
    if len(ports) == 1 and ports[0]:
        ports = [str(int(ports[0]) + i) for i in range(3)]
    if len(ports) != 3 or not all(ports):
        raise StartError(
            f"TRITON={address} is not understood: use embedded, docker,"
            " http://HOST:PORT or HOST:HTTP,GRPC,METRICS."
        )
    triton = Triton(*(f"{match[1]}:{port}" for port in ports))
    try:
        with urllib.request.urlopen(f"http://{triton.http}/v2", timeout=5) as answer:
            found = json.load(answer)
            program = f"{found['name']} {found['version']}"
    except (urllib.error.HTTPError, ValueError, KeyError, TypeError):
        raise StartError(
            f"What answers at http://{triton.http} is not Triton's HTTP endpoint: check"
            " the port in TRITON."
        ) from None
    except OSError as error:
        raise StartError(
            f"No Triton answers at http://{triton.http} ({error}): check that it runs"
            " and that TRITON names its HTTP port."
        ) from None
    print(f"{triton.command}: {program}")
    print(triton.addresses)
    return triton


def lacking(triton: Triton) -> Iterator[str]:
    """Yield a sentence for each thing that the lessons use and this server has not."""
    for model in repository.MODELS:
        if not answers(f"http://{triton.http}/v2/models/{model}/ready"):
            yield (
                f"It does not serve the model {model}: copy data/model_repository/"
                f"{model} into its repository, and load it or start it again."
            )
    if not answers(f"http://{triton.metrics}/metrics"):
        yield (
            f"No metrics at {triton.metrics}: if they are at another port, name all"
            " three, as in TRITON=HOST:HTTP,GRPC,METRICS."
        )
    host, _, port = triton.grpc.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        yield (
            f"No gRPC at {triton.grpc}: if it is at another port, name all three, as in"
            " TRITON=HOST:HTTP,GRPC,METRICS."
        )


def answers(url: str) -> bool:
    """Return whether a URL can be read."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (OSError, ValueError):
        return False


def texts(value: Flag) -> list[str]:
    """Return a flag's value as tritonserver reads it, a text for each time it is."""
    if isinstance(value, bool):
        return [str(value).lower()]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [text for item in value for text in texts(item)]
    return [str(value)]


def end_earlier(kind: ModuleType, flags: embedded.Flags) -> None:
    """End the server of an earlier run of the same cell, and nobody else's."""
    me = embedded.identity(os.getpid())
    for server in kind.records():
        mine = tuple(server.owner) == me or not embedded.lives(server.owner)
        if mine and not server.shared and server.flags == flags:
            server.end()


def typed(words: Sequence[str], flag_separator: str = " ") -> str:
    """Return a command as one types it in this folder; paths are as seen from here."""
    text = words[0]
    for before, word in itertools.pairwise(words):
        # A flag begins a line of its own, and so does what follows the last of them.
        begins = word.startswith("-") or before.startswith("-")
        text += (flag_separator if begins else " ") + quoted(word)
    return text


def quoted(word: str) -> str:
    """Quote a word of a command for a shell, and shorten the paths in it."""
    here, course = f"{Path.cwd()}/", f"{bootstrap.ROOT}/"
    upwards = os.path.relpath(course) + "/"
    if word.startswith("--label="):
        return shlex.quote(word)
    if not word.startswith(("-v", "--volume")):
        return shlex.quote(word.replace(here, "").replace(course, upwards))
    # Docker wants whole paths, and the shell knows this folder's.
    escaped = re.sub(r'(["$`\\])', r"\\\1", word)
    short = escaped.replace(here, "$PWD/").replace(course, f"$PWD/{upwards}")
    return f'"{short}"' if "$PWD" in short else shlex.quote(word)


def announce(server: Process) -> Triton:
    """Print the command that this stands for and the addresses; return the server."""
    triton = Triton(
        *(f"{embedded.HOST}:{server.ports[p]}" for p in embedded.PROTOCOLS), server
    )
    print(f"$ {typed(server.short_words())}")
    asked = any(f"{p}-port" in server.flags for p in embedded.PROTOCOLS)
    usual = asked or server.ports["http"] == embedded.FIRST_PORTS[0]
    others = "" if usual else " (8000 to 8002 are not all free)"
    print(f"{triton.addresses}{others}")
    return triton


# --- From a shell ------------------------------------------------------------------


def parse(arguments: Sequence[str]) -> embedded.Flags:
    """Return tritonserver's flags, given as --flag=value, --flag value or --flag."""
    flags: embedded.Flags = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            raise StartError(f"'{word}' is not a flag: flags look like --name=value.")
        if (
            not equals
            and name not in SWITCHES
            and rest
            and not rest[0].startswith("--")
        ):
            value = rest.pop(0)
        flags.setdefault(name, []).append(value)
    return flags


def run(flags: embedded.Flags) -> int:
    """Run a server in the foreground, its log on stderr, until it or we are ended."""
    kind = starter()
    repositories = [str(Path(path).resolve()) for path in flags.pop("model-repository")]
    server = None
    try:
        server = kind.launch(repositories, flags, shared=True)
        announce(server)
        sys.stdout.flush()
        server.print_log()
        server.end()
        return 1
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if server:
            server.end()
        return 0


def interrupt(*_: object) -> None:
    """Take an order to end, or a closed terminal, for Ctrl-C."""
    raise KeyboardInterrupt


def main(arguments: Sequence[str]) -> int:
    """Run a server, end all servers, list them, or show tritonserver's own help."""
    endings = [signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)]  # Windows
    for ending in endings:
        signal.signal(ending, interrupt)
    try:
        if arguments == ["stop"]:
            print(f"{stop_all()} ended")
        elif arguments == ["list"]:
            for server in all_records():
                if server.alive():
                    announce(server)
        elif any(a.startswith("--model-repository") for a in arguments):
            return run(parse(arguments))
        elif "--help" in arguments:
            return starter().show_help()
        else:
            print(
                "Say `python -m helpers.server --model-repository=PATH [--flag=value]`,"
                " `… --help`, `… list` or `… stop`.",
                file=sys.stderr,
            )
            return 2
    except StartError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
