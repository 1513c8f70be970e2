"""RESULTS.md: what was measured, as tables and a picture."""

import json
import os
import platform
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("svg")
import matplotlib.pyplot as plt
import psutil

from benchmarks import course, growth, same_request
from benchmarks.records import Record, work
from benchmarks.servers import STEPS

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "RESULTS.md"
PICTURE = HERE / "throughput.svg"
LABELS = {
    "in-process": "onnxruntime in process",
    "triton-http": "Triton, HTTP",
    "triton-http-one": "Triton, one instance",
    "triton-http-each": "Triton, one for each core",
    "triton-grpc": "Triton, gRPC",
    "triton-shm": "Triton, shared memory",
    "fastapi": "FastAPI, by hand",
    "fastapi-one": "FastAPI, one at a time",
    "mlserver": "MLServer, gRPC",
    "bentoml": "BentoML",
    "litserve": "LitServe",
    "ray": "Ray Serve",
    "torchserve": "TorchServe",
}
# What is no server of its own in the order of servers.
ASIDE = ("in-process", "triton-http-one", "triton-http-each", "fastapi-one")
INTRODUCTION = """\
# Results

Written by `make bench`; see [README.md](README.md) for what each number means.

{machine}

EfficientNet-Lite0, one photograph of 602 KB a request, clients and server on the same
cores. The servers take turns, which start them anew, and each number was measured up to
{turns} times for {seconds:g} s. Just before each the same is measured of onnxruntime
alone: a *share* is the part of that which a server reaches. All figures are medians.
The machine was a shared one, at times half as fast for seconds, so a share says more
than a rate.

## Throughput
"""

# What each curve shows, and the units of its columns.
MS = {"p50": " (ms)", "http": ", p50 (ms)", "shm": ", p50 (ms)", "copy": " (ms)"}
MB = {"start": " (s)", "memory": " (MB)", "client": " (MB)", "server": " (MB)"}
SPENT = ("p50", "tritonserver", "triton_python_backend_stub", "clients", "all")
BESIDE = {"rate": " (1/s)", **dict.fromkeys(SPENT, " (ms)")}
CURVES = {
    "clients": ("1 to 256 clients over HTTP", {"rate": " (1/s)", **MS}),
    "batches": ("Batches of 1 to 16, four clients", {"photographs": " (1/s)", **MS}),
    "tensors": (
        "A tensor there and back, one client, a model that copies it; and NumPy's copy",
        MS,
    ),
    "models": ("1 to 32 models in a repository", MB),
    "photographs": ("1 to 10,000 photographs, read and classified one by one", MB),
    "batching": (
        "`simple` with dynamic batching and without, 64 clients; the medians of"
        f" {growth.TURNS} turns, and the processor's time for an answer",
        BESIDE,
    ),
    "lone": (
        "A lone client, and threads that spin between two runs; as above",
        BESIDE,
    ),
}
COLUMNS = ["Server", "Version", "Setting", "Start", "Memory", "Fetched", "Installed"]
COUNTS = ["Server", "Turns", "Answers", "Wrong", "Errors", "Clients"]
SIZES = ("wire_mb", "mb")
LATENCY = """\
Milliseconds; the last column is how much longer a lone client waits (p50) than with
onnxruntime alone, just before."""
LONE = """\
Milliseconds of a lone client's answer, in Triton's own statistics: waiting for an
instance, bringing the tensor to it, the model with the way to its process and back, and
bringing the answer; *around* is the rest of what the client waited: its own part, the
network, HTTP or gRPC. *Alone* is what onnxruntime took just before. The last columns
are the processor's time for `tritonserver` and for the client, and how often the server
asked the kernel for bytes. Means of each turn, and of these the medians."""
LONE_COLUMNS = ["Triton", *(step.removeprefix("compute_") for step in STEPS)]
LONE_COLUMNS += ["around", "all", "alone", "server", "client", "reads"]
WORK = """\
Milliseconds of processor time for an answer, {clients} clients.
However well a server fills the cores, its share of the limit can't be larger than what
onnxruntime alone takes for an answer has in what all take together: *at most*. A share
above it is the machine's noise."""
COST = """\
Start: seconds from the command to the first right answer. Memory: proportional (PSS),
MB after the first answer. Fetched and installed: MB of the package and all that it
needs, without Python."""
COUNTED = """\
All answers were compared with onnxruntime's own. Clients: the load generator's share of
all cores."""
SETTINGS = """\
How the peers' settings were found: two turns each, in shares. Of each peer the one with
the highest mean at 4 and at 16 clients was measured above, and of FastAPI, *one at a
time*, what suits a lone client, too. Triton runs with its default, an instance group
without a count, which here makes two that share the cores; *one instance* has a thread
on each core, *one for each core* a thread each."""
ORDER = """\
The mean share with 4 and with 16 clients, in this run and, below, in the run before.
Between two that are less than {close} apart stands ≈: those may change places."""
CLOSE = 0.05
SAME = """\
`python -m benchmarks.same_request` asks Triton and MLServer, which speaks the same V2
protocol, with the same two functions of tritonclient; only the address differs:"""

