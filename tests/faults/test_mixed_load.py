"""All the lessons' models at once, over all transports: every answer is checked."""

import collections
import concurrent.futures
import contextlib
import functools
import itertools
import json
import queue
import random
import time
import urllib.request

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from conftest import sized
from make_reference import REFERENCE
from tritonclient.utils import np_to_triton_dtype

from helpers import embedded, minilm, repository, server, silero
from helpers.images import PHOTOS, read_photo
from helpers.repository import DATA
from helpers.shared import lying

THREADS = 3
NUMBERS = itertools.count(1)  # of sequences
TOKENS = np.array([[101, 7592, 2088, 102]])  # hello world
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def triton():
    minilm.build()
    silero.build()
    folders = ["model", "echo", "file", "semantic", "stream"]
    repositories = [DATA / f"{folder}_repository" for folder in folders]
    everything = [*repositories, repository.build_pipeline()]
    with server.start(everything, disable_auto_complete_config=True) as running:
        yield running


def words(*texts: str) -> np.ndarray:
    return np.array([[text] for text in texts], object)


# --- What is asked, and what the answer has to be ----------------------------------


def add(draw: random.Random) -> tuple[str, Arrays, Arrays]:
    a, b = np.random.default_rng(draw.getrandbits(32)).integers(0, 99, (2, 1, 16), "i4")
    return "simple", {"INPUT0": a, "INPUT1": b}, {"OUTPUT0": a + b, "OUTPUT1": a - b}


def classify(draw: random.Random) -> tuple[str, Arrays, Arrays]:
    name = draw.choice(["coffee.png", "rocket.jpg", "chelsea.png"])
    logits = np.load(REFERENCE)[name.split(".")[0]][None]
    if draw.random() < 0.5:
        photo = read_photo(PHOTOS / name)[None]
        return "efficientnet_lite0", {"image": photo}, {"logits": logits}
    file = np.array([[(PHOTOS / name).read_bytes()]], object)
    return "classify_file", {"file": file}, {"logits": logits}


def repeat(draw: random.Random) -> tuple[str, Arrays, Arrays]:
    said = words(f"Grüße {draw.random()}")
    return "echo", {"WORDS": said}, {"WORDS": said}


@functools.cache
def recording() -> tuple[np.ndarray, list[float]]:
    """Return chunks, and what the network says to each, its state carried here."""
    chunks = silero.read_chunks(DATA / "recordings" / "dashwood.wav")[:8]
    network = onnxruntime.InferenceSession(silero.WEIGHTS)
    state = {
        "memory": np.zeros((1, 2, 128), np.float32),
        "before": np.zeros((1, 64), np.float32),
    }
    found = []
    for chunk in chunks:
        feeds = {"audio": chunk[None], **state}
        speech, state["memory"], state["before"] = network.run(
            ["speech", "memory_next", "before_next"], feeds
        )
        found.append(speech.item())
    return chunks, found


@functools.cache
def vector() -> np.ndarray:
    session = onnxruntime.InferenceSession(minilm.WEIGHTS)
    return session.run(None, {"tokens": TOKENS})[0]


def embed(draw: random.Random) -> tuple[str, Arrays, Arrays]:
    model = draw.choice(["embed", "minilm", "tokenise"])
    if model == "minilm":
        return model, {"tokens": TOKENS}, {"vector": vector()}
    wanted = {"tokens": TOKENS} if model == "tokenise" else {"vector": vector()}
    return model, {"text": words("hello world")}, wanted


def read(draw: random.Random) -> tuple[str, Arrays, Arrays]:
    truth = json.loads((DATA / "signs" / "texts.json").read_text(encoding="utf-8"))
    photo = np.frombuffer((DATA / "signs" / "exit.jpg").read_bytes(), np.uint8)
    model = draw.choice(["read_text", "read_text_bls"])
    return model, {"photo": photo}, {"texts": np.array(truth["exit"], object)}


def check(found: Arrays, wanted: Arrays) -> None:
    """Compare an answer with what it has to be: to the byte, but for rounding."""
    for name, right in wanted.items():
        if right.dtype == object:
            texts = [text.decode() for text in found[name].ravel()]
            assert texts == right.ravel().tolist(), name
        elif right.dtype == np.float32:
            np.testing.assert_allclose(found[name], right, rtol=1e-3, atol=2e-3)
        else:
            assert (found[name] == right).all(), name


# --- How it is asked ---------------------------------------------------------------


def fill(module: object, arrays: Arrays, **options: bool) -> list:
    inputs = []
    for name, array in arrays.items():
        kind = np_to_triton_dtype(array.dtype)
        inputs.append(module.InferInput(name, array.shape, kind))
        inputs[-1].set_data_from_numpy(array, **options)
    return inputs


