"""What blocks cost in accuracy, and what they gain in LiteRT: the picture that a user chooses by.

    python -m benchmarks.block_accuracy

trains networks on 8,000 images of Fashion-MNIST with three seeds: dense, by RigL with single
entries and with blocks of many shapes, by SET, and by gradual pruning in blocks from the trained
dense network. All train for the epochs of dense; with `--equal-time`, block-sparse ones train
once more for as many epochs as fit into the time of dense, by step times that are measured in
turns. Then the latency of all LiteRT files is measured in one run. Writes accuracies, times and
differences from dense, paired by seed, as JSON, Markdown and a picture. Finished trainings are
stored and not repeated.
"""

import argparse
import itertools
import json
import pathlib
import statistics
import tempfile
import time
import warnings

import keras
import numpy as np
from matplotlib.figure import Figure

import tf_rigl
from tf_rigl import data, methods, schedules
from tf_rigl._base import files, tables
from tf_rigl._base.timing import in_turns

EXAMPLES, SEEDS, BATCH, INTERVAL = 8_000, 3, 100, 25
SPARSITIES = (0.875, 0.75)
ENDS = ("stem", "head")  # They stay dense.
SHAPE = (28, 28, 1)


def residual():
    """3x3 convolutions with shortcuts: 64 channels at 14x14, 128 at 7x7, 256 at 4x4."""
    same = {"padding": "same", "use_bias": False}
    inputs = keras.Input(SHAPE)
    x = keras.layers.Conv2D(64, 3, strides=2, name="stem", **same)(inputs)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    for width in (128, 256):
        y = keras.layers.Conv2D(width, 3, strides=2, **same)(x)
        y = keras.layers.ReLU()(keras.layers.BatchNormalization()(y))
        y = keras.layers.Conv2D(width, 3, **same)(y)
        y = keras.layers.BatchNormalization()(y)
        x = keras.layers.Conv2D(width, 1, strides=2, **same)(x)
        x = keras.layers.ReLU()(keras.layers.Add()([x, y]))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(10, name="head")(x))


def mlp():
    """Three layers of 1024 units."""
    layers = [keras.Input(SHAPE), keras.layers.Flatten()]
    layers += [keras.layers.Dense(1024, activation="relu") for _ in range(3)]
    return keras.Sequential([*layers, keras.layers.Dense(10, name="head")])


def transformer(width=128, blocks=3):
    """Encoders of width 128 on the 28 rows of an image, with feed-forward layers of 512."""
    inputs = keras.Input(SHAPE)
    x = keras.layers.Dense(width, name="stem")(keras.layers.Reshape(SHAPE[:2])(inputs))
    places = keras.layers.Embedding(SHAPE[0], width, name="places")
    x = keras.layers.Add()([x, places(np.arange(SHAPE[0])[None])])
    for number in range(blocks):
        y = keras.layers.LayerNormalization()(x)
        attention = keras.layers.MultiHeadAttention(4, width // 4, name=f"attention_{number}")
        x = keras.layers.Add()([x, attention(y, y)])
        y = keras.layers.LayerNormalization()(x)
        y = keras.layers.Dense(4 * width, activation="gelu", name=f"wide_{number}")(y)
        x = keras.layers.Add()([x, keras.layers.Dense(width, name=f"narrow_{number}")(y)])
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.LayerNormalization()(x))
    return keras.Model(inputs, keras.layers.Dense(10, name="head")(x))


MATRICES = [("RigL", p) for p in ("unstructured", "1x32", "4x64", "32x32")]
CONVOLUTIONS = [("RigL", p) for p in ("unstructured", "1x32", "1x64", "32x32")]
CONVOLUTIONS += [("pruning", "1x32"), *(("RigL", p) for p in ("16x16", "8x32", "4x32", "1x16"))]
CONVOLUTIONS += [("SET", "1x32")]


def momentum(rate):
    """SGD for networks with batch normalisation."""
    return keras.optimizers.SGD(rate, momentum=0.9, global_clipnorm=5.0)


# Name: function that makes it, optimizer, learning rate, epochs, pairs of method and pattern.
NETWORKS = {
    "residual": (residual, momentum, 0.1, 6, CONVOLUTIONS),
    "MLP": (mlp, keras.optimizers.Adam, 1e-3, 12, MATRICES),
    "Transformer": (transformer, keras.optimizers.Adam, 1e-3, 4, MATRICES),
}


def sparsified(model, method, pattern, sparsity, steps, seed):
    """Returns a sparse model; block-sparse where the method allows it."""
    compute = "masked"
    blocks = pattern if pattern == "unstructured" else f"channels_{pattern}"
    if method == "pruning":
        ramp = schedules.PolynomialDecay(end_step=int(0.75 * steps), frequency=25)
        chosen = methods.MagnitudePruning(ramp)
        sizes = map(int, pattern.split("x"))  # Equal columns, as those of the others.
        blocks = tf_rigl.patterns.Block(*sizes, taps="all", constant_fan_in=True)
    else:
        chosen = getattr(methods, method)(update_interval=INTERVAL, end_step=int(0.75 * steps))
        compute = "masked" if pattern == "unstructured" else "sparse"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Attention stays masked, and small layers are rounded.
        return tf_rigl.sparsify(
            model,
            chosen,
            sparsity,
            distribution="uniform_all",
            exclude=[name for name in ENDS if has(model, name)],
            pattern=blocks,
            compute=compute,
            seed=seed,
        )


