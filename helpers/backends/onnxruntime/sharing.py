"""How the instances of a model share the processor's cores.

Each instance is a process of its own and knows nothing of the others' work. With a
thread on every core in each, they get in one another's way; with few threads each,
one that works alone leaves cores idle. So each run looks who else is at work.
"""

from __future__ import annotations

import fcntl
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnxruntime as ort
from configuration import Configuration
from session import Providers, model_file, open_session, shared_cores

# Linux's `struct flock`: type, whence, start, length, and the owner.
FLOCK = struct.Struct("hhqqi4x")
# So many runs in which nobody else was seen make an instance take all cores.
QUIET_RUNS = 3


class Sessions:
    """The sessions of one instance: for a run alone, and for one beside others.

    Who runs holds a read lock on the model's file, which the kernel frees however the
    process ends; while anybody does, nobody could have a write lock. That needs no
    right to write, and leaves nothing behind.
    """

    def __init__(
        self, config: Configuration, version: Path, providers: Providers
    ) -> None:
        self.file, self.quiet_runs = None, QUIET_RUNS
        threads = shared_cores(config, providers) or 0
        self.beside = open_session(config, version, providers, threads)
        self.alone = self.beside
        if threads:
            self.file = model_file(config, version).open("rb")
            try:
                self.others_run()
            except OSError:  # a file system that knows no locks: each keeps its share
                self.file = None
            else:
                self.alone = open_session(config, version, providers)

    @contextmanager
    def fitting(self) -> Iterator[ort.InferenceSession]:
        """Hold the session that fits what the other instances are at.

        Under load another instance is now and then between two runs. So one look at
        the others is not enough: it takes several, at both ends of each run.
        """
        if not self.file:
            yield self.alone
            return
        self.ask(fcntl.F_OFD_SETLK, fcntl.F_RDLCK)
        try:
            if self.others_run():
                self.quiet_runs = 0
            yield self.alone if self.quiet_runs >= QUIET_RUNS else self.beside
        finally:
            self.quiet_runs = 0 if self.others_run() else self.quiet_runs + 1
            self.ask(fcntl.F_OFD_SETLK, fcntl.F_UNLCK)

    def others_run(self) -> bool:
        """Tell whether another instance runs at this moment."""
        return self.ask(fcntl.F_OFD_GETLK, fcntl.F_WRLCK) != fcntl.F_UNLCK

    def ask(self, command: int, lock: int) -> int:
        """Ask the kernel for a lock on the file's first byte, or who has one."""
        asked = FLOCK.pack(lock, 0, 0, 1, 0)
        return FLOCK.unpack(fcntl.fcntl(self.file, command, asked))[0]
