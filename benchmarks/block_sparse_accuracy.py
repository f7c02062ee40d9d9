"""The time that block-sparse training saves, and the accuracy that it costs.

    python benchmarks/block_sparse_accuracy.py

trains an MLP of three 2048-unit layers on Fashion-MNIST with three seeds: dense, by RigL with
single entries (masked, so no faster), and by RigL block-sparse with blocks of 16, 32 and 64, at
90% sparsity. Each trains for the epochs of dense; the block-sparse ones train once more for the
epochs that fit into the time of dense. Writes the test accuracy after each epoch against the
seconds of training as JSON, a table and a picture. Finished trainings are stored and not
repeated. Run nothing else at the same time.
"""

import argparse
import json
import pathlib
import statistics
import time

import keras
from matplotlib.figure import Figure

import tf_rigl
from tf_rigl import data
from tf_rigl._base import files, tables

EPOCHS, SEEDS, BATCH = 4, 3, 256
# Label: arguments of `sparsify`; None for dense.
VARIANTS = {
    "dense": None,
    "RigL, single entries": {},
    "RigL, blocks of 16": {"pattern": "block_16x16", "compute": "sparse"},
    "RigL, blocks of 32": {"pattern": "block_32x32", "compute": "sparse"},
    "RigL, blocks of 64": {"pattern": "block_64x64", "compute": "sparse"},
}


class Watch(keras.callbacks.Callback):
    """Records seconds of training and test accuracy after each epoch."""

    def __init__(self, test):
        super().__init__()
        self.test, self.seconds, self.accuracies = test, [], []

    def on_epoch_begin(self, epoch, logs=None):
        self._began = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        spent = time.perf_counter() - self._began
        self.seconds.append(spent + (self.seconds[-1] if self.seconds else 0.0))
        self.accuracies.append(self.model.evaluate(self.test, verbose=0)[1])


def train(arguments, seed, epochs):
    """Trains one model; returns its sparsity, seconds and accuracies."""
    dataset = data.load("fashion_mnist", BATCH, seed=seed)
    keras.utils.set_random_seed(seed)
    hidden = [keras.layers.Dense(2048, activation="relu") for _ in range(3)]
    stack = [keras.Input(dataset.input_shape), keras.layers.Flatten(), *hidden]
    model = keras.Sequential([*stack, keras.layers.Dense(dataset.num_classes)])
    steps = epochs * len(dataset.train)
    if arguments is not None:
        method = tf_rigl.methods.RigL(update_interval=50)
        model = tf_rigl.sparsify(model, method, sparsity=0.9, seed=seed, **arguments)
    model.compile(
        keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, steps), momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    watch = Watch(dataset.test)
    model.fit(dataset.train, epochs=epochs, verbose=0, shuffle=False, callbacks=[watch])
    sparsity = 0.0 if arguments is None else model.sparsity
    return {"sparsity": sparsity, "seconds": watch.seconds, "accuracies": watch.accuracies}


def all_runs(folder):
    """Does the trainings that are not stored; returns all runs by label, kind and seed."""
    folder.mkdir(parents=True, exist_ok=True)
    runs = {label: {"equal epochs": [], "equal time": []} for label in VARIANTS}

    def run(label, kind, seed, epochs):
        path = folder / f"{label}-{kind}-{seed}.json".replace(" ", "_").replace(",", "")
        if not path.exists():
            files.write_text(path, files.to_json(train(VARIANTS[label], seed, epochs)))
        result = json.loads(path.read_text())
        runs[label][kind].append(result)
        print(
            f"{label}, {kind}, seed {seed}: {len(result['seconds'])} epochs, "
            f"{result['seconds'][-1]:.0f} s, {result['accuracies'][-1]:.4f}",
            flush=True,
        )
        return result

    for seed in range(SEEDS):
        budget = run("dense", "equal epochs", seed, EPOCHS)["seconds"][-1]
        for label, arguments in VARIANTS.items():
            if arguments is None:
                continue
            spent = run(label, "equal epochs", seed, EPOCHS)["seconds"][-1]
            if "compute" in arguments:
                run(label, "equal time", seed, max(1, round(EPOCHS * budget / spent)))
    return runs


def table(runs):
    """Returns the runs as a Markdown table."""
    header = ["", "sparsity", "equal epochs: accuracy, %", "seconds"]
    header += ["equal time: accuracy, %", "epochs"]
    lines = []
    for label, kinds in runs.items():
        epochs, in_time = kinds["equal epochs"], kinds["equal time"] or kinds["equal epochs"]
        counts = sorted({len(run["seconds"]) for run in in_time})
        lines.append(
            [
                label,
                f"{statistics.mean(run['sparsity'] for run in epochs):.3f}",
                _percent(epochs),
                f"{statistics.mean(run['seconds'][-1] for run in epochs):.0f}",
                _percent(in_time) if kinds["equal time"] or label == "dense" else "",
                " to ".join(map(str, dict.fromkeys([counts[0], counts[-1]]))),
            ]
        )
    return "\n".join(tables.markdown(header, lines))


def _percent(runs):
    return tables.mean_and_spread([run["accuracies"][-1] for run in runs], scale=100)


def draw(runs, path):
    """Draws test accuracy against seconds: a line for each training, a colour for each variant."""
    figure = Figure(figsize=(8.5, 4.8), layout="constrained")
    axes = figure.subplots()
    for color, (label, kinds) in enumerate(runs.items()):
        chosen = kinds["equal time"] or kinds["equal epochs"]
        for number, run in enumerate(chosen):
            values = [100 * value for value in run["accuracies"]]
            axes.plot(
                run["seconds"],
                values,
                f"C{color}.-",
                alpha=0.7,
                linewidth=1,
                label=None if number else label,
            )
    axes.set(
        xlabel="seconds of training",
        ylabel="test accuracy, %",
        title="Fashion-MNIST, MLP of 3 x 2048 units, three seeds",
    )
    axes.set_ylim(bottom=max(axes.get_ylim()[0], 75))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="runs/block_sparse", type=pathlib.Path)
    options = parser.parse_args()
    runs = all_runs(options.output)
    print(table(runs))
    (options.output / "accuracy.json").write_text(files.to_json(runs))
    draw(runs, options.output / "accuracy.png")


if __name__ == "__main__":
    main()
