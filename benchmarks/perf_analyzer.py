"""Do `helpers.load` and NVIDIA's perf_analyzer agree on throughput?

`python -m benchmarks.perf_analyzer [ROUNDS]` starts a server with the classifier, two
instances of one thread each, and lets the two take turns, so that a machine that
becomes slower does so for both. It prints the median of each, and their ratio.
"""

import contextlib
import json
import statistics
import sys
from functools import partial
from io import StringIO

import tritonclient.grpc as grpcclient

from helpers import images, load, perf_analyzer, repository, server

MODEL = "efficientnet_lite0"
REQUESTS = 200
WINDOWS = "--measurement-mode count_windows --measurement-request-count 100 -s 999"


def use_two_instances(client: grpcclient.InferenceServerClient) -> None:
    """Load the model anew with two instances of one thread."""
    config = client.get_model_config(MODEL, as_json=True)["config"]
    config["instance_group"] = [{"kind": "KIND_CPU", "count": 2}]
    config["parameters"] = {"intra_op_thread_count": {"string_value": "1"}}
    client.load_model(MODEL, config=json.dumps(config))


def compare(client: grpcclient.InferenceServerClient, url: str, rounds: int) -> None:
    """Print a line per concurrency: both medians, in answers per second."""
    photo = images.read_photo(min(images.PHOTOS.iterdir()))[None]
    image = grpcclient.InferInput("image", photo.shape, "FP32")
    ask = partial(client.infer, MODEL, [image.set_data_from_numpy(photo)])
    load.closed_loop(ask, 4, 50)
    print("clients  helpers.load  perf_analyzer  ratio")
    for concurrency in (1, 2, 4, 8):
        ours, theirs = [], []
        words = f"-m {MODEL} -i grpc -u {url} --concurrency-range {concurrency}"
        for _ in range(rounds):
            ours.append(load.closed_loop(ask, concurrency, REQUESTS, 8).throughput)
            with contextlib.redirect_stdout(StringIO()):
                (row,) = perf_analyzer.run(f"{words} {WINDOWS}")
            theirs.append(row["Inferences/Second"])
        a, b = statistics.median(ours), statistics.median(theirs)
        print(f"{concurrency:7}  {a:12.1f}  {b:13.1f}  {a / b:5.2f}")


def main() -> None:
    """Start a server, compare, and end it."""
    rounds = int(sys.argv[1]) if sys.argv[1:] else 5
    with (
        server.start(
            repository.build(),
            model_control_mode="explicit",
            load_model=MODEL,
            disable_auto_complete_config=True,
        ) as triton,
        grpcclient.InferenceServerClient(triton.grpc) as client,
    ):
        use_two_instances(client)
        compare(client, triton.grpc, rounds)


if __name__ == "__main__":
    main()
