"""Time and memory of block-sparse training relative to dense training, measured in one run.

    python benchmarks/block_sparse.py

prints the following, and writes it next to this file as JSON and as a plot:

- the time per training step with `compute="sparse"` over dense, plain and with
  `jit_compile=True`, of an MLP and of a Transformer with wide feed-forward blocks, at several
  densities and block sizes. All models take turns in each round, and the ratio is that of the
  medians. RigL moves the blocks: one step in 100 is an update, which is timed separately. The
  Transformer is measured with all block sizes at density 0.1 only;
- the memory of weights and of Adam's slots over dense;
- the time per step of two layers of several widths, compared with perfect scaling.
"""

import argparse
import functools
import gc
import json
import os
import pathlib

import keras
import matplotlib
import numpy as np
import tensorflow as tf

import tf_rigl
from tf_rigl._base import tables
from tf_rigl._base.timing import in_turns
from tf_rigl.training import loop

INTERVAL = 100  # Steps from one update to the next.
HEAD = "head"


def mlp():
    """Three hidden layers of 2048 units."""
    hidden = [keras.layers.Dense(2048, activation="relu") for _ in range(3)]
    layers = [keras.Input((784,)), *hidden, keras.layers.Dense(10, name=HEAD)]
    return keras.Sequential(layers)


def transformer(width=512, heads=8, feed_forward=4096, length=64, blocks=4):
    """An encoder whose feed-forward layers are eight times as wide as the others."""
    inputs = x = keras.Input((length, width))
    for _ in range(blocks):
        attention = keras.layers.MultiHeadAttention(heads, width // heads)(x, x)
        x = keras.layers.LayerNormalization()(x + attention)
        hidden = keras.layers.Dense(feed_forward, activation="relu")(x)
        x = keras.layers.LayerNormalization()(x + keras.layers.Dense(width)(hidden))
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, keras.layers.Dense(10, name=HEAD)(x))


def residual(size=28, widths=(128, 256, 512)):
    """3x3 convolutions with shortcuts; each stage has twice the channels at half the size."""
    same = {"padding": "same", "use_bias": False}
    inputs = keras.Input((size, size, 3))
    x = keras.layers.Conv2D(widths[0], 3, activation="relu", name="stem", **same)(inputs)
    for stage, width in enumerate(widths):
        for unit in range(2):
            strides = 2 if stage and not unit else 1
            y = keras.layers.Conv2D(width, 3, strides=strides, **same)(x)
            y = keras.layers.ReLU()(keras.layers.BatchNormalization()(y))
            y = keras.layers.Conv2D(width, 3, **same)(y)
            y = keras.layers.BatchNormalization()(y)
            if strides == 2:
                x = keras.layers.Conv2D(width, 1, strides=2, **same)(x)
            x = keras.layers.ReLU()(keras.layers.Add()([x, y]))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(10, name=HEAD)(x))


def resnet50():
    """ResNet-50 of `keras.applications`."""
    return keras.applications.ResNet50(weights=None, input_shape=(64, 64, 3), classes=10)


def ends(model):
    """Returns the names of the first convolution and the last layer, which stay dense."""
    names = {layer.name for layer in model.layers}
    return sorted(names & {HEAD, "stem", "conv1_conv", "predictions"})


def pair(width):
    """Two hidden layers, each with as many units as inputs."""
    hidden = [keras.layers.Dense(width, activation="relu") for _ in range(2)]
    layers = [keras.Input((width,)), *hidden, keras.layers.Dense(10, name=HEAD)]
    return keras.Sequential(layers)


def read(loss):
    """Waits for a loss."""
    return loss.numpy()


class Running:
    """A compiled model, dense or sparse, whose steps are called one by one."""

    def __init__(self, model, batch_size, jit_compile):
        rng = np.random.default_rng(0)
        x = rng.standard_normal((batch_size, *model.input_shape[1:]), np.float32)
        data = tf.data.Dataset.from_tensors((x, rng.integers(0, 10, batch_size))).repeat()
        self.model = model
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(), loss, jit_compile=jit_compile)
        model.fit(data, steps_per_epoch=2, verbose=0)
        self.iterator = iter(data)

    def step(self):
        """Runs an ordinary step."""
        if isinstance(self.model, tf_rigl.SparseModel):
            loop.of(self.model).steps_taken = 1
        return self.model.train_function(self.iterator)["loss"]

    def update_seconds(self, rounds):
        """Returns the median time of an update step."""

        def update():
            loop.of(self.model).steps_taken = INTERVAL
            return self.model.train_function(self.iterator)["loss"]

        return in_turns({"update": update}, rounds, wait=read)["update"]

    def bytes(self):
        """Returns the bytes of weights, of block positions, and of the optimizer's slots."""
        variables = [*self.model.weights, *self.model.optimizer.variables]
        return sum(keras.ops.convert_to_numpy(v).nbytes for v in variables)


