"""One look for all plots of the course."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Told apart without colour vision, and legible on white and on dark grey.
COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"]


def use_style() -> None:
    """Let Matplotlib draw as the course does, from here to the kernel's end."""
    plt.rcParams.update(
        {
            "axes.axisbelow": True,
            "axes.grid": True,
            "axes.prop_cycle": plt.cycler(color=COLOURS),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "figure.constrained_layout.use": True,
            "figure.dpi": 100,
            "figure.figsize": (7, 3.2),
            "font.size": 10,
            "grid.alpha": 0.3,
        }
    )


def draw_ensemble(config: dict[str, Any]) -> Figure:
    """Return a figure of an ensemble's graph, from its config as JSON.

    The steps stand in a row, each right of all that it needs; an arrow carries the
    name that the ensemble has for a tensor. One that skips a step runs below.
    """
    edges = ensemble_edges(config)
    column = {"request": 0}
    for _ in edges:  # at worst each step stands before what it needs
        for source, _, target in edges:
            column[target] = max(column.get(target, 1), column.get(source, 0) + 1)
    figure, axis = plt.subplots(figsize=(9, 1.6))
    for source, tensor, target in edges:
        start, end = column[source], column[target]
        far = end - start > 1
        arrow = {"arrowstyle": "->", "connectionstyle": f"arc3,rad={0.2 * far}"}
        ends = [(end - 0.38 + 0.3 * far, -0.1 * far), (start + 0.34, -0.1 * far)]
        axis.annotate("", *ends, arrowprops=arrow)
        middle = ((start + end) / 2, -0.62 if far else 0.18)
        axis.text(*middle, tensor, size=8, ha="center")
    for node, x in column.items():
        axis.text(x, 0, node, ha="center", va="center", size=9, bbox={"fc": "white"})
    axis.set(xlim=(-0.4, max(column.values()) + 0.4), ylim=(-0.65, 0.4))
    axis.set_axis_off()
    return figure


def ensemble_edges(config: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return (writer, tensor, reader) of each connection within an ensemble."""
    steps = config["ensemble_scheduling"]["step"]
    writers = {tensor["name"]: "request" for tensor in config["input"]}
    for step in steps:
        writers |= dict.fromkeys(step["output_map"].values(), step["model_name"])
    edges = [
        (writers[tensor], tensor, step["model_name"])
        for step in steps
        for tensor in step["input_map"].values()
    ]
    names = [tensor["name"] for tensor in config["output"]]
    return edges + [(writers[name], name, "response") for name in names]


def draw_parts(rows: dict[str, dict[str, float]], label: str) -> Figure:
    """Return a figure of a stacked bar for each row, from the top, and its parts."""
    figure, axis = plt.subplots(figsize=(8, 0.8 + 0.45 * len(rows)))
    left = dict.fromkeys(rows, 0.0)
    for part in next(iter(rows.values())):
        lengths = [parts[part] for parts in rows.values()]
        axis.barh(list(rows), lengths, left=list(left.values()), label=part)
        left = {row: left[row] + parts[part] for row, parts in rows.items()}
    axis.set(xlabel=label)
    axis.invert_yaxis()
    axis.legend(ncols=2, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def draw_rounds(axis: Axes, rounds: dict[str, np.ndarray], label: str) -> None:
    """Draw a row for each name: a dot for each of its rounds, a bar at their median."""
    for name, values in rounds.items():
        axis.plot(values, [name] * len(values), "o", color=COLOURS[0], alpha=0.5)
        axis.plot([np.median(values)], [name], "|", color="black", markersize=16)
    axis.set(xlabel=label, xlim=(0, None), ylim=(-0.5, len(rounds) - 0.5))
