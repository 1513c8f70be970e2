"""`python -m benchmarks.growth [CURVE ...]`: how cost grows with the work.

Each curve starts servers of its own, and adds its points to
.cache/benchmarks/growth.jsonl; `python -m benchmarks report` makes tables of them. The
last two, `batching` and `lone`, are no curves: they show why an aim is out of reach.
"""

import contextlib
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks import wire
from benchmarks.records import keep, kept, work
from benchmarks.servers import CACHE, Running, ask, of_token
from helpers import repository, server

POINTS = CACHE / "growth.jsonl"
TOKEN = server.embedded.TOKEN
SECONDS = 2.0
TURNS = 15

IDENTITY = """
name: "identity"
platform: "onnxruntime_onnx"
max_batch_size: 0
input [ { name: "IN" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "OUT" data_type: TYPE_FP32 dims: [ -1 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""
# The least that a model in Python can do for an answer, once it knows the sums.
PYTHON = """
import numpy as np
import triton_python_backend_utils as pb_utils

SAME = 2 * np.arange(16, dtype=np.int32)[None]


class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            sums = pb_utils.Tensor("OUTPUT0", {})
            answers.append(pb_utils.InferenceResponse([sums]))
        return answers
"""
ADDED = "np.add(*(tensor.as_numpy() for tensor in request.inputs()))"
STOP = """
parameters { key: "session.force_spinning_stop" value { string_value: "1" } }
"""


def note(curve: str, x: str, **found: float) -> None:
    """Keep a point of a curve, and show it."""
    keep(POINTS, {"curve": curve, "x": x, **found})
    shown = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
    print(f"{curve} {x}: {shown}", flush=True)


@contextlib.contextmanager
def serving(folder: Path | str) -> Iterator[server.Triton]:
    """Start a server on a repository, and end it."""
    with (
        contextlib.redirect_stdout(sys.stderr),
        server.start(folder, disable_auto_complete_config=True) as triton,
    ):
        yield triton


def processes(triton: server.Triton) -> Running:
    """Return a server's processes, and those of its models."""
    return Running(0, 0, of_token(TOKEN, triton._process.name))


@contextlib.contextmanager
def repository_of(**models: tuple[str, bytes]) -> Iterator[Path]:
    """Make a repository of models: a config.pbtxt, and a graph or Python's code.

    Each model's name is the one that it is given here, whatever it has in its text.
    """
    with tempfile.TemporaryDirectory(prefix="growth-") as scratch:
        for name, (config, model) in models.items():
            version = Path(scratch) / name / "1"
            version.mkdir(parents=True)
            file = "model.py" if 'backend: "python"' in config else "model.onnx"
            (version / file).write_bytes(model)
            config = re.sub("^name:.*", "", config, flags=re.MULTILINE)
            (version.parent / "config.pbtxt").write_text(config)
        yield Path(scratch)


def load(
    triton: server.Triton,
    tensor: np.ndarray,
    expected: np.ndarray,
    concurrency: int,
    protocol: str = "http",
    question: wire.Question = wire.CLASSIFY,
    seconds: float = SECONDS,
    polled: bool = False,
) -> dict[str, Any]:
    """Ask the server about one tensor again and again; refuse a wrong answer."""
    with tempfile.TemporaryDirectory(prefix="growth-") as scratch:
        path = Path(scratch) / "tensors.npz"
        np.savez(path, x=tensor[None], y=expected.ravel()[None])
        found = ask(
            {
                "protocol": protocol,
                "dialect": "v2",
                "port": int(triton.http.rpartition(":")[2]),
                "concurrency": concurrency,
                "warm_up": 0.5,
                "seconds": seconds,
                "tensors": str(path),
                "question": question,
                "polled": polled,
            }
        )
    if found["wrong"] or found["errors"]:
        raise RuntimeError(f"{found['wrong']} wrong answers, {found['errors']}")
    return found


def of_lessons(name: str) -> tuple[str, bytes]:
    """Return the config.pbtxt and the graph of one of the lessons' models."""
    folder = repository.build() / name
    graph = (folder / "1" / "model.onnx").read_bytes()
    return (folder / "config.pbtxt").read_text(), graph


