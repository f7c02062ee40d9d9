"""The training loss around updates of the masks, by what new optimizer slots begin at.

    python -m benchmarks.cold_start

trains an MLP on Fashion-MNIST by RigL at 0.9 sparsity, with a constant learning rate and an update
every 100 steps, and takes the loss of each batch. The losses around all updates from step 1,000 on,
less their mean over the 50 steps before the update, are averaged over updates and seeds. Writes
them as JSON and a picture. Finished trainings are stored and not repeated.
"""

import argparse
import pathlib
import statistics

import keras
import numpy as np
from matplotlib.figure import Figure

import tf_rigl
from benchmarks.methods import BATCH, Study
from tf_rigl._base import files, tables
from tf_rigl._base.store import Store

INTERVAL, BEGIN, EPOCHS, SEEDS = 100, 1_000, 10, 5
BEFORE, AFTER, WINDOW = 50, 90, 5  # Steps.

# Label: optimizer, its learning rate, and what slots begin at.
KINDS = {
    "Adam, slots at zero": (keras.optimizers.Adam, {}, 1e-3, "zero"),
    "Adam, slots at the mean": (keras.optimizers.Adam, {}, 1e-3, "mean"),
    "SGD with momentum": (keras.optimizers.SGD, {"momentum": 0.9}, 0.02, "zero"),
}


class Losses(keras.callbacks.Callback):
    """Takes the loss of each batch from the running means that Keras shows."""

    def __init__(self):
        super().__init__()
        self.values = []

    def on_epoch_begin(self, epoch, logs=None):
        self._sum = 0.0

    def on_train_batch_end(self, batch, logs=None):
        total = logs["loss"] * (batch + 1)
        self.values.append(total - self._sum)
        self._sum = total


def losses(study, label, seed):
    """Trains once, and returns the loss of each batch."""
    optimizer, arguments, rate, slots = KINDS[label]
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    method = tf_rigl.methods.RigL(update_interval=INTERVAL, end_step=10**6, slots=slots)
    model = tf_rigl.sparsify(study.plan.make(), method, 0.9, seed=seed)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer(rate, **arguments), loss)
    seen = Losses()
    x, y = study.train
    whole = len(x) // BATCH * BATCH  # All batches count alike.
    model.fit(x[:whole], y[:whole], BATCH, EPOCHS, verbose=0, callbacks=[seen])
    return seen.values


def around(values):
    """Returns the losses around each update, less the mean before it: (updates, steps)."""
    values, found = np.array(values), []
    for update in range(BEGIN, len(values) - AFTER, INTERVAL):
        part = values[update - BEFORE : update + AFTER]
        found.append(part - part[:BEFORE].mean())
    return np.array(found)


def summary(runs):
    """Returns the mean curve over seeds, and the rise over the 50 steps from an update on."""
    curves = [around(values).mean(axis=0) for values in runs]
    rises = [float(curve[BEFORE : BEFORE + 50].mean()) for curve in curves]
    level = statistics.fmean(float(np.mean(values[BEGIN:])) for values in runs)
    return {
        "curve": np.mean(curves, axis=0).tolist(),
        "rises": rises,
        "loss": level,
        "last_epochs": [float(np.mean(values[-len(values) // EPOCHS :])) for values in runs],
    }


def draw(results, path):
    """Draws the mean curves, smoothed over a few steps."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    steps = np.arange(-BEFORE, AFTER).reshape(-1, WINDOW).mean(axis=1)
    for label, result in results.items():
        curve = np.array(result["curve"]).reshape(-1, WINDOW).mean(axis=1)
        axes.plot(steps, curve, label=label)
    axes.axvline(0, color="black", linewidth=0.8, linestyle=":")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(
        xlabel="steps from the update of the masks",
        ylabel="training loss, less its mean before the update",
        title="RigL, MLP at 0.9 sparsity, an update every 100 steps",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="runs/cold_start", type=pathlib.Path)
    output = parser.parse_args().output
    store, study, results, rows = Store(output / "runs"), Study("MLP"), {}, []
    for label in KINDS:
        runs = []
        for seed in range(SEEDS):
            name = f"{label.replace(', ', '-').replace(' ', '_')}-{seed}"
            found = store.get(name)
            if found is None:
                found = losses(study, label, seed)
                store.add(name, found)
                print(name, f"{np.mean(found[-400:]):.4f}", flush=True)
            runs.append(found)
        results[label] = summary(runs)
        rise, end = (
            tables.mean_and_spread(results[label][key], digits=4)
            for key in ("rises", "last_epochs")
        )
        rows.append([label, f"{results[label]['loss']:.4f}", rise, end])
    header = ["", "loss from step 1,000 on", "rise over 50 steps", "loss of the last epoch"]
    print("\n".join(tables.markdown(header, rows)))
    files.write_text(output / "cold_start.json", files.to_json(results))
    draw(results, output / "cold_start.png")


if __name__ == "__main__":
    main()
