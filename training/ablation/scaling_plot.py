# SPDX-License-Identifier: Apache-2.0
"""Success over training episodes, as an SVG drawing with 95 % intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nvila_ros.errors import DataError

# Arms that differ in nothing but how many episodes they see; the last is another seed.
SCALING = ("episodes_64th", "episodes_16th", "episodes_4th", "plain")
AGAIN, RELEASED = "plain_again", "released"
NUDGE = 1.12  # another seed's point beside the first one, times as many episodes
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "nvila_ros",  # the same figures give the same file
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def write_plot(arms: dict[str, dict[str, Any]], path: Path) -> None:
    """Draws arms of `report.summarise`; DataError where fewer than two can be drawn."""
    points = [arms[name] for name in SCALING if "success" in arms.get(name, {})]
    if len(points) < 2:
        raise DataError(
            f"{len(points)} of {', '.join(SCALING)} were trained and examined; a plot needs two"
        )
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(6.4, 4.0))
        episodes = [point["episodes"] for point in points]
        steps = ", ".join(f"{number:,}" for number in sorted({p["steps"] for p in points}))
        _bars(axes, episodes, points, marker="o-", label=f"{steps} steps each, seed 1")
        again = arms.get(AGAIN, {})
        if "success" in again:
            places = [NUDGE * again["episodes"]]
            _bars(axes, places, [again], marker="s", label="the same, seed 2 (drawn beside)")
        released = arms.get(RELEASED, {})
        if "success" in released:
            low, high = (100 * end for end in released["success_95"])
            axes.axhspan(low, high, color="C2", alpha=0.15, linewidth=0)
            label = f"released weights (more data, more steps), {100 * released['success']:.1f} %"
            axes.axhline(100 * released["success"], color="C2", linestyle="--", label=label)
        count = points[0]["num_examined"]
        axes.set(
            xscale="log",
            xlabel="episodes in the training data (log scale)",
            ylabel=f"success in {count} unseen apartments, %",
            ylim=(0, 80 if "success" in released else None),
        )
        axes.set_xticks(episodes, [f"{number:,}" for number in episodes])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(loc="center left", bbox_to_anchor=(0.0, 0.62), frameon=False)
        figure.tight_layout()
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)


def _bars(axes: Any, episodes: list[float], points: list[dict[str, Any]], **style: Any) -> None:
    """Points with their intervals; `marker` may hold a line's style, too."""
    shares = [100 * point["success"] for point in points]
    below = [100 * (point["success"] - point["success_95"][0]) for point in points]
    above = [100 * (point["success_95"][1] - point["success"]) for point in points]
    marker = style.pop("marker")
    axes.errorbar(episodes, shares, [below, above], fmt=marker, capsize=3, **style)