def has(model, name):
    """Returns whether a model has a layer of this name."""
    return any(layer.name == name for layer in model.layers)


def compiled(model, optimizer, rate, steps):
    """Compiles a model for so many steps."""
    model.compile(
        optimizer(keras.optimizers.schedules.CosineDecay(rate, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    return model


class Study:
    """The trainings of one network, stored in a folder."""

    def __init__(self, name, folder):
        self.name, self.folder = name, folder / name
        self.make, self.optimizer, self.rate, self.epochs, self.variants = NETWORKS[name]
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays = data.arrays("fashion_mnist")
        self.test = arrays.test
        self.train = tuple(array[:EXAMPLES] for array in arrays.train)

    def file(self, label, seed, end="json"):
        """Returns the path of what a training leaves."""
        return self.folder / f"{'-'.join(map(str, label))}-{seed}.{end}"

    def dense(self, seed):
        """Returns the result of the dense network, and trains it if it must."""
        return self.run(("dense", "", 0.0), seed)

    def run(self, label, seed, epochs=None, kind=()):
        """Returns the result of a training, from its file if there is one."""
        path, epochs = self.file((*label, *kind), seed), epochs or self.epochs
        if not path.exists():
            began = time.perf_counter()
            result = self._trained(label, seed, epochs, kind)
            result["seconds"] = time.perf_counter() - began
            files.write_text(path, files.to_json(result))
            print(self.name, *label, *kind, seed, f"{result['accuracy']:.4f}", flush=True)
        return json.loads(path.read_text())

    def _trained(self, label, seed, epochs, kind):
        method, pattern, sparsity = label
        keras.backend.clear_session()
        keras.utils.set_random_seed(seed)
        steps = epochs * (EXAMPLES // BATCH)
        model, rate = self.make(), self.rate
        if method == "pruning":
            self.dense(seed)
            model = keras.models.load_model(self.file(("dense", "", 0.0), seed, "keras"))
            rate = self.rate / 5
        if method != "dense":
            model = sparsified(model, method, pattern, sparsity, steps, seed)
        compiled(model, self.optimizer, rate, steps)
        model.fit(*self.train, batch_size=BATCH, epochs=epochs, verbose=0)
        accuracy = model.evaluate(*self.test, batch_size=500, verbose=0)[1]
        if method == "dense":  # Pruning begins with it.
            model.save(self.file(label, seed, "keras"))
        return {
            "accuracy": accuracy,
            "epochs": epochs,
            "sparsity": getattr(model, "sparsity", 0.0),
        }

    def all(self, stored=False):
        """Does all trainings for the epochs of dense, or takes the stored ones; by label."""
        labels = [("dense", "", 0.0)]
        labels += [(*v, s) for s, v in itertools.product(SPARSITIES, self.variants)]
        if stored:
            labels = [label for label in labels if self.file(label, SEEDS - 1).exists()]
        return {label: [self.run(label, seed) for seed in range(SEEDS)] for label in labels}

    def ratios(self, sparsity, rounds=5):
        """Returns how many steps of each block-sparse model fit into one of dense.

        Each turn has as many steps as an interval, so that one of them is an update.
        """
        labels = [("dense", "", 0.0)]
        labels += [(*v, sparsity) for v in self.variants if v[1] != "unstructured"]
        calls = {}
        for method, pattern, sparsity in labels:
            if method == "pruning":
                continue
            model = self.make()
            if method != "dense":
                model = sparsified(model, method, pattern, sparsity, 10**6, 0)
            compiled(model, self.optimizer, self.rate, 10**6)
            batch = [array[:BATCH] for array in self.train]
            model.train_on_batch(*batch)
            calls[method, pattern, sparsity] = lambda m=model, b=batch: m.train_on_batch(*b)
        seconds = in_turns(calls, rounds, INTERVAL)
        return {label: seconds[labels[0]] / value for label, value in seconds.items()}

    def in_equal_time(self, sparsity):
        """Trains block-sparse models for the time of dense; returns results by label."""
        path = self.file(("ratios", sparsity), 0)
        if not path.exists():
            ratios = [[*pair] for pair in self.ratios(sparsity).items()]
            files.write_text(path, files.to_json(ratios))
        found = {}
        for label, ratio in json.loads(path.read_text()):
            label, epochs = tuple(label), max(1, round(self.epochs * ratio))
            if label[0] != "dense":
                runs = [self.run(label, seed, epochs, ("time",)) for seed in range(SEEDS)]
                found[label] = [{**run, "ratio": ratio} for run in runs]
        return found

    def latencies(self, labels, rounds=15):
        """Returns milliseconds in LiteRT by label, measured in turns; batch 1, one thread.

        The blocks are random, because the time does not depend on where they are.
        """
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            paths = [f"{folder}/{number}.tflite" for number in range(len(labels))]
            for label, path in zip(labels, paths, strict=True):
                model, compute = self.make(), "dense"
                if label[0] != "dense" and label[1] != "unstructured":
                    model = sparsified(model, "RigL", *label[1:], 10**6, 0)
                    compute = "auto"
                tf_rigl.export_tflite(model, path, batch_size=1, compute=compute)
                keras.backend.clear_session()
            seconds = tf_rigl.export.latency(paths, rounds=rounds)
            sizes = [pathlib.Path(path).stat().st_size for path in paths]
        return {
            label: {"milliseconds": 1000 * value, "bytes": size}
            for label, value, size in zip(labels, seconds, sizes, strict=True)
        }


def rows(results, timed, latencies):
    """Returns a row for each label, with differences from dense paired by seed, in points."""
    dense = [run["accuracy"] for run in results["dense", "", 0.0]]
    reference = latencies["dense", "", 0.0]
    found = []
    for label, runs in results.items():
        values = [run["accuracy"] for run in runs]
        lost = [100 * (value - other) for value, other in zip(values, dense, strict=True)]
        row = {
            "method": label[0],
            "blocks": label[1],
            "sparsity": label[2],
            "reached": runs[0]["sparsity"],
            "accuracies": values,
            "difference": statistics.mean(lost),
            "differences": lost,
            "times_faster": reference["milliseconds"] / latencies[label]["milliseconds"],
            "size": latencies[label]["bytes"] / reference["bytes"],
        }
        if label in timed:
            row["equal_time"] = {
                "epochs": timed[label][0]["epochs"],
                "accuracies": [run["accuracy"] for run in timed[label]],
            }
        found.append(row)
    return found


def table(found):
    """Returns rows as a Markdown table."""
    header = ["method", "blocks", "sparsity", "accuracy, %", "minus dense, points (each seed)"]
    header += ["times faster in LiteRT", "size", "equal time: accuracy, % (epochs)"]
    lines = []
    for row in found:
        each = ", ".join(f"{value:+.2f}" for value in row["differences"])
        timed = row.get("equal_time")
        lines.append(
            [
                row["method"],
                row["blocks"],
                f"{row['reached']:.3f}",
                tables.mean_and_spread(row["accuracies"], scale=100),
                f"{row['difference']:+.2f} ({each})",
                f"{row['times_faster']:.2f}",
                f"{row['size']:.3f}",
                f"{100 * statistics.mean(timed['accuracies']):.2f} ({timed['epochs']})"
                if timed
                else "",
            ]
        )
    return "\n".join(tables.markdown(header, lines, left=(0, 1)))


def draw(studies, path):
    """Draws accuracy minus dense against the speed in LiteRT, a panel for each network."""
    figure = Figure(figsize=(4.8 * len(studies), 4.6), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(studies)))
    for axes, (name, found) in zip(panels, studies.items(), strict=True):
        for color, sparsity in enumerate(SPARSITIES):
            chosen = [row for row in found if row["sparsity"] == sparsity]
            x = [row["times_faster"] for row in chosen]
            y = [row["difference"] for row in chosen]
            axes.plot(x, y, "o", color=f"C{color}", label=f"sparsity {sparsity}")
            for row in chosen:
                label = row["blocks"].replace("unstructured", "single")
                label = label if row["method"] == "RigL" else f"{row['method']} {label}"
                place = row["times_faster"], row["difference"]
                axes.annotate(label, place, xytext=(4, 3), textcoords="offset points", fontsize=7)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.axhline(-1, color="black", linewidth=0.8, linestyle=":")
        axes.set(title=name, xlabel="times faster than dense in LiteRT")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("test accuracy minus dense, points (mean of three seeds)")
    panels[0].legend(frameon=False, loc="lower left")
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="runs/block_accuracy", type=pathlib.Path)
    parser.add_argument("--only", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--train", action="store_true", help="train only, measure nothing")
    parser.add_argument("--stored", action="store_true", help="train nothing")
    parser.add_argument("--equal-time", action="store_true", help="at the first sparsity")
    options = parser.parse_args()
    studies = {}
    for name in options.only:
        study = Study(name, options.output)
        results = study.all(options.stored)
        timed = study.in_equal_time(SPARSITIES[0]) if options.equal_time else {}
        if not options.train:
            studies[name] = rows(results, timed, study.latencies(list(results)))
            print(f"\n{name}\n\n{table(studies[name])}", flush=True)
    if studies:
        files.write_text(options.output / "block_accuracy.json", files.to_json(studies))
        draw(studies, options.output / "block_accuracy.png")


if __name__ == "__main__":
    main()
