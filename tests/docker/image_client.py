#!/usr/bin/env python3
"""What `image_client` of NVIDIA's SDK image does, with the same words and lines.

NVIDIA's image can't be had where this course is tested: this program stands in for it
in the image that engine.py makes. It classifies one photograph over HTTP.
"""

import argparse
import sys

import numpy as np
import tritonclient.http as httpclient
from PIL import Image
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

SCALES = {
    "NONE": lambda pixels: pixels,
    "INCEPTION": lambda pixels: pixels / 127.5 - 1,
    "VGG": lambda pixels: pixels - np.array([123, 117, 104]),
}


def arguments() -> argparse.Namespace:
    """Return the command line, with image_client's own flags."""
    parser = argparse.ArgumentParser(prog="image_client")
    parser.add_argument("-m", metavar="MODEL", required=True)
    parser.add_argument("-c", metavar="CLASSES", type=int, default=1)
    parser.add_argument("-s", metavar="SCALING", choices=SCALES, default="NONE")
    parser.add_argument("-u", metavar="HOST:PORT", default="localhost:8000")
    parser.add_argument("image")
    return parser.parse_args()


def classify(given: argparse.Namespace) -> list[str]:
    """Return the best classes, each as `score:index:label`."""
    with httpclient.InferenceServerClient(given.u) as client:
        metadata = client.get_model_metadata(given.m)
        batched = client.get_model_config(given.m)["max_batch_size"] > 0
        (wanted,), (output,) = metadata["inputs"], metadata["outputs"]
        _, height, width = wanted["shape"][-3:]
        photo = Image.open(given.image).convert("RGB")
        pixels = np.asarray(photo.resize((width, height), Image.Resampling.BILINEAR))
        array = SCALES[given.s](pixels).transpose(2, 0, 1)
        array = array.astype(triton_to_np_dtype(wanted["datatype"]))
        array = array[np.newaxis] if batched else array
        tensor = httpclient.InferInput(wanted["name"], array.shape, wanted["datatype"])
        tensor.set_data_from_numpy(array)
        best = httpclient.InferRequestedOutput(output["name"], class_count=given.c)
        answer = client.infer(given.m, [tensor], outputs=[best])
        return [text.decode() for text in answer.as_numpy(output["name"]).flatten()]


def main() -> None:
    """Print the best classes of one photograph."""
    given = arguments()
    try:
        classes = classify(given)
    except (InferenceServerException, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"Request 0, batch size 1\nImage '{given.image}':")
    for line in classes:
        score, index, label = line.split(":", 2)
        print(f"    {score} ({index}) = {label}")


if __name__ == "__main__":
    main()
