"""`python -m benchmarks`: compare servers side by side, in rounds that take turns.

Without a word it does all: it finds each server's best setting, measures three rounds
and writes RESULTS.md. Each step can also be had alone, and a few servers can be named:

    python -m benchmarks sweep fastapi
    python -m benchmarks rounds --rounds 1 in-process triton-http
    python -m benchmarks report

What is measured is appended to .cache/benchmarks/results.jsonl as it comes in, so a run
may be cut off and taken up again; `--fresh` begins anew.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
from pathlib import Path

from benchmarks import report
from benchmarks.records import Record, keep, kept
from benchmarks.servers import CACHE, SERVERS, ask, model_file, tensors

RESULTS = CACHE / "results.jsonl"
BEFORE = CACHE / "results-before.jsonl"


def limit(path: Path, concurrency: int, seconds: float, warm_up: float) -> Record:
    """Measure onnxruntime alone: one client has all cores, several have one each."""
    cores = len(os.sched_getaffinity(0))
    alone = concurrency == 1
    job = {"threads": cores if alone else 1, "workers": 1 if alone else cores}
    job |= {"protocol": "in-process", "model": str(model_file()), "tensors": str(path)}
    job |= {"concurrency": concurrency, "seconds": seconds, "warm_up": warm_up}
    return ask(job)


def measure(
    name: str, setting: Record, given: argparse.Namespace, repeats: int = 1
) -> list[Record]:
    """Start a server, load it at each concurrency in turn, so many times, and end it.

    Beside each of its figures stands one of onnxruntime alone, taken just before it:
    a machine that is slower for a while is so for both.
    """
    found, path = SERVERS[name], given.tensors
    seconds, warm_up = given.seconds, given.warm_up
    records: list[Record] = []
    with found.running(setting, path) as running:
        started = {"start_s": running.start_s, "pss_mb": running.pss_mb()}
        for _ in range(repeats):
            loads, limits = {}, {}
            for clients in given.clients:
                alone = limit(path, clients, seconds, warm_up)
                limits[str(clients)] = loads[str(clients)] = alone
                if found.protocol == "in-process":
                    continue
                job = {"protocol": found.protocol, "dialect": found.dialect}
                job |= {"port": running.port, "concurrency": clients}
                job |= {"seconds": seconds, "warm_up": warm_up, "tensors": str(path)}
                before, then = running.cpu_s(), running.spent_ms()
                reads = running.reads()
                load = ask(job)
                load["reads"] = (running.reads() - reads) / load["asked"]
                load["cpu_s"] = running.cpu_s_since(before)
                load["spent_ms"] = {
                    step: (ms - then[step]) / load["asked"]
                    for step, ms in running.spent_ms().items()
                }
                loads[str(clients)] = load
            records.append({**started, "loads": loads, "limits": limits})
    return records


def attempt(
    kind: str, name: str, setting: Record, given: argparse.Namespace, repeats: int = 1
) -> None:
    """Measure and keep it; a server's failure is kept, too, and ends nothing."""
    try:
        SERVERS[name].install()
        records = measure(name, setting, given, repeats)
    except Exception as error:
        records = [{"failure": str(error)}]
    told = {"kind": kind, "server": name, "setting": setting}
    for record in records:
        keep(RESULTS, {**told, "version": SERVERS[name].version(), **record})
        loads = record.get("loads", {}).values()
        rates = "/".join(f"{load['throughput']:.0f}" for load in loads)
        said = record.get("failure") or f"{rates} a second"
        print(f"{kind} {name} {json.dumps(setting)}: {said}", flush=True)


def weigh(name: str) -> None:
    """Note what a server's packages take, on the way and on the disk."""
    with contextlib.suppress(Exception):  # what could not be installed has no size
        sizes = {"mb": SERVERS[name].size_mb(), "wire_mb": SERVERS[name].download_mb()}
        keep(RESULTS, {"kind": "size", "server": name, **sizes})


def score(record: Record) -> float:
    """Return the mean of a turn's shares at several clients; 0 if it failed."""
    if "failure" in record or any(x["errors"] for x in record["loads"].values()):
        return 0.0
    return statistics.mean(report.share(record, c) for c in report.several(record))


def best(name: str, records: list[Record]) -> Record:
    """Return the setting that did best in the sweep, else a server's first."""
    scores: dict[str, list[float]] = {}
    for record in records:
        if record["kind"] == "sweep" and record["server"] == name:
            key = json.dumps(record["setting"])
            scores.setdefault(key, []).append(score(record))
    if not scores:
        return SERVERS[name].settings[0]
    return json.loads(max(scores, key=lambda key: statistics.median(scores[key])))


def read(path: Path | None = None) -> list[Record]:
    """Return what has been measured so far, or what a file has of an earlier run."""
    return kept(path or RESULTS)


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("words", nargs="*", metavar="STEP|SERVER")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="in each turn")
    parser.add_argument("--seconds", type=float, default=0.8)
    parser.add_argument("--warm-up", type=float, default=0.2)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    given = parser.parse_intermixed_args()
    steps = [w for w in given.words if w in ("sweep", "rounds", "report")]
    names = [w for w in given.words if w not in steps] or list(SERVERS)
    if unknown := set(names) - SERVERS.keys():
        sys.exit(f"No {', '.join(unknown)} here: name any of {', '.join(SERVERS)}.")
    if given.fresh and RESULTS.exists():
        RESULTS.replace(BEFORE)
    given.tensors = tensors()
    if not steps or "sweep" in steps:
        for name in names:
            if len(SERVERS[name].settings) > 1:
                for setting in SERVERS[name].settings:
                    attempt("sweep", name, setting, given, 2)
    if not steps or "rounds" in steps:
        for _ in range(given.rounds):
            for name in names:
                attempt("round", name, best(name, read()), given, given.repeats)
        for name in names:
            weigh(name)
    if not steps or "report" in steps:
        report.write(read(), read(BEFORE))


if __name__ == "__main__":
    main()