def compare(make, batch_size, cases, jit_compile, rounds, steps):
    """Times a dense model and sparse ones of several densities and block sizes, in turns.

    Args:
        make: function that makes the dense model.
        batch_size: int.
        cases: list of (density, block size or pattern).
        jit_compile: bool.
        rounds, steps: int, see `in_turns`.

    Returns:
        A dict for JSON.
    """
    dense = make()
    running = {"dense": Running(dense, batch_size, jit_compile)}
    for density, size in cases:
        sparse = tf_rigl.sparsify(
            dense,
            tf_rigl.methods.RigL(update_interval=INTERVAL, end_step=10**9),
            sparsity=1 - density,
            distribution="uniform_all",
            pattern=f"channels_{size}x{size}" if isinstance(size, int) else size,
            exclude=ends(dense),
            seed=0,
            compute="sparse",
        )
        running[density, size] = Running(sparse, batch_size, jit_compile)
    functions = {name: each.step for name, each in running.items()}
    seconds = in_turns(functions, rounds, steps, wait=read)
    reference = running.pop("dense").bytes()
    rows = []
    for (density, size), each in running.items():
        step, update = seconds[density, size], each.update_seconds(rounds)
        amortised = ((INTERVAL - 1) * step + update) / INTERVAL
        rows.append(
            {
                "density": density,
                "block_size": size,
                "reached": 1 - each.model.sparsity,
                "milliseconds": 1000 * step,
                "update_milliseconds": 1000 * update,
                "times_faster": seconds["dense"] / amortised,
                "memory": each.bytes() / reference,
            }
        )
    keras.backend.clear_session()
    gc.collect()
    return {"dense_milliseconds": 1000 * seconds["dense"], "rows": rows}


def show(name, result):
    """Prints a result of `compare`."""
    print(f"\n{name}: dense {result['dense_milliseconds']:.1f} ms")
    header = ["density", "block", "reached", "ms", "update ms", "times faster", "memory"]
    rows = [
        [
            str(row["density"]),
            str(row["block_size"]),
            f"{row['reached']:.3f}",
            f"{row['milliseconds']:.1f}",
            f"{row['update_milliseconds']:.1f}",
            f"{row['times_faster']:.2f}",
            f"{row['memory']:.3f}",
        ]
        for row in result["rows"]
    ]
    print("\n".join(tables.text(header, rows)), flush=True)


def plot(widths, path):
    """Draws step times, relative to dense, against density and against width."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    points = [
        (width, row["reached"], row["density"], 1 / row["times_faster"])
        for width, result in widths.items()
        for row in result["rows"]
    ]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for width in widths:
        line = [(reached, ratio) for w, reached, _, ratio in points if w == width]
        left.plot(*zip(*line, strict=True), "o-", label=f"{width} units")
    ends = [min(p[1] for p in points), max(p[1] for p in points)]
    left.plot(ends, ends, "k--", label="perfect scaling")
    left.set(xscale="log", yscale="log", xlabel="density", ylabel="step time over dense")
    for density in dict.fromkeys(p[2] for p in points):
        line = [(w, ratio, reached) for w, reached, d, ratio in points if d == density]
        (drawn,) = right.plot(*zip(*[p[:2] for p in line], strict=True), "o-", label=f"{density}")
        perfect = [p[2] for p in line]
        right.plot([p[0] for p in line], perfect, "--", color=drawn.get_color(), linewidth=1)
    right.set(xscale="log", yscale="log", xlabel="units of each layer")
    right.set_xticks(list(widths), [str(width) for width in widths])
    right.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    left.legend(frameon=False)
    right.legend(frameon=False, title="density")
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default=pathlib.Path(__file__).with_suffix(".json"))
    parser.add_argument("--quick", action="store_true", help="density 0.1, two sizes, few rounds")
    parser.add_argument("--only", default="", help="models with this text in their name")
    parser.add_argument("--plain", action="store_true", help="not with jit_compile=True")
    options = parser.parse_args()
    output = pathlib.Path(options.output)

    densities, sizes, widths = (0.05, 0.1, 0.2), (16, 32, 64, 128), (1024, 2048, 4096, 8192)
    if options.quick:
        densities, sizes, widths = (0.1,), (32, 64), (1024, 2048)
    every = [(density, size) for density in densities for size in sizes]
    some = [case for case in every if case[0] == 0.1 or case[1] == 64]
    # Name: model, batch size, cases, rounds, steps.
    models = {
        "MLP 3x2048": (mlp, 256, every, 3 if options.quick else 9, 3),
        "Transformer 4x(512, 4096)": (transformer, 16, some, 3 if options.quick else 5, 1),
    }
    narrow = ["channels_32x32", "channels_1x32", "channels_1x64"]
    convolutions = [(0.125, pattern) for pattern in narrow]
    models["ResNet-like, 3x3"] = (residual, 16, convolutions, 3 if options.quick else 5, 1)
    models["ResNet50 at 64x64"] = (resnet50, 16, [(0.2, "compact")], 3 if options.quick else 5, 1)
    models = {name: row for name, row in models.items() if options.only in name}
    widths = widths if options.only in "Two layers" else ()
    result = {"cores": os.cpu_count(), "load": os.getloadavg(), "models": [], "widths": {}}
    for name, (make, batch_size, cases, rounds, steps) in models.items():
        for jit_compile in (False,) if options.plain else (False, True):
            row = compare(make, batch_size, cases, jit_compile, rounds, steps)
            result["models"].append({"model": name, "jit_compile": jit_compile, **row})
            show(f"{name}, {'jit_compile' if jit_compile else 'plain'}", row)
    for width in widths:
        cases = [(density, 64) for density in densities]
        make = functools.partial(pair, width)
        result["widths"][width] = compare(make, 256, cases, False, 3 if options.quick else 5, 2)
        show(f"Two layers of {width} units, plain", result["widths"][width])
    output.write_text(json.dumps(result, indent=1) + "\n")
    if widths:
        plot(result["widths"], output.with_suffix(".png"))


if __name__ == "__main__":
    main()
