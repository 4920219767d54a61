"""Draws the times that nearest.py measured against the number of rows.

    python benchmarks/plot.py benchmarks/results/nearest_cpu.json benchmarks/results/nearest_cpu.png

Each table has a panel. A panel has a bold line for each implementation and a thin one for each baseline, and a dashed
line for the floor where nearest.py knows it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

OURS = {"torch": "#e0861a", "cpu": "#c2185b", "triton": "#6a3fc4", "cuda": "#1967d2"}
THEIRS = ["#8c8c8c", "#5f7f8f", "#a08a5b", "#6f9f7f", "#9a7fa0", "#b07f7f", "#4f6f6f", "#7f8fbf", "#5f5f5f", "#a9a95f"]
GAP = 12  # two labels are so many points apart, or more


def plot(cases: list[dict[str, Any]], path: Path, device: str) -> None:
    shapes = list(dict.fromkeys((c["vocabulary"], c["d"]) for c in cases))
    columns = min(3, len(shapes))
    down = -(-len(shapes) // columns)
    figure, axes = plt.subplots(
        down, columns, figsize=(1 + 5.6 * columns, 0.5 + 4.9 * down), squeeze=False, sharey=True
    )
    theirs = list(dict.fromkeys(c["name"] for c in cases if not c["ours"]))
    for axis, shape in zip(axes.flat, shapes, strict=False):
        _panel(axis, [c for c in cases if (c["vocabulary"], c["d"]) == shape], theirs)
        axis.set_title(f"{shape[0]:,} tokens of width {shape[1]}", fontsize=11, loc="left")
    for axis in axes.flat[len(shapes) :]:
        axis.set_visible(False)
    for row in axes:
        row[0].set_ylabel("milliseconds a call")
    figure.suptitle(f"Nearest token by cosine, {device}", fontsize=12, x=0.01, ha="left")
    figure.tight_layout()
    for axis in axes.flat[: len(shapes)]:  # the places of the labels depend on the final scale
        _label_ends(axis)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    print(f"drawn to {path}")


def _panel(axis: Axes, cases: list[dict[str, Any]], theirs: list[str]) -> None:
    names = sorted({c["name"] for c in cases}, key=lambda name: name.split(" ")[0] in OURS)
    for name in names:
        some = sorted((c for c in cases if c["name"] == name), key=lambda c: c["rows"])
        rows, ms = [c["rows"] for c in some], [c["ms"] for c in some]
        implementation = name.split(" ")[0]
        if implementation in OURS and some[0]["ours"]:
            style: dict[str, Any] = {
                "color": OURS[implementation],
                "linewidth": 2.4,
                "linestyle": ":" if "graph" in name else "-",
                "marker": "o",
            }
        else:
            style = {"color": THEIRS[theirs.index(name) % len(THEIRS)], "linewidth": 1.1, "marker": "."}
        (line,) = axis.plot(rows, ms, label=name, markersize=4, **style)
        axis.fill_between(
            rows, [c["q20"] for c in some], [c["q80"] for c in some], color=line.get_color(), alpha=0.15, linewidth=0
        )
    floor = {c["rows"]: c["floor_ms"] for c in cases if c["floor_ms"]}
    if floor:
        axis.plot(
            sorted(floor), [floor[n] for n in sorted(floor)], label="floor", color="black", linewidth=1, linestyle="--"
        )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    every = sorted({c["rows"] for c in cases})
    axis.set_xticks(every, [str(n) for n in every])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda ms, _: f"{ms:g}"))
    axis.set_xlim(every[0] / 1.2, every[-1] * (every[-1] / every[0]) ** 0.3 * 1.5)  # room for the labels
    axis.set_ylim(top=3 * max(c["q80"] for c in cases))
    axis.set_xlabel("rows", loc="left")
    axis.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axis.tick_params(labelsize=9, length=0, labelleft=True)
    axis.spines[["top", "right"]].set_visible(False)


def _label_ends(axis: Axes) -> None:
    """Writes each line's name behind its last point, and pushes the names apart."""
    points_per_pixel = 72 / axis.figure.dpi
    ends = []
    for line in axis.get_lines():
        x, y = (float(np.asarray(values)[-1]) for values in line.get_data())
        ends.append((axis.transData.transform((x, y))[1] * points_per_pixel, x, y, line))
    ends.sort(key=lambda end: end[0])
    wanted = [end[0] for end in ends]
    bottom = axis.transAxes.transform((0, 0))[1] * points_per_pixel
    at = _apart(wanted, bottom)
    right = max(end[1] for end in ends)
    for place, (height, x, y, line) in zip(at, ends, strict=True):
        axis.annotate(
            str(line.get_label()),
            (x, y),
            xytext=(_offset(axis, x, right) + 14, place - height),
            textcoords="offset points",
            color=line.get_color(),
            fontsize=8.5,
            va="center",
            weight="bold" if line.get_linewidth() > 2 else "normal",
            arrowprops={
                "arrowstyle": "-",
                "color": line.get_color(),
                "linewidth": 0.5,
                "shrinkA": 0,
                "shrinkB": 3,
                "relpos": (0, 0.5),
            },
            annotation_clip=False,
        )


def _offset(axis: Axes, x: float, right: float) -> float:
    return (axis.transData.transform((right, 1))[0] - axis.transData.transform((x, 1))[0]) * 72 / axis.figure.dpi


def _apart(wanted: list[float], bottom: float) -> list[float]:
    """Returns ascending places near those wanted, at least GAP apart; the labels of a group lie around their mean."""
    groups: list[tuple[list[float], float]] = []  # (the places that its members want, its lowest place)
    for value in wanted:
        members, lowest = [value], value
        while True:
            lowest = max(bottom, sum(members) / len(members) - GAP * (len(members) - 1) / 2)
            if not groups or groups[-1][1] + GAP * len(groups[-1][0]) <= lowest:
                break
            members = groups.pop()[0] + members
        groups.append((members, lowest))
    return [lowest + GAP * k for members, lowest in groups for k in range(len(members))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="what nearest.py --out wrote")
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    results = json.loads(args.results.read_text())["results"]
    plot(results["cases"], args.picture, results["device"])


if __name__ == "__main__":
    main()