def classifier(count: str) -> tuple[str, bytes]:
    """Return the classifier with this count of instances."""
    text, graph = of_lessons(wire.MODEL)
    text = text[: text.index("instance_group")]
    text = re.sub(r"label_filename: *\S+", "", text)
    text += f"instance_group [ {{ kind: KIND_CPU {count} }} ]\n"
    return text, graph


def answer(graph: bytes, x: np.ndarray) -> np.ndarray:
    """Return what onnxruntime makes of a tensor."""
    import onnxruntime as ort

    session = ort.InferenceSession(graph)
    feeds = {node.name: x for node in session.get_inputs()}
    return session.run(None, feeds)[0]


def clients() -> None:
    """Ask with 1 to 256 clients: the rate must hold, and latency grow as they do."""
    photo = np.random.default_rng(0).random((1, 3, 224, 224), np.float32)
    model = classifier("")
    with repository_of(**{wire.MODEL: model}) as folder, serving(folder) as triton:
        y = answer(model[1], photo)
        for concurrency in (1, 2, 4, 8, 16, 32, 64, 128, 256):
            seconds = max(SECONDS, concurrency / 20)
            found = load(triton, photo, y, concurrency, seconds=seconds)
            note(
                "clients", str(concurrency), rate=found["throughput"], p50=found["p50"]
            )


def batches() -> None:
    """Ask for batches of 1 to 16: the photographs per second must hold."""
    model = classifier("")
    photos = np.random.default_rng(0).random((16, 3, 224, 224), np.float32)
    with repository_of(**{wire.MODEL: model}) as folder, serving(folder) as triton:
        for size in (1, 2, 4, 8, 16):
            y = answer(model[1], photos[:size])
            found = load(triton, photos[:size], y, 4, seconds=3)
            rate = found["throughput"] * size
            note("batches", str(size), photographs=rate, p50=found["p50"])


def tensors() -> None:
    """Send tensors of 1 KB to 32 MB there and back through a model that copies."""
    from onnx import TensorProto, helper

    infos = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"])
        for name in ("IN", "OUT")
    ]
    node = helper.make_node("Identity", ["IN"], ["OUT"])
    graph = helper.make_graph([node], "identity", infos[:1], infos[1:])
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8)
    question = wire.Question("identity", ["IN"], "OUT")
    made = {"identity": (IDENTITY, model.SerializeToString())}
    with repository_of(**made) as folder, serving(folder) as triton:
        for kilobytes in (1, 32, 1024, 4096, 32768):
            x = np.arange(kilobytes * 256, dtype=np.float32)
            size = f"{kilobytes} KB" if kilobytes < 1024 else f"{kilobytes // 1024} MB"
            p50 = {
                protocol: load(triton, x, x, 1, protocol, question)["p50"]
                for protocol in ("http", "shm")
            }
            note("tensors", size, **p50, copy=copying_ms(x))


def copying_ms(array: np.ndarray) -> float:
    """Return how long a copy within the processor's own memory takes, the median."""
    times = []
    for _ in range(50):
        begin = time.perf_counter()
        array.copy()
        times.append(1000 * (time.perf_counter() - begin))
    return statistics.median(times)


def models() -> None:
    """Start servers on 1 to 32 models: seconds and memory."""
    simple = of_lessons("simple")
    for count in (1, 2, 4, 8, 16, 32):
        made = {f"simple{i}": simple for i in range(count)}
        with repository_of(**made) as repo:
            begin = time.perf_counter()
            with serving(repo) as triton:
                seconds = time.perf_counter() - begin
                memory = processes(triton).pss_mb()
            note("models", str(count), start=seconds, memory=memory)


