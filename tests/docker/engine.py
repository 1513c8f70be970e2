"""A real container engine with stand-ins for NVIDIA's images, for a test and no longer.

    python tests/docker/engine.py COMMAND …     runs a command with the engine there

Debian's engine and a small Debian are unpacked, not installed. The server's image is
made of the server in the `nvidia-pytriton` wheel, the SDK's of `tritonclient` and our
image_client.py: no registry of images is asked. All that is costly stays in
`.cache/docker`, which git ignores; a second run takes seconds. It needs root, on Debian
12. Containers get a bridge network unless the machine has an engine of its own: with
that, they can publish ports, but reach nothing outside.
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import os
import platform
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from debian import CannotRunError, check_debian, run, short_hash, unpack  # noqa: E402

from helpers import bootstrap, embedded  # noqa: E402

IMAGE = "nvcr.io/nvidia/tritonserver:24.03-py3"
SDK_IMAGE = f"{IMAGE}-sdk"
BRIDGE = Path("/sys/class/net/docker0")
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")  # the engine switches it on
CACHE = ROOT / ".cache" / "docker"
PYTHON = "3.11"  # Debian 12's, so the image's
ENGINE_PACKAGES = ["containerd", "docker.io", "runc"]
IMAGE_PACKAGES = [f"python{PYTHON}", f"libpython{PYTHON}", "libstdc++6", "dash"]
IMAGE_PACKAGES += ["coreutils", "bash", "libc-bin", "curl"]
SERVER_WHEELS = ["numpy", "onnxruntime", "pillow"]
SDK_WHEELS = ["numpy", "pillow", "tritonclient", "ml-dtypes", "python-rapidjson"]
SDK_WHEELS += ["urllib3", "geventhttpclient", "gevent", "greenlet", "brotli", "certifi"]
SDK_WHEELS += ["zope-event", "zope-interface"]
IMAGE_CLIENT = Path(__file__).with_name("image_client.py")
WRAPPER = """#!/bin/sh
LD_LIBRARY_PATH=/opt/tritonserver/lib exec /opt/tritonserver/bin/server "$@"
"""


def check_machine() -> None:
    """Refuse a machine on which none of this can work."""
    check_debian("the engine")
    if os.getuid() != 0:
        raise CannotRunError("a container engine needs root")


# --- What is fetched once ----------------------------------------------------------


def engine_programs() -> Path:
    """Return the folder in which the engine is unpacked."""
    return unpack(CACHE / "engine", ENGINE_PACKAGES, "--no-install-recommends")


def compose() -> list[str]:
    """Return the command of Debian's Compose, which is 1.29: later ones are not there.

    It comes with a Python of its own, so that it does not matter which one we run.
    """
    nothing = ["--no-install-recommends", "-o", "Dir::State::status=/dev/null"]
    packages = ["docker-compose", f"python{PYTHON}"]
    folder = unpack(CACHE / "compose", packages, *nothing) / "usr"
    modules = f"PYTHONPATH={folder}/lib/python3/dist-packages"
    python = [f"PYTHONHOME={folder}", f"{folder}/bin/python{PYTHON}"]
    return ["env", modules, *python, f"{folder}/bin/docker-compose"]


def debian() -> Path:
    """Return a small Debian with Python, resolved as if nothing were installed."""
    nothing = ["--no-install-recommends", "-o", "Dir::State::status=/dev/null"]
    return unpack(CACHE / "debian", IMAGE_PACKAGES, *nothing)


def wheels(names: list[str]) -> Path:
    """Return a folder with Python packages for an image, as locked here."""
    pins = [f"{name}=={importlib.metadata.version(name)}" for name in names]
    folder = CACHE / f"wheels-{short_hash(pins)}"
    if not folder.exists():
        part = tempfile.mkdtemp(prefix="wheels-", dir=CACHE)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        pip += ["--no-compile", "--only-binary=:all:", f"--python-version={PYTHON}"]
        for libc in ("1", "2010", "2014", "_2_17", "_2_27", "_2_28"):
            pip += ["--platform", f"manylinux{libc}_{platform.machine()}"]
        run(*pip, f"--target={part}", *pins)
        Path(part).chmod(0o755)
        Path(part).rename(folder)
    return folder


# --- The images --------------------------------------------------------------------


def lay_out_server(folder: Path) -> None:
    """Put the wheel's server where NVIDIA's image has it, with our backend."""
    wheel, opt = embedded.wheel(), folder / "opt" / "tritonserver"
    shutil.copytree(wheel / "caches", opt / "caches")
    shutil.copytree(wheel / "backends", opt / "backends")
    shutil.copytree(embedded.site_packages() / "nvidia_pytriton.libs", opt / "lib")
    stub = wheel / "python_backend_stubs" / PYTHON / "triton_python_backend_stub"
    shutil.copy(stub, opt / "backends" / "python")
    (opt / "backends" / "python" / stub.name).chmod(0o755)
    backend = ROOT / "helpers" / "backends" / "onnxruntime"
    shutil.copytree(
        backend,
        opt / "backends" / "onnxruntime",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    (opt / "bin").mkdir()
    shutil.copy(wheel / "bin" / "tritonserver", opt / "bin" / "server")
    (opt / "bin" / "server").chmod(0o755)
    (opt / "bin" / "tritonserver").write_text(WRAPPER)
    (opt / "bin" / "tritonserver").chmod(0o755)


def lay_out_client(folder: Path) -> None:
    """Put our image_client where NVIDIA's image has its own."""
    programs = folder / "workspace" / "install" / "bin"
    programs.mkdir(parents=True)
    shutil.copy(IMAGE_CLIENT, programs / "image_client")
    (programs / "image_client").chmod(0o755)


