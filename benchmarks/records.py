"""What is measured: kept as lines of JSON, each with its time, and read again."""

import json
import time
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def keep(path: Path, record: Record) -> None:
    """Add a record to a file, whatever comes next."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({**record, "time": when}) + "\n")


def kept(path: Path) -> list[Record]:
    """Return the records of a file, none if it isn't there."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def work(load: Record) -> dict[str, float]:
    """Return the processor's milliseconds for an answer, by process and `clients`."""
    spent = load.get("cpu_s", {})  # onnxruntime alone is in the clients' own process
    found = {name: 1000 * s / load["asked"] for name, s in spent.items()}
    return {**found, "clients": 1000 * load["client_cpu_s"] / load["answers"]}
