"""A small load generator: closed loops of clients, and what they saw.

In a *closed loop* each client asks again as soon as it has its answer, so `concurrency`
is how many requests are on their way at any moment. Terms are perf_analyzer's. The
clients are threads of this process: their own work is part of what they measure.
"""

import array
import contextlib
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from tritonclient.utils import InferenceServerException

Ask = Callable[[], object]


class Load:
    """What a load's clients saw; it grows while they ask.

    `errors` counts Triton's refusals and failures by message. `seconds` is from the
    first request to the last answer or error.
    """

    def __init__(self, latencies: Iterable[float] = (), seconds: float = 0.0) -> None:
        self.errors: Counter[str] = Counter()
        self.seconds = seconds
        self._latencies = array.array("d", latencies)
        self._begin = 0.0
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """How many requests were answered, those with an error left out."""
        return len(self._latencies)

    @property
    def throughput(self) -> float:
        """Answers per second."""
        return self.count / self.seconds if self.seconds else 0.0

    @property
    def latencies(self) -> np.ndarray:
        """Seconds from request to answer, float64 [count], as they came in."""
        with self._lock:
            return np.array(self._latencies)

    def percentile(self, q: float) -> float:
        """Return the smallest latency, in ms, that q % of the answers did not exceed.

        It is one that was measured, never a mean of two; NaN if nothing was answered.
        """
        found = self.latencies
        if not found.size:
            return float("nan")
        return 1000 * float(np.percentile(found, q, method="inverted_cdf"))

    def __repr__(self) -> str:
        return (
            f"Load({self.count} answers, {self.errors.total()} errors,"
            f" {self.seconds:.2f} s, {self.throughput:.1f}/s)"
        )

    def _start(self) -> None:
        self._begin = time.perf_counter()

    def _ask(self, ask: Ask) -> None:
        """Make one request and write down how it went."""
        error = None
        begin = time.perf_counter()
        try:
            ask()
        except InferenceServerException as refusal:
            error = refusal.message()
        end = time.perf_counter()
        with self._lock:
            # A slower thread may bring an earlier end.
            self.seconds = max(self.seconds, end - self._begin)
            if error is None:
                self._latencies.append(end - begin)
            else:
                self.errors[error] += 1


class _Clients:
    """Threads that ask, phase by phase, until all is asked or somebody says stop.

    A phase is a load to fill and an iterator with a ticket for each of its requests.
    """

    def __init__(
        self, ask: Ask, concurrency: int, *phases: tuple[Load, Iterator[int]]
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency is {concurrency}: at least one has to ask.")
        self.ask, self.phases = ask, phases
        self.stopped = threading.Event()
        self.lost: list[BaseException] = []
        starts = iter([load._start for load, _ in phases])
        self.gate = threading.Barrier(concurrency, action=lambda: next(starts)())
        self.threads = [
            threading.Thread(target=self.work, daemon=True) for _ in range(concurrency)
        ]

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    def work(self) -> None:
        """Take part in each phase, which begins when all have ended the one before."""
        try:
            for load, tickets in self.phases:
                self.gate.wait()
                # next() is one step of the interpreter: no ticket is given out twice.
                while not self.stopped.is_set() and next(tickets, None) is not None:
                    load._ask(self.ask)
        except threading.BrokenBarrierError:
            pass
        except BaseException as error:
            self.lost.append(error)
            self.stop()

    def stop(self) -> None:
        self.stopped.set()
        self.gate.abort()

    def join(self) -> None:
        """Wait until all have their last answers."""
        for thread in self.threads:
            while thread in threading.enumerate():
                # With no timeout, a Ctrl-C at the wrong moment would not wake us; and
                # it may have come while the thread was being started.
                if thread.is_alive():
                    thread.join(0.2)
                else:
                    time.sleep(0.001)

    def raise_lost(self) -> None:
        """Raise what ended a client that was no answer of Triton's."""
        if self.lost:
            raise self.lost[0]


def closed_loop(ask: Ask, concurrency: int, requests: int, warm_up: int = 0) -> Load:
    """Let so many clients ask at once, until `requests` have been made in all.

    `ask` makes one request with tritonclient and is called from many threads: they may
    share a gRPC client, but each needs an HTTP client of its own. Its `warm_up` calls
    come first and leave no trace. An InferenceServerException is counted; anything
    else that `ask` raises ends the load and is raised here.
    """
    load = Load()
    warming = (Load(), iter(range(warm_up)))
    clients = _Clients(ask, concurrency, warming, (load, iter(range(requests))))
    try:
        clients.start()
        clients.join()
    except BaseException:
        clients.stop()
        clients.join()
        raise
    clients.raise_lost()
    return load


@contextlib.contextmanager
def background(ask: Ask, concurrency: int) -> Iterator[Load]:
    """Let so many clients ask until the block ends; the Load is complete after it.

    `ask` is as in `closed_loop`. What it raises that is no InferenceServerException
    stops the load, and is raised at the end of the block.
    """
    load = Load()
    clients = _Clients(ask, concurrency, (load, itertools.count()))
    try:
        clients.start()
        yield load
    finally:
        clients.stop()
        clients.join()
    clients.raise_lost()