class Client:
    """One thread's connections, and a way to ask for each transport."""

    def __init__(self, triton: server.Triton) -> None:
        self.address = triton.http
        self.http = httpclient.InferenceServerClient(triton.http)
        self.grpc = grpcclient.InferenceServerClient(triton.grpc)
        self.streamed: queue.Queue = queue.Queue()
        self.grpc.start_stream(self.receive)

    def receive(self, result: object, error: Exception | None) -> None:
        self.streamed.put((result, error))

    def close(self) -> None:
        self.grpc.stop_stream()
        self.grpc.close()
        self.http.close()

    def as_json(self, model: str, arrays: Arrays, outputs: list[str]) -> Arrays:
        if model == "classify_file":
            return self.as_binary(model, arrays, outputs)  # JSON has no bytes
        inputs = fill(httpclient, arrays, binary_data=False)
        wanted = [
            httpclient.InferRequestedOutput(n, binary_data=False) for n in outputs
        ]
        found = self.http.infer(model, inputs, outputs=wanted).get_response()
        return {o["name"]: from_json(o) for o in found["outputs"]}

    def as_binary(self, model: str, arrays: Arrays, outputs: list[str]) -> Arrays:
        answer = self.http.infer(model, fill(httpclient, arrays))
        return {name: answer.as_numpy(name) for name in outputs}

    def as_grpc(self, model: str, arrays: Arrays, outputs: list[str]) -> Arrays:
        answer = self.grpc.infer(model, fill(grpcclient, arrays))
        return {name: answer.as_numpy(name) for name in outputs}

    def as_stream(self, model: str, arrays: Arrays, outputs: list[str]) -> Arrays:
        self.grpc.async_stream_infer(model, fill(grpcclient, arrays))
        answer = self.next_answer()
        return {name: answer.as_numpy(name) for name in outputs}

    def as_shared(self, model: str, arrays: Arrays, outputs: list[str]) -> Arrays:
        if any(array.dtype == object for array in arrays.values()):
            return self.as_grpc(model, arrays, outputs)  # texts have no fixed size
        with contextlib.ExitStack() as stack:
            inputs = [
                stack.enter_context(lying(self.grpc, name, array))
                for name, array in arrays.items()
            ]
            answer = self.grpc.infer(model, inputs)
            return {name: answer.as_numpy(name) for name in outputs}

    def next_answer(self) -> grpcclient.InferResult:
        answer, error = self.streamed.get(timeout=60)
        if error:
            raise error
        return answer

    # What has many answers, or many requests, goes over the stream alone.

    def babble(self, draw: random.Random) -> str:
        # Over HTTP: on a gRPC stream shared with other models, Triton 2.51 crashed
        # within minutes; docs/troubleshooting.md.
        count = draw.randint(1, 20)
        url = f"http://{self.address}/v2/models/babbler/generate_stream"
        body = json.dumps({"word": "The", "count": count}).encode()
        with urllib.request.urlopen(url, body, timeout=60) as answer:
            events = [line for line in answer if line.strip()]
        assert len(events) == count
        assert json.loads(events[0].removeprefix(b"data: "))["next"] == "late"
        return "babbler, events"

    def count_up(self, draw: random.Random) -> str:
        values = [draw.randint(0, 1000) for _ in range(draw.randint(2, 9))]
        inputs = [{"value": np.array([[value]], np.int32)} for value in values]
        found = self.sequence("total", inputs, "total")
        assert found == list(itertools.accumulate(values))
        return "total, stream"

    def listen(self, draw: random.Random) -> str:
        chunks, right = recording()
        found = self.sequence(
            "silero_vad", [{"audio": c[None]} for c in chunks], "speech"
        )
        np.testing.assert_allclose(found, right, atol=1e-3)
        return "silero_vad, stream"

    def sequence(self, model: str, inputs: list[Arrays], output: str) -> list:
        number, found = next(NUMBERS), []
        for place, arrays in enumerate(inputs):
            self.grpc.async_stream_infer(
                model,
                fill(grpcclient, arrays),
                sequence_id=number,
                sequence_start=place == 0,
                sequence_end=place == len(inputs) - 1,
            )
            found.append(self.next_answer().as_numpy(output).item())
        return found


def from_json(output: dict) -> np.ndarray:
    values = output["data"]
    if output["datatype"] == "BYTES":
        values = [value.encode() for value in values]
    kind = {"BYTES": object, "FP32": np.float32, "INT32": np.int32, "INT64": np.int64}
    return np.array(values, kind[output["datatype"]]).reshape(output["shape"])


TRANSPORTS = ["as_json", "as_binary", "as_grpc", "as_stream", "as_shared"]
QUESTIONS = [add, classify, repeat, embed, read]
SEQUENCES = ["babble", "count_up", "listen"]


def ask(client: Client, draw: random.Random) -> str:
    """Ask one question one way, and check the answer; return which it was."""
    what = draw.choice([*QUESTIONS, *SEQUENCES])
    if isinstance(what, str):
        return getattr(client, what)(draw)
    how = draw.choice(TRANSPORTS)
    model, arrays, wanted = what(draw)
    check(getattr(client, how)(model, arrays, list(wanted)), wanted)
    return f"{model}, {how[3:]}"


# --- The load ----------------------------------------------------------------------


def work(triton: server.Triton, seed: str, end: float, done: list[str]) -> None:
    """Ask until it is time to end, and note what was asked."""
    draw, client = random.Random(seed), Client(triton)
    with contextlib.closing(client):
        while time.monotonic() < end:
            done.append(ask(client, draw))


def memory(triton: server.Triton) -> int:
    """Return the bytes that a server's processes have for themselves."""
    processes = embedded.processes_of(triton._process)
    return sum(process.memory_full_info().uss for process in processes)


@sized(short=3, long=300)
def test_under_mixed_load_every_answer_is_right_and_memory_flat(triton, count, draw):
    end, done, samples = time.monotonic() + count, [], []
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        threads = [
            pool.submit(work, triton, f"{draw.random()}", end, done)
            for _ in range(THREADS)
        ]
        while time.monotonic() < end and not any(thread.done() for thread in threads):
            samples.append(memory(triton))
            time.sleep(count / 60)
    assert triton._process.alive(), triton.log(40)
    for thread in threads:
        thread.result()
    print(len(done), dict(sorted(collections.Counter(done).items())))
    print([sample >> 20 for sample in samples], "MiB")
    if count >= 60:  # the shorter is over before all models have had their first
        warm, late = samples[15:30], samples[-15:]
        assert max(late) < 1.05 * max(warm)
        assert len(set(done)) == 48  # 9 models over 5 transports, 3 over one each