COURSE = """\
A clone of its own, with pip's cache warm. pip fetches {fetched_mb:.0f} MB where it is
cold, which are {installed_mb:.0f} MB on the disk; `make test` fetches {tests_mb:.0f} MB
more. Its tests took {tests_s:.0f} s.
"""

Table = list[list[str]]


def table(head: list[str], rows: Table, left: int = 1) -> str:
    """Return a Markdown table whose first columns are words, the others numbers."""
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows]) + "\n"


def times(records: Iterable[Record]) -> str:
    """Return when the first and the last of these were measured."""
    found = sorted(record["time"] for record in records)
    later = f" to {found[-1][11:16]}" if found[0] != found[-1] else ""
    return f"{found[0][:16]}{later} UTC"


def machine(records: Iterable[Record]) -> str:
    """Describe the machine, and when it was measured."""
    model = "an unknown processor"
    if (cpu := Path("/proc/cpuinfo")).exists():
        found = re.search(r"model name\s*: (.+)", cpu.read_text())
        model = found[1] if found else model
    memory = psutil.virtual_memory().total / 2**30
    cores = len(os.sched_getaffinity(0))
    system = f"{platform.system()} {platform.release().split('-')[0]}"
    python = f"Python {platform.python_version()}"
    when = times(records)
    return f"{when}; {cores} cores of {model}, {memory:.0f} GiB; {system}; {python}."


def median(records: list[Record], number: Callable[[Record], float]) -> float:
    """Return the middle of a number that each record has."""
    return statistics.median(number(record) for record in records)


def share(record: Record, concurrency: str) -> float:
    """Return the part of the limit, measured just before, that a turn reached."""
    most = record["limits"][concurrency]["throughput"]
    return record["loads"][concurrency]["throughput"] / max(most, 1e-9)


def shares(records: list[Record], concurrency: str) -> float:
    """Return the middle share of some turns."""
    return median(records, lambda record: share(record, concurrency))


def several(record: Record) -> list[str]:
    """Return at how many clients a turn was measured, without the first, a lone one."""
    return list(record["loads"])[1:] or list(record["loads"])


def all_of(servers: dict[str, list[Record]]) -> list[Record]:
    """Return the turns of all servers."""
    return [record for found in servers.values() for record in found]


def described(setting: Record) -> str:
    """Say a setting in words."""
    words = {"WORKERS": "worker", "SLOTS": "slot", "THREADS": "thread"}
    counts = [(setting[key], word) for key, word in words.items() if key in setting]
    parts = [f"{count} {word}{'s' * (count != 1)}" for count, word in counts]
    if "instances" in setting:
        parts.append(f"instances: {setting['instances'] or 'no count given'}")
    for key, value in setting.get("parameters", {}).items():
        parts.append(f"{key}: {value}")
    return ", ".join(parts) or "as it comes"


def grouped(records: Iterable[Record], kind: str) -> dict[str, list[Record]]:
    """Gather the records of a kind that did not fail by server, in a fixed order."""
    found: dict[str, list[Record]] = {name: [] for name in LABELS}
    for record in records:
        if record["kind"] == kind and "failure" not in record:
            found[record["server"]].append(record)
    return {name: rows for name, rows in found.items() if rows}


