"""The `docker` command: what its engine can give, and what its refusals mean.

TRITON_IMAGE names another image than NVIDIA's 24.03; TRITON_GPUS is what `--gpus`
says, 0 for none.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from helpers.embedded import PortLostError, StartError

NVIDIA = "nvcr.io/nvidia/tritonserver"
IMAGE = f"{NVIDIA}:24.03-py3"
IMAGE_GB = 15  # what NVIDIA's image takes on disk (triton-inference-server/server#7474)

# What Docker says, as a pattern, and what that means with its cure. The first that
# fits is taken; {said} is Docker's own last line.
CURES = [
    (
        r"permission denied.*(socket|docker API|\.sock)",
        "You may not use Docker: run `sudo usermod -aG docker $USER`, log out and in"
        " again, and start again.",
    ),
    (
        r"cannot connect to the docker|error during connect|failed to connect to the"
        r" docker|docker desktop is (not running|unable)",
        "Docker's engine is not running: start Docker Desktop, or run `sudo systemctl"
        " start docker`, and start again.",
    ),
    (
        r"no space left on device",
        "Docker's disk is full: free some with `docker system prune`, or unset TRITON"
        " to use the embedded server.",
    ),
    (
        r"could not select device driver|nvidia-container|libnvidia|\bCDI\b",
        "Docker could not give the container a GPU ({said}): install NVIDIA's Container"
        " Toolkit, or set TRITON_GPUS=0 to use the CPU.",
    ),
    (
        r"mounts denied|not shared from|declined directory sharing|drive.*not.*shared",
        "Docker Desktop does not share the model repository's folder with containers:"
        " add it under Settings, Resources, File sharing, or move it to your home.",
    ),
    (
        r"executable file not found",
        "There is no tritonserver in {image}: TRITON_IMAGE must name a server's image,"
        f" such as {IMAGE}.",
    ),
    (
        r"manifest.*(unknown|not found)|not found: manifest|no matching manifest",
        "There is no image {image} for this machine: check TRITON_IMAGE.",
    ),
    (
        r"unauthorized|denied|authentication required|forbidden",
        "The registry refuses to give you {image}: run `docker login nvcr.io` with the"
        " user $oauthtoken and your NGC API key as the password, and start again.",
    ),
    (
        r"no such host|dial tcp|timeout|unreachable|name resolution|request canceled"
        r"|connection (reset|refused)|\bEOF\b",
        "{image} is not on this machine and its registry does not answer: connect to"
        " the network, bring the image with `docker load`, or unset TRITON to use the"
        " embedded server.",
    ),
]
PORT_LOST = r"already allocated|address already in use|ports are not available"


def explain(said: str) -> StartError:
    """Return what Docker's message means, in one sentence with the cure."""
    lines = [line for line in said.strip().splitlines() if "--help" not in line]
    last = lines[-1].removeprefix("docker: ").rstrip(".") if lines else "nothing"
    if re.search(PORT_LOST, said, re.IGNORECASE):
        return PortLostError(
            f"Somebody else took a port meanwhile ({last}): ask for another, or for"
            " none and get a free one."
        )
    for pattern, sentence in CURES:
        if re.search(pattern, said, re.IGNORECASE):
            return StartError(sentence.format(said=last, image=image_name()))
    return StartError(
        f"Docker did not start Triton: {last}. Mend that, or unset TRITON to use the"
        " embedded server."
    )


def run(*words: str, **options: Any) -> subprocess.CompletedProcess:  # noqa: ANN401
    """Run a docker command to its end; raise StartError only where there is none."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run(
        [program(), *words],
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        **options,
    )


def docker(*words: str) -> str:
    """Return what a docker command prints; raise StartError with the cure."""
    answer = run(*words)
    if answer.returncode != 0:
        raise explain(answer.stderr)
    return answer.stdout


def program() -> str:
    """Return the path of the docker command."""
    found = shutil.which("docker")
    if not found:
        raise StartError(
            "There is no docker command: install Docker (docs.docker.com/get-docker; on"
            " Windows with its WSL2 backend), or unset TRITON to use the embedded"
            " server."
        )
    return found


# --- What the engine can give --------------------------------------------------------


def about() -> dict[str, Any]:
    """Return what the engine says of itself, as `docker info` has it."""
    told = json.loads(docker("info", "--format={{json .}}"))
    if told.get("ServerErrors"):  # some versions of the command do not fail then
        raise explain("\n".join(told["ServerErrors"]))
    return told


def has_bridge() -> bool:
    """Return whether it can publish ports, which takes a bridge network."""
    return bool(docker("network", "ls", "--quiet", "--filter=driver=bridge"))


def gpus(engine: dict[str, Any]) -> str:
    """Return what `--gpus` should say, where "0" leaves it out."""
    asked = os.environ.get("TRITON_GPUS", "").strip()
    able = "nvidia" in engine.get("Runtimes", {})
    if asked not in ("", "0") and not able:
        raise StartError(
            f"TRITON_GPUS={asked} asks for a GPU and Docker has no NVIDIA runtime:"
            " install NVIDIA's Container Toolkit and run `sudo nvidia-ctk runtime"
            " configure --runtime=docker`, or unset TRITON_GPUS to use the CPU."
        )
    return asked or str(int(able))


# --- The image -----------------------------------------------------------------------


def image_name() -> str:
    """Return the image to run."""
    return os.environ.get("TRITON_IMAGE", "").strip() or IMAGE


def ensure_image(engine: dict[str, Any]) -> None:
    """Pull the image unless it is there, with its size and progress shown."""
    image = image_name()
    if run("image", "inspect", image).returncode == 0:
        return
    size = "of unknown size"
    if image.startswith(f"{NVIDIA}:"):
        size = f"about {IMAGE_GB} GB"
        check_room(Path(engine.get("DockerRootDir", "")))
    print(f"$ docker pull {image}  # {size}, once", flush=True)
    with subprocess.Popen(
        [program(), "pull", image],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as pull:
        show_progress(pull.stdout)
        said = pull.stderr.read()
    if pull.returncode != 0:
        raise explain(said)


def check_room(folder: Path) -> None:
    """Refuse to pull NVIDIA's image onto a disk that is too small for it.

    Docker Desktop keeps images in a virtual machine: there the folder is not here, and
    Docker's own message has to do.
    """
    free = shutil.disk_usage(folder).free / 1e9 if folder.is_dir() else float("inf")
    if free < IMAGE_GB:
        raise StartError(
            f"{image_name()} takes about {IMAGE_GB} GB and the disk of {folder} has"
            f" {free:.0f} GB free: free some with `docker system prune`, or unset"
            " TRITON to use the embedded server."
        )


def show_progress(lines: Iterable[str]) -> None:
    """Draw the progress of a pull: layers unpacked, of all that were announced."""
    with tqdm(unit=" layers", file=sys.stdout, total=0) as bar:
        for line in lines:
            layer, _, news = line.strip().partition(": ")
            if news in ("Pulling fs layer", "Already exists"):
                bar.total += 1
            if news:
                bar.set_description(f"{layer[:12]} {news}")
            bar.update(news in ("Pull complete", "Already exists"))
