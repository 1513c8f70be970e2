"""A chain of words: each is drawn from those that follow the last one in text.txt.

After its last word the text begins again. The draw is the same for every request.
"""

from __future__ import annotations

import json
import random
import threading
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


def answer(word: str) -> pb_utils.InferenceResponse:
    """Return one answer of many."""
    tensor = pb_utils.Tensor("next", np.array([word], dtype=object))
    return pb_utils.InferenceResponse([tensor])


def failure(message: str) -> pb_utils.InferenceResponse:
    """Return an answer that is an error."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message))


class TritonPythonModel:
    """The chain, and one thread for each request that it answers."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read which words follow which."""
        self.words = Path(__file__).with_name("text.txt").read_text().split()
        self.following = defaultdict(list)
        for word, after in pairwise([*self.words, self.words[0]]):
            self.following[word].append(after)

    def execute(self, requests: list[pb_utils.InferenceRequest]) -> None:
        """Begin to answer, and return at once."""
        for request in requests:
            threading.Thread(target=self.talk, args=[request]).start()

    def talk(self, request: pb_utils.InferenceRequest) -> None:
        """Send `count` words, unless one is `taboo`, or nobody listens any more."""
        sender = request.get_response_sender()
        wanted = json.loads(request.parameters() or "{}")
        word = pb_utils.get_input_tensor_by_name(request, "word").as_numpy()[0].decode()
        count, sent, draw = wanted.get("count", 10), 0, random.Random(0)
        while sent < count and not sender.is_cancelled():
            word = draw.choice(self.following.get(word, self.words))
            if word == wanted.get("taboo"):
                sender.send(failure(f"I will not say '{word}'"))
                break
            sender.send(answer(word))
            sent += 1
        pb_utils.Logger.log_info(f"{sent} of {count} words sent")
        sender.send(flags=FINAL)