def rows_of_throughput(servers: dict[str, list[Record]]) -> Table:
    """Return a row a server: its rate and its share at each concurrency."""
    rows = []
    for name, records in servers.items():
        row = [LABELS[name]]
        for c in records[0]["loads"]:
            rate = median(records, lambda r, c=c: r["loads"][c]["throughput"])
            row += [f"{rate:.0f}", f"{shares(records, c):.2f}"]
        rows.append(row)
    return rows


def first(loads: Record) -> Record:
    """Return the load with the fewest clients, one unless told otherwise."""
    return next(iter(loads.values()))


def rows_of_latency(servers: dict[str, list[Record]]) -> Table:
    """Return a row a server: p50 and p99 at each concurrency, and what it adds."""
    rows = []
    for name, records in servers.items():
        row = [LABELS[name]]
        for c in records[0]["loads"]:
            for q in ("p50", "p99"):
                ms = median(records, lambda r, c=c, q=q: r["loads"][c][q])
                row.append(f"{ms:.1f}")
        added = median(
            records, lambda r: first(r["loads"])["p50"] - first(r["limits"])["p50"]
        )
        rows.append([*row, "" if name == "in-process" else f"{added:+.1f}"])
    return rows


def rows_of_work(servers: dict[str, list[Record]], clients: str) -> Table:
    """Return a row a server: who takes how much of the processor for an answer."""
    rows = []
    for name, records in servers.items():
        loads = [work(record["loads"][clients]) for record in records]
        own = {
            process: statistics.median(load.get(process, 0.0) for load in loads)
            for process in dict.fromkeys(each for load in loads for each in load)
        }
        asking = own.pop("clients")
        listed = sorted(
            ((ms, each) for each, ms in own.items() if ms >= 0.05), reverse=True
        )
        totals = [sum(load.values()) for load in loads]
        alone = [work(record["limits"][clients])["clients"] for record in records]
        most = statistics.median(a / b for a, b in zip(alone, totals, strict=True))
        processes = ", ".join(f"{each} {ms:.1f}" for ms, each in listed)
        asked = "" if name == "in-process" else f"{asking:.1f}"
        total = statistics.median(totals)
        rows.append([LABELS[name], processes, asked, f"{total:.1f}", f"{most:.2f}"])
    return rows


def rows_of_lone(servers: dict[str, list[Record]]) -> Table:
    """Return a row for each way to ask Triton: a lone client's wait, step by step."""
    rows = []
    for name, records in servers.items():
        if not first(records[0]["loads"]).get("spent_ms"):
            continue
        turns = []
        for record in records:
            load, alone = first(record["loads"]), first(record["limits"])["mean"]
            steps, busy = list(load["spent_ms"].values()), work(load)
            around, all_in_all = load["mean"] - sum(steps), load["mean"]
            processor = busy["tritonserver"], busy["clients"]
            turns.append([*steps, around, all_in_all, alone, *processor, load["reads"]])
        *ms, reads = map(statistics.median, zip(*turns, strict=True))
        rows.append([LABELS[name], *(f"{each:.2f}" for each in ms), f"{reads:.0f}"])
    return rows


def rows_of_cost(servers: dict[str, list[Record]], sizes: list[Record]) -> Table:
    """Return a row a server: its setting, start, memory and size."""
    rows = []
    weighed = {size["server"]: size for size in sizes}
    for name, records in servers.items():
        rows.append(
            [
                LABELS[name],
                records[-1]["version"],
                described(records[-1]["setting"]),
                f"{median(records, lambda r: r['start_s']):.1f}",
                f"{median(records, lambda r: r['pss_mb']):.0f}",
                *(f"{weighed[name][k]:.0f}" if name in weighed else "" for k in SIZES),
            ]
        )
    return rows


def rows_of_counts(servers: dict[str, list[Record]]) -> Table:
    """Return a row a server: its turns, answers and faults, and its clients' share."""
    rows = []
    cores = len(os.sched_getaffinity(0))
    for name, records in servers.items():
        loads = [load for record in records for load in record["loads"].values()]
        clients = statistics.median(x["client_cpu_s"] / x["seconds"] for x in loads)
        counts = [
            len(records),
            sum(x["answers"] for x in loads),
            sum(x["wrong"] for x in loads),
            sum(sum(x["errors"].values()) for x in loads),
        ]
        own = "" if name == "in-process" else f"{100 * clients / cores:.0f} %"
        rows.append([LABELS[name], *map(str, counts), own])
    return rows


