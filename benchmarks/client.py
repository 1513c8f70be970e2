"""The load generator: a process of its own that sends ready-made bytes over sockets.

`python -m benchmarks.client` reads a job as JSON from its standard input and prints
what it saw as JSON. Nothing is encoded while it measures: each request's bytes are made
beforehand. Answers are compared with onnxruntime's own, and the processor time that all
this takes is part of the report.
"""

import contextlib
import json
import selectors
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import wire

Buffer = bytes | memoryview | np.ndarray
Ask = Callable[[int], Buffer]  # the index of a tensor to the answer's bytes
PROTOCOLS: dict[str, Callable[..., Any]] = {}


class Wrong(Exception):
    """What came back is no right answer."""


class Http:
    """A keep-alive connection that posts ready-made requests."""

    def __init__(self, job: dict[str, Any], tensors: np.ndarray, _number: int) -> None:
        asked = wire.Question(*job.get("question", wire.CLASSIFY))
        self.dialect = job["dialect"]
        self.requests = [
            wire.request(self.dialect, job["port"], tensor, asked) for tensor in tensors
        ]
        self.connect(job["port"])

    def connect(self, port: int) -> None:
        """Open the connection; small packets leave at once."""
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __call__(self, index: int) -> Buffer:
        """Post tensor `index` and return the answer."""
        self.post(index)
        return self.answer()

    def post(self, index: int) -> None:
        """Post tensor `index`."""
        self.socket.sendall(self.requests[index])

    def answer(self) -> Buffer:
        """Return the answer to what was posted."""
        return wire.answer(self.dialect, *self.read())

    def read(self) -> tuple[dict[str, str], memoryview]:
        """Read one response: its headers, in lower case, and its body."""
        data = bytearray()
        while (end := data.find(b"\r\n\r\n")) < 0:
            self.receive(data)
        status, *lines = data[:end].decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines if ": " in line)
        if headers.get("transfer-encoding") == "chunked":
            while not data.endswith(b"0\r\n\r\n"):
                self.receive(data)
            body = wire.unchunk(bytes(data[end + 4 :]))
        else:
            while len(data) < end + 4 + int(headers["content-length"]):
                self.receive(data)
            body = bytes(data[end + 4 :])
        if status.split()[1] != "200":
            raise Wrong(f"{status}: {body[:200].decode(errors='replace')}")
        return headers, memoryview(body)

    def receive(self, data: bytearray) -> None:
        """Wait for more bytes."""
        more = self.socket.recv(65536)
        if not more:
            raise ConnectionError("the server closed the connection")
        data += more

    def close(self) -> None:
        """End the connection."""
        self.socket.close()


class SharedMemory(Http):
    """Tensors go through a region of /dev/shm, which each request is copied into."""

    def __init__(self, job: dict[str, Any], tensors: np.ndarray, number: int) -> None:
        self.tensors = tensors
        self.dialect = job["dialect"]
        self.memory = shared_memory.SharedMemory(create=True, size=tensors[0].nbytes)
        self.region = f"benchmark-{self.memory.name}-{number}"
        self.view = np.ndarray(tensors[0].shape, tensors.dtype, self.memory.buf)
        self.connect(job["port"])
        place = f"/v2/systemsharedmemory/region/{self.region}/register"
        size = tensors[0].nbytes
        known = {"key": f"/{self.memory.name}", "offset": 0, "byte_size": size}
        self.socket.sendall(wire.post(job["port"], place, json.dumps(known).encode()))
        self.read()
        asked = wire.Question(*job.get("question", wire.CLASSIFY))
        self.request = wire.shared(job["port"], self.region, tensors[0], asked)

    def post(self, index: int) -> None:
        """Copy tensor `index` into the region, and ask for it."""
        self.view[:] = self.tensors[index]
        self.socket.sendall(self.request)

    def close(self) -> None:
        """Let the server go of the region, then free it."""
        place = f"/v2/systemsharedmemory/region/{self.region}/unregister"
        with contextlib.suppress(OSError, Wrong):
            self.socket.sendall(wire.post(0, place, b"{}"))
            self.read()
        super().close()
        del self.view
        self.memory.close()
        self.memory.unlink()


