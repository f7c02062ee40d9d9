"""Pictures of sparse networks (needs matplotlib: `pip install tf_rigl[plots]`)."""

import itertools
import pathlib
import textwrap

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

# Twelve distinguishable colours; neighbours differ most.
_COLORS: tuple[str, ...] = ("#4878a8", "#e1812c", "#3a923a", "#c03d3e", "#8d69b8", "#85584e")
_COLORS += ("#e377c2", "#a9a533", "#17becf", "#7f7f7f", "#1b2a6b", "#7ccd7c")
_MARKERS = "osD^vP"


def draw_run(result, path):
    """Draws the layer sparsities of a run, and how far its masks moved.

    Args:
        result: dict, from `tf_rigl.experiments.runs.run` with a sparse method.
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
        title="Active connections that were inactive at the start",
        ylim=(0, None),
    )
    if len(names) <= 10:
        right.legend(fontsize=8, frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(pathlib.Path(path), dpi=120)


def draw_accuracy_flops(rows, path):
    """Draws accuracy against training FLOPs: a marker for each method and sparsity.

    Args:
        rows: list of dict, from `tf_rigl.experiments.compare.compare`; at least one has a
            finished run.
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
    """Draws accuracy against sparsity: a line for each method in a band of a standard deviation.

    Dense networks are horizontal lines. The axis is logarithmic in the density, which
    separates 0.9, 0.95 and 0.98.

    Args:
        rows: list of dict, from `tf_rigl.experiments.compare.compare`; at least one has a
            finished run.
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
        if len(shown) == 1:  # Side by side, so that they do not hide each other.
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
    """Draws the number of connections of each input pixel at several epochs.

    Args:
        results: mapping of label to a dict from `tf_rigl.experiments.runs.run` with
            "input_connections"; each becomes a row of pictures.
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
        # The last picture sets the scale, because a dense first one can be far brighter.
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
    figure.suptitle("Active connections of each input pixel in the first layer", fontsize=11)
    figure.savefig(pathlib.Path(path), dpi=120)


def draw_mask_distances(distances, path, *, drawn=None, first=0):
    """Draws the distances between the channel masks of all epochs; equal masks are light.

    Args:
        distances: array of shape (epochs, epochs), from `EarlyBird.distances`.
        path: str or path of the PNG file.
        drawn: int, the epoch after which the ticket was found (`EarlyBird.epoch`), or None.
        first: int, the epoch of the first row (`EarlyBird.first_epoch`); both count from 0.
    """
    distances = np.asarray(distances)
    if distances.ndim != 2 or distances.shape[0] != distances.shape[1] or not distances.size:
        raise ValueError(
            "Argument `distances` must be a square matrix with at least one epoch. "
            f"Received: distances of shape {distances.shape}"
        )
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    ends, top = (first + 0.5, first + len(distances) + 0.5), max(0.01, distances.max())
    picture = axes.imshow(distances, vmin=0, vmax=top, cmap="YlOrRd", extent=(*ends, *ends[::-1]))
    bar = figure.colorbar(picture, ax=axes, shrink=0.9)
    bar.set_label("fraction of channels that differ")
    if drawn is not None:
        for line in (axes.axhline, axes.axvline):
            line(drawn + 1, color="#222222", linewidth=1, linestyle="--")
        axes.set_title(f"The ticket was found after epoch {drawn + 1}", fontsize=10)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel="epoch")
    figure.suptitle("Distances between the channel masks of epochs", fontsize=11)
    figure.savefig(pathlib.Path(path), dpi=120)


def draw_paths(paths, path, *, name="loss"):
    """Draws the loss along paths between two solutions.

    Args:
        paths: dict of label to `tf_rigl.analysis.Path`.
        path: str or path of the PNG file.
        name: str, what the paths measured.
    """
    if not paths:
        raise ValueError(f"Argument `paths` must not be empty. Received: paths={paths!r}")
    figure, axes = _figure()
    for (label, each), color in zip(paths.items(), itertools.cycle(_COLORS)):
        axes.plot(each.positions, each.losses, color=color, label=f"{label} ({each.barrier:.3g})")
    axes.set(xlabel="position between the solutions", ylabel=name)
    axes.legend(frameon=False, title="path (barrier)")
    figure.savefig(pathlib.Path(path), dpi=120)