def rows_of_sweep(records: list[Record], concurrencies: list[str]) -> Table:
    """Return a row a setting: its share at each concurrency."""
    settings: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record["kind"] == "sweep":
            key = record["server"], json.dumps(record["setting"])
            settings.setdefault(key, []).append(record)
    rows = []
    for (name, setting), turns in settings.items():
        measured = [turn for turn in turns if "failure" not in turn]
        row = [LABELS[name], described(json.loads(setting))]
        for c in concurrencies:
            there = [turn for turn in measured if c in turn["loads"]]
            row.append(f"{shares(there, c):.2f}" if there else "")
        rows.append(row if measured else [*row[:2], "failed", *row[3:]])
    return rows


def draw(servers: dict[str, list[Record]]) -> None:
    """Draw each server's share of the limit at each concurrency."""
    names = list(servers)[::-1]
    concurrencies = list(servers[names[0]][0]["loads"])
    plt.rcParams.update({"svg.hashsalt": "results", "font.size": 10})
    figure, axes = plt.subplots(figsize=(8, 0.55 * len(names) + 1.2))
    height = 0.8 / len(concurrencies)
    for i, c in enumerate(reversed(concurrencies)):
        found = [[share(record, c) for record in servers[n]] for n in names]
        quartiles = [np.percentile(turns, (25, 50, 75)) for turns in found]
        low, middle, high = np.transpose(quartiles)
        places = [k + (i - 1) * height for k in range(len(names))]
        label = f"{c} client{'s' * (c != '1')}"
        colour = ("#1f4e79", "#5b9bd5", "#bdd7ee")[i % 3]
        axes.barh(places, middle, height, label=label, color=colour)
        around = [middle - low, high - middle]
        axes.errorbar(middle, places, xerr=around, fmt="none", ecolor="grey", lw=0.8)
    axes.set_yticks(range(len(names)), [LABELS[n] for n in names])
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlabel("throughput as a share of onnxruntime without a server")
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "ncols": len(labels)}
    axes.legend(handles[::-1], labels[::-1], frameon=False, **place)
    figure.savefig(PICTURE, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def order(servers: dict[str, list[Record]]) -> str:
    """Return the servers with their mean shares at several clients, best first."""
    means = {
        name: statistics.mean(shares(records, c) for c in several(records[0]))
        for name, records in servers.items()
        if name not in ASIDE
    }
    said, before = "", 0.0
    for name in sorted(means, key=means.__getitem__, reverse=True):
        sign = " ≈ " if before - means[name] < CLOSE else " > "
        said += f"{sign if said else ''}{LABELS[name]} {means[name]:.2f}"
        before = means[name]
    return said


def orders(runs: Iterable[Iterable[Record]]) -> str:
    """Return a line for each run: when it was, and its order of servers."""
    lines = []
    for records in runs:
        servers = grouped(records, "round")
        lines.append(f"- {times(all_of(servers))}: {order(servers)}")
    return "\n".join(lines)


def grown(points: list[Record]) -> str:
    """Return a table for each curve that was measured."""
    parts = [f"{times(points)}, on the same machine.\n"]
    for curve, (sentence, units) in CURVES.items():
        own = [point for point in points if point["curve"] == curve]
        if not own:
            continue
        columns = [name for name in own[0] if name not in ("curve", "x", "time")]
        head = [curve, *(f"{name}{units.get(name, '')}" for name in columns)]
        rows = [[p["x"], *(number(p[name]) for name in columns)] for p in own]
        parts += [f"### {sentence}\n", table(head, rows)]
    return "\n".join(parts)


def of_course(notes: Record) -> str:
    """Return what the course itself costs, as three tables."""
    steps = {
        "git clone": "clone_s",
        "make setup": "setup_s",
        "first answer": "answer_s",
    }
    rows = [[step, f"{notes[key]:.0f}"] for step, key in steps.items()]
    total = f"{sum(notes[key] for key in steps.values()):.0f}"
    parts = [
        COURSE.format(**notes),
        table(["Step", "seconds"], [*rows, ["from nothing to the answer", total]]),
        table(
            ["Heaviest packages", "MB"],
            [[n, f"{mb:.0f}"] for mb, n in notes["heaviest"]],
        ),
        table(
            ["Slowest tests", "seconds"],
            [[f"`{n}`", f"{s:.0f}"] for s, n in notes["slowest"]],
        ),
    ]
    return "\n".join(parts)


def number(value: float) -> str:
    """Write a number with about three digits."""
    if value < 0.1:
        return f"{value:.2g}"
    digits = 0 if value >= 100 else 1 if value >= 3 else 2
    return f"{value:.{digits}f}"


def failures(records: list[Record]) -> str:
    """Name each server that is not in the tables, with the reason."""
    there = grouped(records, "round")
    last = {r["server"]: r["failure"] for r in records if "failure" in r}
    lines = []
    for name, label in LABELS.items():
        if name not in there:
            lines.append(f"- {label}: {last.get(name, 'not tried in this run')}.")
    return "\n".join(lines)


def text(records: list[Record], before: Sequence[Record] = ()) -> str:
    """Return RESULTS.md, with the order of the run before, if there was one."""
    servers = grouped(records, "round")
    turns = max(len(found) for found in servers.values())
    turn = next(iter(servers.values()))[0]
    loads = list(turn["loads"])
    under_load = several(turn)[0]
    rates = [f"{c} client{'s' * (c != '1')}" for c in loads]
    parts = [
        INTRODUCTION.format(
            machine=machine(all_of(servers)),
            turns=turns,
            seconds=turn["loads"][loads[0]]["seconds"],
        ),
        "Answers per second, and the share of the limit:\n",
        "<!-- throughput -->\n",
        table(
            ["Server", *(word for rate in rates for word in (rate, "share"))],
            rows_of_throughput(servers),
        ),
        "<!-- end -->\n",
        f"![Shares of the limit, the same numbers as above]({PICTURE.name})\n",
        f"## Latency\n\n{LATENCY}\n",
        "<!-- latency -->\n",
        table(
            ["Server", *(f"{c}: {q}" for c in loads for q in ("p50", "p99")), "adds"],
            rows_of_latency(servers),
        ),
        "<!-- end -->\n",
        f"## A lone client\n\n{LONE}\n",
        "<!-- lone -->\n",
        table(LONE_COLUMNS, rows_of_lone(servers)),
        "<!-- end -->\n",
        f"## Where the processor's time goes\n\n{WORK.format(clients=under_load)}\n",
        "<!-- work -->\n",
        table(
            ["Server", "Its processes", "Clients", "All", "At most"],
            rows_of_work(servers, under_load),
            left=2,
        ),
        "<!-- end -->\n",
        f"## Cost\n\n{COST}\n",
        "<!-- cost -->\n",
        table(
            COLUMNS,
            rows_of_cost(servers, [r for r in records if r["kind"] == "size"]),
            left=3,
        ),
        "<!-- end -->\n",
        f"## Answers\n\n{COUNTED}\n",
        table(COUNTS, rows_of_counts(servers)),
    ]
    if swept := rows_of_sweep(records, loads):
        head = ["Server", "Setting", *rates]
        parts += [f"## Settings\n\n{SETTINGS}\n", table(head, swept, left=2)]
    runs = [records, before] if before else [records]
    parts.append(f"## The order\n\n{ORDER.format(close=CLOSE)}\n\n{orders(runs)}\n")
    if points := growth.read():
        parts.append(f"## How cost grows\n\n{grown(points)}")
    if course.NOTES.exists():
        notes = json.loads(course.NOTES.read_text())
        parts.append(f"## What the course itself costs\n\n{of_course(notes)}")
    if same_request.ANSWERS.exists():
        lines = json.loads(same_request.ANSWERS.read_text())
        shown = ["<!-- same -->", "", "```text", *lines, "```", "", "<!-- end -->"]
        parts += [f"## The same request\n\n{SAME}\n", "\n".join(shown) + "\n"]
    if missing := failures(records):
        parts.append(f"## Not measured\n\n{missing}\n")
    return "\n".join(parts)


def write(records: list[Record], before: Sequence[Record] = ()) -> None:
    """Write RESULTS.md and its picture."""
    if not grouped(records, "round"):
        raise SystemExit("Nothing is measured yet: `python -m benchmarks rounds`.")
    RESULTS.write_text(text(records, before))
    draw(grouped(records, "round"))
    print(f"{RESULTS.relative_to(HERE.parent)} is written.")
