"""Low rank beside sparsity, at the same number of parameters.

    python -m benchmarks.factorized

trains a residual network on 10,000 images of Fashion-MNIST with 0.05, 0.1 and 0.2 of the parameters
of its inner kernels and three seeds: factorized without spectral initialisation and Frobenius
decay, with either and with both; by RigL; by gradual pruning; and a dense network made narrower.
The dense one of full size stands beside them. Then the time of a training step, and that of LiteRT,
are measured in turns. Finished trainings are stored and not repeated, and the same command in a
second shell shares the work. Writes JSON and a table. `--stored` trains nothing.
"""

import argparse
import itertools
import pathlib
import statistics
import tempfile
import time
import warnings
from typing import NamedTuple

import keras
import tensorflow as tf

import tf_rigl
from benchmarks.methods import wide_resnet
from tf_rigl import data, factorized, methods, schedules
from tf_rigl._base import files, tables
from tf_rigl._base.store import Store
from tf_rigl._base.timing import in_turns

BATCH, EXAMPLES, EPOCHS, SEEDS, RATE, DECAY = 128, 10_000, 15, 3, 0.1, 5e-4
SIZES = (0.05, 0.1, 0.2)
# Name: initialisation, and whether the decay is that of the product.
FACTORS = {
    "neither": ("layer", False),
    "spectral": ("spectral", False),
    "decay": ("layer", True),
    "both": ("spectral", True),
}
NAMES = (*FACTORS, "RigL", "pruning", "narrower")


class Run(NamedTuple):
    """One training."""

    name: str
    size: float
    seed: int

    @property
    def label(self):
        """The name of its file."""
        return f"{self.name}-{self.size}-{self.seed}"


def inner(model):
    """Returns the number of parameters of all kernels but those of the stem and the head."""
    layers = [layer for layer in model.layers if hasattr(layer, "kernel")]
    return sum(layer.kernel.shape.num_elements() for layer in layers[1:-1])


def dense(width=2.0):
    """Returns the network with so many times 16 channels at its begin, and weight decay."""

    def decaying(layer):
        config = layer.get_config()
        if "kernel_regularizer" in config:
            config["kernel_regularizer"] = keras.regularizers.L2(DECAY / 2)
        return type(layer).from_config(config)

    return keras.models.clone_model(wide_resnet(width=width), clone_function=decaying)


def narrower(size):
    """Returns the widest network with at most so many inner parameters."""
    most = size * inner(dense())
    low, high = 0.05, 2.0
    while high - low > 0.005:
        middle = (low + high) / 2
        low, high = (middle, high) if inner(wide_resnet(width=middle)) <= most else (low, middle)
    return dense(low)