def draw_network(network, path):
    """Draws a weight-agnostic network as a graph, inputs on the left.

    Args:
        network: `tf_rigl.wann.Network`.
        path: str or path of the PNG file.
    """
    from tf_rigl.wann.activations import NAMES

    figure = Figure(figsize=(9, 7), layout="constrained")
    axes = figure.subplots()
    depths = np.asarray(network.depths)
    places = np.zeros((len(depths), 2))
    for depth in np.unique(depths):
        nodes = np.flatnonzero(depths == depth)
        places[nodes, 0] = depth
        places[nodes, 1] = -(np.arange(len(nodes)) + 0.5) / len(nodes)
    for source, target in network.edges[network.enabled]:
        axes.plot(*places[[source, target]].T, color="#888888", linewidth=0.5, zorder=1)
    hidden = np.arange(len(depths)) >= network.first_hidden
    ends = [
        (slice(0, network.inputs), "input"),
        (slice(network.inputs, network.first_output), "bias"),
        (slice(network.first_output, network.first_hidden), "output"),
    ]
    for (chosen, label), color in zip(ends, ("#222222", "#888888", "#D55E00"), strict=True):
        axes.scatter(*places[chosen].T, s=18, color=color, label=label, zorder=2)
    kinds = np.unique(network.kinds[hidden])
    for kind, color in zip(kinds, itertools.cycle(_COLORS)):
        chosen = hidden & (network.kinds == kind)
        axes.scatter(*places[chosen].T, s=36, color=color, label=NAMES[kind], zorder=2)
    axes.set_axis_off()
    axes.set_title(f"{network.connections} connections, {network.hidden} hidden nodes", fontsize=11)
    figure.legend(loc="outside right", frameon=False)
    figure.savefig(pathlib.Path(path), dpi=120)


def draw_tickets(rows, path):
    """Draws accuracy and early-stopping step against the weights left, with bands over seeds.

    Dense networks are horizontal lines. Bands extend one standard deviation to both sides.

    Args:
        rows: list of dict, from `tf_rigl.experiments.tickets.tickets`.
        path: str or path of the PNG file.
    """
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    panels = figure.subplots(1, 2)
    kinds = dict.fromkeys(row["kind"] for row in rows)
    sparse = [row for row in rows if row["round"] > 0]
    for axes, key, scale in zip(panels, ("accuracy", "stop_step"), (100, 1), strict=True):
        for kind, color, marker in zip(kinds, _COLORS, _MARKERS, strict=False):
            own = sorted((row for row in sparse if row["kind"] == kind), key=lambda r: r["density"])
            if own:
                left = np.array([100 * row["density"] for row in own])
                mean = np.array([scale * row[key]["mean"] for row in own])
                std = np.array([scale * (row[key]["std"] or 0.0) for row in own])
                axes.plot(left, mean, color=color, marker=marker, markersize=5, label=kind)
                band = (mean - std, mean + std)
                axes.fill_between(left, *band, color=color, alpha=0.15, linewidth=0)
        for row in (row for row in rows if row["round"] == 0):
            mean, std = (scale * (row[key][name] or 0.0) for name in ("mean", "std"))
            axes.axhline(mean, color="#222222", linestyle="--", linewidth=1.2, label="dense")
            axes.axhspan(mean - std, mean + std, color="#222222", alpha=0.08, linewidth=0)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.invert_xaxis()
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set(xlabel="weights left, %", ylabel="test accuracy at early stopping, %")
    panels[1].set(xlabel="weights left, %", ylabel="early-stopping step")
    panels[0].legend(frameon=False, fontsize=9)
    figure.savefig(pathlib.Path(path), dpi=120)


def _wrapped(text, width):
    """Breaks long labels at spaces."""
    return textwrap.fill(text, width, break_long_words=False)


def _figure():
    figure = Figure(figsize=(9.5, 5), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _finished(rows):
    return [row for row in rows if row["accuracies"]]


def _label(row, rows):
    """Returns the label of a row, with its distribution if there are several."""
    several = len({r["distribution"] for r in rows} - {None}) > 1
    named = several and row["distribution"] is not None
    return f"{row['method']}, {row['distribution']}" if named else row["method"]


def _colors(rows):
    """Returns a colour for each label, in the order of the rows; dense is black."""
    labels = dict.fromkeys(_label(row, rows) for row in rows)
    colors = itertools.cycle(_COLORS)
    return {label: "#222222" if label == "dense" else next(colors) for label in labels}


def _numbers(rows, key):
    """Returns values of the rows; accuracies and their standard deviations are in percent."""
    return (
        np.array([row[key] for row in rows]),
        np.array([100 * row["mean"] for row in rows]),
        np.array([100 * (row["std"] or 0.0) for row in rows]),
    )