def lay_out_rest(folder: Path, packages: list[str]) -> None:
    """Add what Debian's installation would have made, and Python's packages."""
    (folder / "tmp").mkdir(exist_ok=True)
    (folder / "tmp").chmod(0o1777)
    (folder / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (folder / "usr" / "bin" / "python3").symlink_to(f"python{PYTHON}")
    place = folder / "usr" / "local" / "lib" / f"python{PYTHON}" / "dist-packages"
    shutil.copytree(wheels(packages), place)
    # Without this, each container would compile NumPy anew.
    compiled = ["/usr/lib/python3.11", "/usr/local/lib"]
    skipped = "/(tests?|idlelib|tools|transformers|quantization)/"
    run(
        "chroot", folder, "python3", "-m", "compileall", "-qq", "-x", skipped, *compiled
    )


def image_key() -> str:
    """Return a name for all that the images are made of."""
    digest = hashlib.sha256(Path(__file__).read_bytes() + IMAGE_CLIENT.read_bytes())
    for name in ("nvidia-pytriton", *SERVER_WHEELS, *SDK_WHEELS):
        digest.update(importlib.metadata.version(name).encode())
    for module in sorted((ROOT / "helpers" / "backends").glob("*/*.py")):
        digest.update(module.read_bytes())
    return digest.hexdigest()[:12]


def make_image(
    image: str, lay_out: Callable[[Path], None], packages: list[str]
) -> None:
    """Import an image into the running engine, under the name that NVIDIA's has."""
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        folder = Path(name, "root")
        shutil.copytree(debian(), folder, symlinks=True, copy_function=os.link)
        lay_out(folder)
        lay_out_rest(folder, packages)
        tar = ["tar", "--create", f"--directory={folder}", "."]
        packed = subprocess.Popen(tar, stdout=subprocess.PIPE)
        path = "/opt/tritonserver/bin:/usr/local/bin:/usr/bin:/bin"
        change = ["--change", f"ENV PATH={path}", "--change", "LABEL made-of=wheel"]
        run("docker", "import", *change, "-", image, stdin=packed.stdout)
        if packed.wait() != 0:
            raise CannotRunError(f"{image} could not be packed")


# --- The engine --------------------------------------------------------------------


def environment(folder: Path) -> dict[str, str]:
    """Return what leads the docker command to the engine of this folder, and to it."""
    programs = engine_programs()
    path = f"{os.environ['PATH']}:{programs / 'usr/sbin'}:{programs / 'usr/bin'}"
    return {"PATH": path, "DOCKER_HOST": f"unix://{folder}/docker.sock"}


def wait_until_it_answers(daemon: subprocess.Popen, log: Path) -> None:
    """Return when the engine answers; raise with its last words if it ends instead."""
    while daemon.poll() is None:
        with contextlib.suppress(CannotRunError, subprocess.TimeoutExpired):
            run("docker", "version", timeout=5)
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            daemon.wait(0.1)
    last = log.read_text().splitlines()[-1:] or ["nothing"]
    raise CannotRunError(f"the engine did not start: {last[0]}")


def tidy() -> None:
    """Remove all containers of the engine, and all images but these two."""
    with contextlib.suppress(CannotRunError):
        left = run("docker", "ps", "--all", "--quiet").split()
        if left:
            run("docker", "rm", "--force", *left)
        images = run("docker", "images", "--format={{.Repository}}:{{.Tag}}").split()
        for image in set(images) - {IMAGE, SDK_IMAGE}:
            run("docker", "image", "rm", image)


def unmount(folders: list[Path]) -> None:
    """Unmount all that an engine has left mounted below these folders."""
    lines = Path("/proc/mounts").read_text().splitlines()
    for place in reversed([line.split()[1] for line in lines]):
        if any(folder in Path(place).parents for folder in folders):
            run("umount", place)


def remove_bridge() -> None:
    """Remove the bridge that an engine has left: `ip link delete docker0`."""
    set_flags, delete_bridge, name = 0x8914, 0x89A1, BRIDGE.name.encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sH14x", name, 0))  # down
        fcntl.ioctl(any_socket, delete_bridge, name)


def end_killed(folder: Path) -> None:
    """End the engine that a killed run has left, and its containers with it."""
    if not folder.exists():
        return
    with contextlib.suppress(OSError, ValueError, psutil.Error):
        daemon = psutil.Process(int((folder / "docker.pid").read_text()))
        if daemon.name() == "dockerd":
            os.environ |= environment(folder)
            tidy()
            daemon.terminate()
            daemon.wait(30)
            remove_bridge()
    unmount([folder, CACHE])
    shutil.rmtree(folder)


def start(folder: Path, data: Path, *options: str) -> subprocess.Popen:
    """Start an engine with its files in these folders; raise if it does not answer."""
    log = folder / "log"
    with log.open("wb") as stream:
        daemon = subprocess.Popen(
            [
                "dockerd",
                "--iptables=false",
                "--ip6tables=false",
                f"--data-root={data}",
                f"--exec-root={folder}/run",
                f"--pidfile={folder}/docker.pid",
                f"--host=unix://{folder}/docker.sock",
                *options,
            ],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until_it_answers(daemon, log)
    except BaseException:
        daemon.terminate()
        daemon.wait(30)
        raise
    return daemon


@contextlib.contextmanager
def engine(*options: str) -> Iterator[None]:
    """Run an engine that has the two images, with more options of dockerd if need be.

    In the block, this process's environment leads the docker command there. After it,
    nothing of the engine runs or is mounted. Raises CannotRunError where none can run.
    """
    check_machine()
    CACHE.mkdir(parents=True, exist_ok=True)
    with bootstrap.alone(CACHE):
        # A short path, for the socket, and the same each time, to find what was killed.
        folder = Path("/tmp/engine-" + hashlib.sha256(bytes(CACHE)).hexdigest()[:8])
        data = CACHE / f"data-{image_key()}"
        before = dict(os.environ)
        end_killed(folder)
        for old in set(CACHE.glob("data-*")) - {data}:
            shutil.rmtree(old)
        bridged, forwarding = BRIDGE.exists(), FORWARDING.read_text()
        options = options or (("--bridge=none",) if bridged else ())
        daemon = None
        try:
            folder.mkdir(mode=0o755)  # the socket itself says who may use it
            os.environ |= environment(folder)
            daemon = start(folder, data, *options)
            if not run("docker", "images", "--quiet", IMAGE):
                make_image(IMAGE, lay_out_server, SERVER_WHEELS)
            if not run("docker", "images", "--quiet", SDK_IMAGE):
                make_image(SDK_IMAGE, lay_out_client, SDK_WHEELS)
            yield
        finally:
            if daemon:
                tidy()
                daemon.terminate()
                daemon.wait(30)
            unmount([folder, CACHE])
            if BRIDGE.exists() and not bridged:
                remove_bridge()
            if FORWARDING.read_text() != forwarding:
                FORWARDING.write_text(forwarding)
            os.environ.clear()
            os.environ.update(before)
            shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Run the command line's command with the engine there; return its status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with engine():
            return subprocess.run(sys.argv[1:]).returncode
    except CannotRunError as error:
        print(f"No container engine can run here: {error}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