def make(name, size, seed, steps):
    """Returns the model of a run, not compiled."""
    keras.utils.set_random_seed(seed)
    if name == "dense":
        return dense()
    if name == "narrower":
        return narrower(size)
    model = dense()
    if name in FACTORS:
        initialization, is_product = FACTORS[name]
        decay = DECAY if is_product else 0.0
        return factorized.factorize(
            model, parameters=size, initialization=initialization, decay=decay
        )
    often = max(2, steps // 50)
    method = methods.RigL(update_interval=often)
    if name == "pruning":
        method = methods.MagnitudePruning(schedules.PolynomialDecay(frequency=often))
    kernels = [layer.name for layer in model.layers if hasattr(layer, "kernel")]
    ends = [kernels[0], kernels[-1]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tf_rigl.sparsify(
            model, method, 1 - size, distribution="erk", exclude=ends, seed=seed
        )


def compiled(model, steps):
    """Compiles a model for so many steps."""
    rate = keras.optimizers.schedules.CosineDecay(RATE, steps)
    optimizer = keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, global_clipnorm=5.0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return model


class Study:
    """The trainings, with their data."""

    def __init__(self):
        arrays = data.arrays("fashion_mnist")
        (x, y), (test_x, test_y) = arrays.train, arrays.test
        mean, spread = x.mean(), x.std()
        self.train = ((x - mean) / spread)[:EXAMPLES], y[:EXAMPLES]
        self.test = (test_x - mean) / spread, test_y
        self.steps = -(-EXAMPLES // BATCH) * EPOCHS

    def run(self, run):
        """Trains once, and returns the figures."""
        keras.backend.clear_session()
        began = time.perf_counter()
        model = compiled(make(run.name, run.size, run.seed, self.steps), self.steps)
        model.fit(*self.train, batch_size=BATCH, epochs=EPOCHS, verbose=0)
        accuracy = model.evaluate(*self.test, batch_size=1000, verbose=0)[1]
        report = tf_rigl.report(model)
        return {
            "accuracy": accuracy,
            "parameters": report.params,
            "flops": report.flops / report.dense_flops if run.name in ("RigL", "pruning") else None,
            "seconds": time.perf_counter() - began,
        }


def times(study, rounds=5):
    """Returns times of a training step and of LiteRT over dense, by name and size."""
    batch, calls, files_, labels = [array[:BATCH] for array in study.train], {}, [], []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, size in [("dense", 1.0), *itertools.product(("both", "RigL", "narrower"), SIZES)]:
            model = compiled(make(name, size, 0, study.steps), 10**6)
            model.train_on_batch(*batch)
            calls[name, size] = lambda m=model: m.train_on_batch(*batch)
            ready = factorized.merge(model) if name == "both" else model
            files_.append(f"{folder}/{len(files_)}.tflite")
            tf_rigl.export_tflite(ready, files_[-1], batch_size=1)
            labels.append((name, size))
        seconds = in_turns(calls, rounds, 5)
        latencies = tf_rigl.export.latency(files_, rounds=15)
    first = labels[0]
    return {
        f"{name}-{size}": {
            "step": seconds[name, size] / seconds[first],
            "litert": latency / latencies[0],
        }
        for (name, size), latency in zip(labels, latencies, strict=True)
    }


def table(store):
    """Returns the accuracies, and differences from the narrower network, paired by seed."""
    rows = []
    for name in ("dense", *NAMES):
        row = [name]
        for size in (1.0,) if name == "dense" else SIZES:
            found = [store.get(Run(name, size, seed).label) for seed in range(SEEDS)]
            values = [100 * result["accuracy"] for result in found if result]
            row.append(tables.mean_and_spread(values) if values else "-")
        rows.append(row + [""] * (1 + len(SIZES) - len(row)))
    return "\n".join(tables.markdown(["", *map(str, SIZES)], rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="runs/factorized", type=pathlib.Path)
    parser.add_argument("--threads", type=int, default=0, help="of each operation; 0: all")
    parser.add_argument("--stored", action="store_true", help="train nothing")
    parser.add_argument("--no-times", action="store_true", help="measure no times")
    options = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    store, study = Store(options.output / "runs"), Study()
    runs = []
    for seed in range(SEEDS):
        runs += [Run("dense", 1.0, seed)]
        runs += [Run(name, size, seed) for size, name in itertools.product(SIZES, NAMES)]
    seconds = []
    for number, run in enumerate(runs, 1):
        if options.stored or store.get(run.label) is not None:
            continue
        with store.claim(run.label) as mine:
            if mine:
                result = study.run(run)
                store.add(run.label, result)
                seconds.append(result["seconds"])
                left = statistics.fmean(seconds) * (len(runs) - number) / 60
                print(f"[{number}/{len(runs)}, {left:.0f} min] {run}: {result['accuracy']:.4f}")
    print(table(store))
    results = {"accuracies": {run.label: store.get(run.label) for run in runs}}
    if not options.no_times:
        results["times"] = times(study)
        for label, each in results["times"].items():
            print(f"{label}: step {each['step']:.2f}, LiteRT {each['litert']:.2f} of dense")
    files.write_text(options.output / "factorized.json", files.to_json(results))


if __name__ == "__main__":
    main()
