"""A model that reports what happens to it, and what holds it for a closer look.

Experiments with the scheduler must not depend on anybody's speed: a probe's execution
can be held until the queue looks as the experiment wants it.
"""

import contextlib
import json
import re
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import tritonclient.grpc as grpcclient

from helpers import repository, server

PENDING = "nv_inference_pending_request_count"

# X is FP32 [batch, 1]. Each row of TOLD, INT32 [batch, 2], says how many rows ran
# together with this one, and in which execution of this instance.
CODE = '''"""Report what happens: helpers/probe.py."""

import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.hold = Path(args["model_repository"]).parent / "hold"
        gauge = pb_utils.MetricFamily.GAUGE
        # A gauge lives as long as its family.
        self.family = pb_utils.MetricFamily("running", "Executions going on", gauge)
        self.running = self.family.Metric({"model": args["model_name"]})
        self.executions = 0

    def execute(self, requests):
        self.running.increment(1)
        self.executions += 1
        time.sleep(0.01)
        while self.hold.exists():
            time.sleep(0.01)
        self.running.increment(-1)
        sizes = [len(request.inputs()[0].as_numpy()) for request in requests]
        told = [np.int32([[sum(sizes), self.executions]] * size) for size in sizes]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("TOLD", t)]) for t in told]
'''


CONFIG = """backend: "python"
max_batch_size: 8
input { name: "X" data_type: TYPE_FP32 dims: [ 1 ] }
output { name: "TOLD" data_type: TYPE_INT32 dims: [ 2 ] }
instance_group { kind: KIND_CPU count: 1 }
"""

# A model as many are exported, whose first dimension is 1, and a config that hopes.
FIXED = """<ir_version: 8, opset_import: ["": 17]>
fixed (float[1, 3] X) => (float[1, 3] Y) { Y = Identity(X) }
"""
FIXED_CONFIG = """backend: "onnxruntime"
max_batch_size: 8
input { name: "X" data_type: TYPE_FP32 dims: [ 3 ] }
output { name: "Y" data_type: TYPE_FP32 dims: [ 3 ] }
instance_group { kind: KIND_CPU count: 1 }
"""


def write(folder: Path) -> None:
    """Put the models `probe`, `rival` and `fixed` into a model repository."""
    fixed = onnx.parser.parse_model(FIXED).SerializeToString()
    files = {
        "probe": (CONFIG, "model.py", CODE.encode()),
        "rival": (CONFIG, "model.py", CODE.encode()),
        "fixed": (FIXED_CONFIG, "model.onnx", fixed),
    }
    for model, (config, name, content) in files.items():
        version = folder / model / "1"
        version.mkdir(parents=True)
        (version / name).write_bytes(content)
        (version.parent / "config.pbtxt").write_text(config)


class Lab:
    """A server that has loaded nothing yet, and the means to experiment on it.

    It knows the models of `write` and those of the course. `flags` are further flags
    of tritonserver, as `server.start` takes them. Stop it at the end.
    """

    def __init__(self, prefix: str = "probe-", **flags: server.Flag) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=prefix))
        self.hold = self.folder / "hold"
        self.configs: dict[str, dict] = {}
        try:
            write(self.folder)
            self.triton = server.start(
                [self.folder, repository.build()],
                model_control_mode="explicit",
                disable_auto_complete_config=True,
                **flags,
            )
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def stop(self) -> None:
        """End the server and remove the models; stopping twice is fine."""
        self.triton.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def configure(self, model: str = "probe", /, **changes: object) -> None:
        """Load a model anew with some top-level fields of its config.pbtxt changed.

        Triton takes no notice of a load with the same config, and for some changes
        keeps the statistics: a parameter that is always new makes them start at zero.
        What an earlier experiment has left in the queue is waited for.
        """
        with contextlib.suppress(TimeoutError):
            self._wait(0, 0, model, seconds=15)
        with self._client() as client:
            if model not in self.configs:
                client.load_model(model)
                answer = client.get_model_config(model, as_json=True)
                self.configs[model] = answer["config"]
            config = self.configs[model] | changes
            fresh = {"fresh": {"string_value": str(time.time_ns())}}
            config["parameters"] = config.get("parameters", {}) | fresh
            client.load_model(model, config=json.dumps(config))

    def statistics(self, model: str = "probe") -> tuple[int, int, dict[int, int]]:
        """Return inferences, executions, and how many executions had which size."""
        time.sleep(0.2)  # Triton counts a moment after it answers
        with self._client() as client:
            stats = client.get_inference_statistics(model).model_stats[0]
        sizes = {row.batch_size: row.compute_infer.count for row in stats.batch_stats}
        return stats.inference_count, stats.execution_count, sizes

    def gauges(self, model: str = "probe") -> tuple[int, int]:
        """Return how many executions are running and how many requests are pending."""
        with urllib.request.urlopen(f"http://{self.triton.metrics}/metrics") as page:
            text = page.read().decode()
        running, pending = (
            re.search(rf'^{name}{{model="{model}".*}} (\d+)', text, re.MULTILINE)
            for name in ("running", PENDING)
        )
        return int(running[1]) if running else 0, int(pending[1]) if pending else 0

    def until(self, running: int, pending: int, model: str = "probe") -> None:
        """Wait until so many run and so many wait, and print it; or TimeoutError."""
        self._wait(running, pending, model)
        print(f"{model}: {running} running, {pending} pending")

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Keep one instance of the probe at one request until the block ends.

        Whatever else begins to run meanwhile is held as well.
        """
        tensor = grpcclient.InferInput("X", [1, 1], "FP32")
        tensor.set_data_from_numpy(np.zeros((1, 1), np.float32))
        self.hold.touch()
        try:
            with self._client() as client, ThreadPoolExecutor(1) as pool:
                answer = pool.submit(client.infer, "probe", [tensor])
                try:
                    self._wait(1, 0, "probe")
                    yield
                finally:
                    self.hold.unlink(missing_ok=True)
                answer.result()
        finally:
            self.hold.unlink(missing_ok=True)

    def _client(self) -> grpcclient.InferenceServerClient:
        return grpcclient.InferenceServerClient(self.triton.grpc)

    def _wait(
        self, running: int, pending: int, model: str, seconds: float = 60
    ) -> None:
        deadline = time.monotonic() + seconds
        while (found := self.gauges(model)) != (running, pending):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{model}: {found[0]} running, {found[1]} pending, not {running}"
                    f" and {pending}: load the model again, and repeat the experiment."
                )
            time.sleep(0.02)
