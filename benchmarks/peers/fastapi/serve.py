"""What a person writes by hand: a route that runs onnxruntime in a pool of threads."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort
from fastapi import FastAPI, Request, Response

options = ort.SessionOptions()
options.intra_op_num_threads = int(os.environ["THREADS"])
session = ort.InferenceSession(os.environ["MODEL"], options)
# A session may run in several threads at once, and lets go of Python's lock meanwhile.
pool = ThreadPoolExecutor(int(os.environ["SLOTS"]))
app = FastAPI()


def scores(body: bytes) -> bytes:
    """Return the scores of a float32 tensor, as bytes."""
    image = np.frombuffer(body, np.float32).reshape(-1, 3, 224, 224)
    return session.run(["logits"], {"image": image})[0].tobytes()


@app.post("/infer")
async def infer(request: Request) -> Response:
    """Answer a tensor's bytes with its scores' bytes."""
    body = await request.body()
    loop = asyncio.get_running_loop()
    answer = await loop.run_in_executor(pool, scores, body)
    return Response(answer, media_type="application/octet-stream")
