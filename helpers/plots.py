"""One look for all plots of the course."""

import matplotlib.pyplot as plt

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
