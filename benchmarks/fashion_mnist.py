"""The comparisons on Fashion-MNIST in docs/results, and when growing by gradient helps.

    python benchmarks/fashion_mnist.py --output runs/fashion_mnist

does the same as several commands of this form, one after the other:

    tf-rigl compare --dataset fashion_mnist --batch-size 128 --epochs 10 ...

This takes several hours on two cores. Finished runs are stored, and the same command in a second
shell shares the work. Then it draws RigL's accuracy minus SET's against sparsity, training length,
and the settings of the update, seed by seed. `--draw` only draws the finished runs.
"""

import argparse
import json
import pathlib
import statistics

from matplotlib.figure import Figure

from tf_rigl._base import tables
from tf_rigl.experiments import compare
from tf_rigl.experiments.settings import Settings

METHODS = "dense static snip snip(scope=global) set snfs rigl magnitude set@2x rigl@2x"
# Settings that may decide whether growing by gradient beats random growth: (label, RigL, SET).
SETTINGS = [
    ("as usual", "rigl", "set"),
    ("2x epochs", "rigl@2x", "set@2x"),
    ("4x epochs", "rigl@4x", "set@4x"),
    ("updates every 25 steps", "rigl(update_interval=25)", "set(update_interval=25)"),
    ("updates every 400 steps", "rigl(update_interval=400)", "set(update_interval=400)"),
    ("drop fraction 0.1", "rigl(drop_fraction=0.1)", "set(drop_fraction=0.1)"),
    ("drop fraction 0.5", "rigl(drop_fraction=0.5)", "set(drop_fraction=0.5)"),
    ("gradients of 10 batches", "rigl(gradient_batches=10)", "set"),
    ("gradients of 50 batches", "rigl(gradient_batches=50)", "set"),
    (
        "10 batches, every 25 steps",
        "rigl(update_interval=25, gradient_batches=10)",
        "set(update_interval=25)",
    ),
]
UNIFORM = ["static(distribution=uniform_all)", "rigl(distribution=uniform_all)"]
OPTIONS = list(dict.fromkeys(s for _, *pair in SETTINGS for s in pair)) + UNIFORM

# Folder: model, specs, sparsities, seeds, and settings that differ from the usual ones.
COMPARISONS = {
    "lenet-300-100": ("lenet-300-100", METHODS.split(), (0.9, 0.95, 0.98), 5),
    "sparser": ("lenet-300-100", ["static", "set", "rigl"], (0.99, 0.995), 3),
    "options": ("lenet-300-100", OPTIONS, (0.98,), 3),
    "normalized": (
        "lenet-300-100-normalized",
        ["dense", "static", "set", "rigl", "magnitude"],
        (0.9, 0.98, 0.99),
        3,
    ),
    # At the usual learning rate, some of its runs fall to the accuracy of guessing.
    "lenet-5": (
        "lenet-5",
        ["dense", "static", "snip", "set", "snfs", "rigl", "rigl@2x", "magnitude"],
        (0.95,),
        3,
        {"learning_rate": 0.05, "epochs": 5},
    ),
}


def accuracies(folder, names=COMPARISONS):
    """Reads test accuracies of all seeds, in percent, by (model, spec, sparsity)."""
    found = {}
    for name in names:
        path = folder / name / compare.RESULT
        if path.exists():
            for row in json.loads(path.read_text())["rows"]:
                key = COMPARISONS[name][0], row["method"], row["sparsity"]
                found.setdefault(key, [100 * value for value in row["accuracies"]])
    return found


def differences(found, model, ours, other, sparsity):
    """Returns the accuracy of one spec minus that of the other, seed by seed."""
    ours, other = (found.get((model, spec, sparsity), []) for spec in (ours, other))
    seeds = min(len(ours), len(other))
    return [a - b for a, b in zip(ours[:seeds], other[:seeds], strict=True)]


def draw(found, path):
    """Draws RigL minus SET: against sparsity, and by setting at 0.98."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.3))
    for model, times, marker in (
        ("lenet-300-100", "", "o-"),
        ("lenet-300-100", "@2x", "s--"),
        ("lenet-300-100-normalized", "", "D-"),
        ("lenet-5", "", "^-"),
    ):
        points = []
        for sparsity in (0.9, 0.95, 0.98, 0.99, 0.995):
            values = differences(found, model, f"rigl{times}", f"set{times}", sparsity)
            if values:
                points.append((sparsity, statistics.mean(values), _std(values)))
        if points:
            x, y, error = zip(*points, strict=True)
            epochs = {"lenet-5": 5}.get(model, 20 if times else 10)
            label = f"{model}, {epochs} epochs"
            density = [1 - s for s in x]
            left.errorbar(density, y, yerr=error, fmt=marker, capsize=3, label=label)
    left.axhline(0, color="gray", linewidth=0.8)
    left.set(xscale="log", xlabel="sparsity", ylabel="RigL minus SET, points of test accuracy")
    left.invert_xaxis()
    left.set_xticks([0.1, 0.05, 0.02, 0.01, 0.005], ["0.9", "0.95", "0.98", "0.99", "0.995"])
    left.minorticks_off()
    left.legend(frameon=False, fontsize=8)

    bars = []
    for label, ours, other in SETTINGS:
        values = differences(found, "lenet-300-100", ours, other, 0.98)
        if values:
            bars.append((f"{label} ({len(values)})", statistics.mean(values), _std(values)))
    if bars:
        labels, heights, errors = zip(*bars, strict=True)
        right.barh(labels, heights, xerr=errors, color="#4878a8", capsize=3)
        right.invert_yaxis()
    right.axvline(0, color="gray", linewidth=0.8)
    right.set(xlabel="RigL minus SET, points", title="LeNet-300-100 at 0.98 (seeds)")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def table(found):
    """Returns the difference in each setting as a Markdown table."""
    lines = []
    for label, ours, other in SETTINGS:
        values = differences(found, "lenet-300-100", ours, other, 0.98)
        if values:
            pair = (found["lenet-300-100", spec, 0.98][: len(values)] for spec in (ours, other))
            lines.append([label, *map(tables.mean_and_spread, (*pair, values))])
    header = ["setting, sparsity 0.98", "RigL", "SET", "RigL minus SET"]
    return "\n".join(tables.markdown(header, lines))


def _std(values):
    return statistics.stdev(values) if len(values) > 1 else 0.0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="runs/fashion_mnist", type=pathlib.Path)
    parser.add_argument("--draw", action="store_true", help="only draw the finished runs")
    options = parser.parse_args()
    for name, (model, specs, sparsities, seeds, *others) in COMPARISONS.items():
        if not options.draw:
            usual = {"dataset": "fashion_mnist", "batch_size": 128, "epochs": 10}
            base = Settings(model=model, **usual | dict(*others))
            folder = options.output / name
            compare.compare(specs, sparsities, range(seeds), folder=folder, base=base)
    found = accuracies(options.output)
    draw(found, options.output / "growth.png")
    print(table(found))


if __name__ == "__main__":
    main()
