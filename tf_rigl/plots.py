"""Pictures of sparse networks (needs matplotlib: `pip install tf_rigl[plots]`)."""

import pathlib

from matplotlib.figure import Figure


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
