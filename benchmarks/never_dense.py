"""The memory that training with RigL takes, against the width of two block-sparse layers.

    python benchmarks/never_dense.py

trains two layers of N units at density 1/256 (blocks of 64) with Adam, for four batches of 16 with
an update of RigL, each width in a process of its own. It measures the peak memory of the process
and writes JSON and a plot next to this file. The dense line
is what the kernels, their gradients and Adam's slots would take in float32.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import time

WIDTHS = (4096, 8192, 16384, 32768, 65536, 131072)
LAYERS, BLOCK, DENSITY, BATCH = 2, 64, 1 / 256, 16
HERE = pathlib.Path(__file__)


def peak() -> float:
    """Returns the largest memory that this process has had, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def measure(width) -> dict:
    """Trains in this process; returns what it took."""
    import keras
    import numpy as np

    import tf_rigl

    dense = tf_rigl.block_sparse.Dense
    inputs = keras.Input((width,))
    x = inputs
    for seed in range(LAYERS):
        x = dense(width, "relu", block_size=BLOCK, density=DENSITY, seed=seed)(x)
    outputs = keras.layers.Dense(10)(x)
    method = tf_rigl.methods.RigL(update_interval=2, end_step=100)
    imported = peak()
    started = time.perf_counter()
    model = tf_rigl.SparseModel(inputs, outputs, method=method)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss)
    before = [item.layer.places.numpy() for item in model.masked_weights]
    x = np.random.default_rng(0).normal(size=(4 * BATCH, width)).astype("float32")
    model.fit(x, np.arange(len(x)) % 10, batch_size=BATCH, verbose=0, shuffle=False)
    moved = [
        float((old != item.layer.places.numpy()).mean())
        for old, item in zip(before, model.masked_weights, strict=True)
    ]
    return {
        "width": width,
        "seconds": time.perf_counter() - started,
        "imported_gb": imported,
        "peak_gb": peak(),
        "moved": moved,
        "weights_and_slots_gb": LAYERS * 3 * 4 * DENSITY * width**2 / 1e9,
        "dense_gb": LAYERS * 4 * 4 * width**2 / 1e9,
    }


def plot(rows, path):
    """Draws peak memory against width, beside the dense line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    widths = [row["width"] for row in rows]
    axes.loglog(
        widths,
        [row["dense_gb"] for row in rows],
        "--",
        color="gray",
        label="dense weights, gradients, slots",
    )
    axes.loglog(widths, [row["peak_gb"] for row in rows], "o-", label="block-sparse, whole process")
    needed = [row["weights_and_slots_gb"] for row in rows]
    axes.loglog(widths, needed, ":", color="tab:blue", label="block-sparse, weights and slots")
    axes.set_xlabel("units of each of two layers")
    axes.set_ylabel("memory, GB")
    axes.set_title("RigL at density 1/256 with Adam, an update included")
    axes.legend()
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, help="measure one width, in this process")
    parser.add_argument("--largest", type=int, default=WIDTHS[-1])
    options = parser.parse_args()
    if options.width:
        print(json.dumps(measure(options.width)))
        return
    rows = []
    for width in (width for width in WIDTHS if width <= options.largest):
        command = [sys.executable, str(HERE), "--width", str(width)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        row = rows[-1]
        print(
            f"{width:7} units: {row['peak_gb']:.2f} GB at the peak (before training "
            f"{row['imported_gb']:.2f}), dense {row['dense_gb']:.1f} GB, {row['seconds']:.0f} s",
            flush=True,
        )
    HERE.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    plot(rows, HERE.with_suffix(".png"))


if __name__ == "__main__":
    main()