def photographs() -> None:
    """Classify 1 to 10,000 photographs: this process's memory must not grow."""
    import tritonclient.http as http

    from helpers import images

    files = sorted(images.PHOTOS.iterdir())
    thumbnails = Path(tempfile.mkdtemp(prefix="growth-"))
    from PIL import Image

    small = [thumbnails / f"{file.stem}.png" for file in files]
    for file, target in zip(files, small, strict=True):
        with Image.open(file) as opened:
            opened.convert("RGB").resize((224, 224)).save(target)
    folder = repository.build()
    done = 0
    with serving(folder) as triton, http.InferenceServerClient(triton.http) as client:
        for total in (1, 10, 100, 1000, 10_000):
            while done < total:
                photo = images.read_photo(small[done % len(small)])[None]
                given = http.InferInput("image", photo.shape, "FP32")
                given.set_data_from_numpy(photo)
                client.infer(wire.MODEL, [given])
                done += 1
            memory = psutil.Process().memory_info().rss / 1e6
            there = processes(triton).pss_mb()
            note("photographs", f"{total:,}", client=memory, server=there)
    shutil.rmtree(thumbnails)


def side_by_side(
    curve: str,
    models: dict[str, tuple[str, bytes]],
    asked: wire.Question,
    tensors: tuple[np.ndarray, np.ndarray],
    clients: int,
) -> None:
    """Let models that give the same answer take turns, and note the medians.

    Beside each one's rate stand its ratio to the first's, turn by turn, and the
    processor's time for an answer.
    """
    turns: dict[str, list[dict[str, float]]] = {words: [] for words in models}
    names = {words: f"model{i}" for i, words in enumerate(models)}
    made = {names[words]: files for words, files in models.items()}
    with repository_of(**made) as repo, serving(repo) as triton:
        running = processes(triton)
        for _ in range(TURNS):
            first = 0.0
            for words, found in turns.items():
                before = running.cpu_s()
                told = load(
                    triton,
                    *tensors,
                    clients,
                    question=asked._replace(model=names[words]),
                    polled=clients > 1,
                    seconds=1,
                )
                told["cpu_s"] = running.cpu_s_since(before)
                spent = work(told)
                spent["all"] = sum(spent.values())
                rate, p50 = told["throughput"], told["p50"]
                first = first or rate
                turn = {"rate": rate, "of the first": rate / first, "p50": p50}
                found.append({**turn, **spent})
    for words, found in turns.items():
        middle = {
            column: statistics.median(turn[column] for turn in found)
            for column in found[0]
        }
        note(curve, words, **middle)


def batching() -> None:
    """Ask `simple` with 64 clients, without dynamic batching and with.

    And, with it, two Python models: the least that adds, and the least that answers.
    """
    text, graph = of_lessons("simple")
    batched = text.replace("max_batch_size: 8", "max_batch_size: 64")
    batched += "dynamic_batching { }\n"
    python = batched.replace('platform: "onnxruntime_onnx"', 'backend: "python"')
    models = {
        "without": (text, graph),
        "with": (batched, graph),
        "with, in Python that only adds": (python, PYTHON.format(ADDED).encode()),
        "with, the same answer to all": (python, PYTHON.format("SAME").encode()),
    }
    x = np.arange(16, dtype=np.int32)[None]
    asked = wire.Question("simple", ["INPUT0", "INPUT1"], "OUTPUT0")
    side_by_side("batching", models, asked, (x, 2 * x), 64)


def lone() -> None:
    """Let a lone client ask one instance, one that stops spinning, and the default."""
    (one, graph), (default, _) = classifier("count: 1"), classifier("")
    models = {
        "one instance": (one, graph),
        "one that stops spinning": (one + STOP, graph),
        "the default": (default, graph),
    }
    photo = np.random.default_rng(0).random((1, 3, 224, 224), np.float32)
    side_by_side("lone", models, wire.CLASSIFY, (photo, answer(graph, photo)), 1)


CURVES: dict[str, Callable[[], None]] = {
    curve.__name__: curve
    for curve in (clients, batches, tensors, models, photographs, batching, lone)
}


def read() -> list[dict[str, Any]]:
    """Return the points so far; of one measured twice, the last."""
    last = {(point["curve"], point["x"]): point for point in kept(POINTS)}
    return list(last.values())


if __name__ == "__main__":
    for word in sys.argv[1:] or CURVES:
        CURVES[word]()
