"""A tensor in shared memory for a while; lesson 08 writes it out."""

import contextlib
import os
import secrets
import time
from collections.abc import Iterator

import numpy as np
import tritonclient.grpc as grpcclient
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException, np_to_triton_dtype


@contextlib.contextmanager
def lying(
    client: grpcclient.InferenceServerClient, name: str, tensor: np.ndarray
) -> Iterator[grpcclient.InferInput]:
    """Lay a tensor into shared memory, and yield the input `name` that points to it.

    The server must be on this machine. Any number of requests may use the input until
    the block ends; then the memory is free again, whatever has happened.
    """
    key = f"lesson-{os.getpid()}-{secrets.token_hex(4)}"
    region = shm.create_shared_memory_region(key, f"/{key}", tensor.nbytes)
    try:
        shm.set_shared_memory_region(region, [tensor])
        client.register_system_shared_memory(key, f"/{key}", tensor.nbytes)
        try:
            kind = np_to_triton_dtype(tensor.dtype)
            pointer = grpcclient.InferInput(name, tensor.shape, kind)
            yield pointer.set_shared_memory(key, tensor.nbytes)
        finally:
            unregister(client, key)
    finally:
        shm.destroy_shared_memory_region(region)


def unregister(client: grpcclient.InferenceServerClient, key: str) -> None:
    """Let the server forget a region, which may be in use a moment after its answer."""
    deadline = time.monotonic() + 5
    while True:
        try:
            return client.unregister_system_shared_memory(key)
        except InferenceServerException as error:
            if "in use" not in error.message() or time.monotonic() > deadline:
                raise
        time.sleep(0.01)