class Grpc:
    """A gRPC channel that sends ready-made messages, without a copy of protobuf's."""

    def __init__(self, job: dict[str, Any], tensors: np.ndarray, _number: int) -> None:
        import grpc

        size = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
        ]
        # Without a pool of its own, all channels would share one connection.
        own = [("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.insecure_channel(f"127.0.0.1:{job['port']}", [*size, *own])
        self.call = self.channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer"
        )
        asked = wire.Question(*job.get("question", wire.CLASSIFY))
        self.requests = [wire.message(tensor, asked) for tensor in tensors]

    def __call__(self, index: int) -> Buffer:
        """Ask about tensor `index` and return the answer."""
        return wire.from_message(self.call(self.requests[index], timeout=60))

    def close(self) -> None:
        """End the connection."""
        self.channel.close()


class InProcess:
    """onnxruntime itself, in this process: what no server can outrun.

    `workers` runs at most take place at once, of `threads` threads each.
    """

    lock = threading.Lock()
    session: Any = None
    free: threading.Semaphore

    def __init__(self, job: dict[str, Any], tensors: np.ndarray, _number: int) -> None:
        import onnxruntime as ort

        with self.lock:
            if not InProcess.session:
                options = ort.SessionOptions()
                options.intra_op_num_threads = job["threads"]
                InProcess.session = ort.InferenceSession(
                    job["model"], options, ["CPUExecutionProvider"]
                )
                InProcess.free = threading.Semaphore(job["workers"])
        self.tensors = tensors

    def __call__(self, index: int) -> Buffer:
        """Run tensor `index`."""
        with self.free:
            return self.session.run(None, {"image": self.tensors[index]})[0].ravel()

    def close(self) -> None:
        """There is nothing to close."""


PROTOCOLS |= {
    "http": Http,
    "shm": SharedMemory,
    "grpc": Grpc,
    "in-process": InProcess,
}


class Report:
    """What all clients got between the end of the warm-up and the end of the run."""

    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.errors: Counter[str] = Counter()
        self.wrong = 0
        self.asked = 0  # in the warm-up, too, and so is
        self.waited = 0.0  # the sum of the seconds until the answers came

    def take(self, begin: float, end: float, times: list[float]) -> bool:
        """Note an answer and tell whether it counts."""
        self.asked += 1
        self.waited += end - begin
        if counts := times[0] <= end <= times[1]:
            self.latencies.append(end - begin)
        return counts


def is_right(answer: Buffer, expected: np.ndarray) -> bool:
    """Compare an output; threads and batches change the order of sums: last digits."""
    found = np.frombuffer(answer, expected.dtype)
    if found.shape != expected.shape:
        return False
    same = (found == expected).all()  # which is told much faster
    return bool(same or np.allclose(found, expected, rtol=1e-3, atol=1e-3))


@contextlib.contextmanager
def tensors_of(path: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Open n tensors and the n outputs that are right for them, flat."""
    with np.load(path) as file:
        yield file["x"], file["y"]


def client(
    ask: Ask, number: int, expected: np.ndarray, times: list[float], report: Report
) -> None:
    """Ask again and again, from `times[0]` to `times[1]` for the record."""
    index = number
    while (begin := time.perf_counter()) < times[1]:
        index = (index + 1) % len(expected)
        try:
            answer = ask(index)
        except Exception as error:
            report.errors[f"{type(error).__name__}: {error}"[:200]] += 1
            time.sleep(0.05)  # a server that refuses at once must not be hammered
            continue
        if report.take(begin, time.perf_counter(), times):
            report.wrong += not is_right(answer, expected[index])


def poll(
    asks: list[Http], expected: np.ndarray, times: list[float], report: Report
) -> None:
    """Do the same for all clients in one thread: for small and fast requests.

    There the clients' threads would take more of the processor than the server.
    """
    with selectors.DefaultSelector() as ready:
        begun = {}
        for number, ask in enumerate(asks):
            ready.register(ask.socket, selectors.EVENT_READ, ask)
            begun[ask] = time.perf_counter(), number % len(expected)
            ask.post(number % len(expected))
        while begun:
            for key, _ in ready.select():
                ask = key.data
                begin, index = begun.pop(ask)
                answer = ask.answer()
                end = time.perf_counter()
                if report.take(begin, end, times):
                    report.wrong += not is_right(answer, expected[index])
                if end < times[1]:
                    index = (index + 1) % len(expected)
                    begun[ask] = time.perf_counter(), index
                    ask.post(index)


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Do a job and tell what was seen.

    A job names `protocol`, `dialect`, `port`, `concurrency`, `warm_up` and `seconds`,
    and `tensors`, a file with tensors `x` and their right answers `y`; where it says
    `polled`, one thread acts for all clients.
    """
    with tensors_of(Path(job["tensors"])) as (tensors, expected):
        pass
    make = PROTOCOLS[job["protocol"]]
    asks = [make(job, tensors, number) for number in range(job["concurrency"])]
    report = Report()
    start = time.perf_counter() + job["warm_up"]
    times = [start, start + job["seconds"]]
    threads = [
        threading.Thread(target=client, args=(ask, n, expected, times, report))
        for n, ask in enumerate(asks)
    ]
    if job.get("polled"):
        arguments = (asks, expected, times, report)
        threads = [threading.Thread(target=poll, args=arguments)]
    for thread in threads:
        thread.start()
    time.sleep(max(0.0, start - time.perf_counter()))
    before = time.process_time()
    time.sleep(max(0.0, times[1] - time.perf_counter()))
    processor = time.process_time() - before
    for thread in threads:
        thread.join()
    for ask in asks:
        ask.close()
    found = np.array(report.latencies or [np.nan]) * 1000
    p50, p99 = np.percentile(found, [50, 99], method="inverted_cdf")
    return {
        "answers": len(report.latencies),
        "asked": report.asked,
        "throughput": len(report.latencies) / job["seconds"],
        "mean": 1000 * report.waited / max(report.asked, 1),
        "p50": float(p50),
        "p99": float(p99),
        "errors": dict(report.errors),
        "wrong": report.wrong,
        "client_cpu_s": processor,
        "seconds": job["seconds"],
    }


if __name__ == "__main__":
    print(json.dumps(run(json.load(sys.stdin))))
