"""Pictures of sparse networks (needs matplotlib: `pip install tf_rigl[plots]`)."""

import itertools
import pathlib
import textwrap

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

# Twelve that are told apart, in an order in which neighbours differ most.
_COLORS = ("#4878a8", "#e1812c", "#3a923a", "#c03d3e", "#8d69b8", "#85584e")
_COLORS += ("#e377c2", "#a9a533", "#17becf", "#7f7f7f", "#1b2a6b", "#7ccd7c")
_MARKERS = "osD^vP"


def draw_run(result, path):
    """Draws layer sparsities, and how the masks moved, of a run.

    Args:
        result: dict, from `tf_rigl.experiments.run` with a sparse method.
        path: str or path of the PNG file.
    """
    settings = result["settings"]
    layers = [layer for layer in result["layers"] if layer["active"] < layer["parameters"]]
    height = max(3.6, 0.26 * len(layers) + 1.6)
    figure = Figure(figsize=(11, height), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle(
        f"{settings['method']}, {settings['model']} on {settings['dataset']}: sparsity "
        f"{result['sparsity']:.3f}, test accuracy {result['accuracy']:.3f}"
    )

    names = [layer["path"] for layer in layers]
    bars = left.barh(names, [layer["sparsity"] for layer in layers], color="#4878a8")
    left.bar_label(bars, [f"{layer['active']:,} active" for layer in layers], padding=3, fontsize=8)
    left.invert_yaxis()
    left.set(xlim=(0, 1.3), xlabel="sparsity", title="Zeros in each layer")
    left.set_xticks([0, 0.25, 0.5, 0.75, 1])

    moved = result["masks_moved"]["since_start"]
    epochs = range(1, len(moved) + 1)
    for name in names:
        right.plot(epochs, [m[name] for m in moved], label=name, alpha=0.9)
    right.set(
        xlabel="epoch",
        ylabel="share of active connections",
        title="Connections that were not there at the start",
        ylim=(0, None),
    )
    if len(names) <= 10:
        right.legend(fontsize=8, frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(pathlib.Path(path), dpi=120)


def draw_accuracy_flops(rows, path):
    """Draws accuracy against what training costs: a marker for each method and sparsity.

    Args:
        rows: list of dict, from `tf_rigl.compare.compare`, of which one at least has a run.
        path: str or path of the PNG file.
    """
    rows = _finished(rows)
    colors = _colors(rows)
    sparsities = sorted({row["sparsity"] for row in rows if row["sparsity"] is not None})
    shapes = dict(zip(sparsities, itertools.cycle(_MARKERS), strict=False))
    figure, axes = _figure()
    for label, color in colors.items():
        own = [row for row in rows if _label(row, rows) == label]
        cost, accuracy, spread = _numbers(own, "train_flops")
        axes.plot(cost, accuracy, color=color, alpha=0.35, linewidth=1.2, zorder=1)
        for x, y, error, row in zip(cost, accuracy, spread, own, strict=True):
            axes.errorbar(
                x,
                y,
                error,
                color=color,
                marker=shapes.get(row["sparsity"], "*"),
                markersize=12 if row["sparsity"] is None else 7,
                markeredgecolor="white",
                markeredgewidth=0.7,
                elinewidth=1.2,
                capsize=2.5,
            )
    costs = [row["train_flops"] for row in rows]
    if min(costs) > 0 and max(costs) / min(costs) >= 10:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set(
        xlabel="FLOPs of training, relative to dense",
        ylabel="test accuracy, %",
        title="Accuracy against the cost of training",
    )
    axes.grid(alpha=0.25)
    methods = [
        Line2D([], [], color=c, linewidth=3, label=_wrapped(name, 28)) for name, c in colors.items()
    ]
    marks = [
        Line2D([], [], color="#666666", marker=m, linestyle="", label=f"sparsity {s:g}")
        for s, m in shapes.items()
    ]
    figure.legend(handles=methods + marks, loc="outside right upper", frameon=False, fontsize=9)
    figure.savefig(pathlib.Path(path), dpi=120)


def draw_accuracy_sparsity(rows, path):
    """Draws accuracy against sparsity, a line with a band of a standard deviation a method.

    Dense networks are a level with its band. The axis is that of the logarithm of the
    density, on which 0.9, 0.95 and 0.98 are apart.

    Args:
        rows: list of dict, from `tf_rigl.compare.compare`, of which one at least has a run.
        path: str or path of the PNG file.
    """
    rows = _finished(rows)
    shown = sorted({row["sparsity"] for row in rows if row["sparsity"] is not None}) or [0.0]
    figure, axes = _figure()
    colors = _colors(rows)
    for number, (label, color) in enumerate(colors.items()):
        own = [row for row in rows if _label(row, rows) == label]
        if own[0]["sparsity"] is None:
            _, (accuracy,), (spread,) = _numbers(own, "mean")
            axes.axhline(
                accuracy, color=color, linestyle="--", linewidth=1.3, label=_wrapped(label, 28)
            )
            axes.axhspan(accuracy - spread, accuracy + spread, color=color, alpha=0.1, linewidth=0)
            continue
        own.sort(key=lambda row: row["sparsity"])
        sparsity, accuracy, spread = _numbers(own, "sparsity")
        density = 1 - sparsity
        if len(shown) == 1:  # Side by side: they would hide each other.
            density = density * 1.1 ** (1 - 2 * (number + 0.5) / len(colors))
        style = {"color": color, "label": _wrapped(label, 28)}
        axes.plot(density, accuracy, marker="o", markersize=5, **style)
        if len(own) > 1:
            band = (accuracy - spread, accuracy + spread)
            axes.fill_between(density, *band, color=color, alpha=0.13, linewidth=0)
        else:
            axes.errorbar(density, accuracy, spread, color=color, capsize=2.5)
    margin = 1.15 if len(shown) == 1 else ((1 - shown[0]) / (1 - shown[-1])) ** 0.05
    axes.set_xlim((1 - shown[0]) * margin, (1 - shown[-1]) / margin)
    axes.set_xscale("log")
    axes.set_xticks([1 - s for s in shown], [f"{s:g}" for s in shown])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="sparsity", ylabel="test accuracy, %", title="Accuracy against sparsity")
    axes.grid(alpha=0.25)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    figure.savefig(pathlib.Path(path), dpi=120)


def draw_input_pixels(results, path):
    """Draws how many connections each pixel of the input has, in the course of training.

    Args:
        results: mapping of a label to a dict from `tf_rigl.experiments.run` that has
            "input_connections"; each is a row of pictures.
        path: str or path of the PNG file.
    """
    maps = {label: result["input_connections"] for label, result in results.items()}
    columns = max(len(found["epochs"]) for found in maps.values())
    images = {
        label: [np.reshape(c, found["shape"]).sum(axis=-1) for c in found["counts"]]
        for label, found in maps.items()
    }
    figure = Figure(figsize=(1.45 * columns + 1.6, 1.6 * len(maps) + 0.7), layout="constrained")
    grid = figure.subplots(len(maps), columns, squeeze=False)
    for row, (label, own) in zip(grid, images.items(), strict=True):
        # What begins dense would outshine all that follows: the end sets the scale.
        brightest = max(1, np.percentile(own[-1], 99.5))
        for axes, image, epoch in zip(row, own, maps[label]["epochs"], strict=False):
            picture = axes.imshow(image, vmin=0, vmax=brightest, cmap="magma")
            axes.set_title("start" if epoch == 0 else f"epoch {epoch}", fontsize=9)
            axes.set(xticks=[], yticks=[])
        for axes in row[len(own) :]:
            axes.set_visible(False)
        row[0].set_ylabel(_wrapped(label, 22), fontsize=8.5)
        brighter = "max" if np.max(own) > brightest else "neither"
        bar = figure.colorbar(picture, ax=row, aspect=12, pad=0.01, extend=brighter)
        bar.ax.tick_params(labelsize=8)
    figure.suptitle("Where the first layer looks: active connections of each pixel", fontsize=11)
    figure.savefig(pathlib.Path(path), dpi=120)


def _wrapped(text, width):
    """Long labels on several lines, broken where there is a space."""
    return textwrap.fill(text, width, break_long_words=False)


def _figure():
    figure = Figure(figsize=(9.5, 5), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _finished(rows):
    return [row for row in rows if row["accuracies"]]


def _label(row, rows):
    """What a row is called: with its distribution where there are several."""
    several = len({r["distribution"] for r in rows} - {None}) > 1
    named = several and row["distribution"] is not None
    return f"{row['method']}, {row['distribution']}" if named else row["method"]


def _colors(rows):
    """A colour for each label, in the order of the rows; dense is black."""
    labels = dict.fromkeys(_label(row, rows) for row in rows)
    colors = itertools.cycle(_COLORS)
    return {label: "#222222" if label == "dense" else next(colors) for label in labels}


def _numbers(rows, key):
    """Values of the rows, and accuracies with their standard deviations in percent."""
    return (
        np.array([row[key] for row in rows]),
        np.array([100 * row["mean"] for row in rows]),
        np.array([100 * (row["std"] or 0.0) for row in rows]),
    )
