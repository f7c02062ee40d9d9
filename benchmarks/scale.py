"""Time and memory of masks and their updates, from 1 to 200 million parameters.

    python benchmarks/scale.py

measures each model in a process of its own. It prints the following, and writes it next to this
file as JSON and as a plot:

- the time to draw the initial masks, of an ordinary training step, of an update step (which
  changes the masks), and of the change of masks alone, at 90% sparsity with RigL, SGD with
  momentum and batches of one example, so that weights take nearly all the time;
- the memory of weights, masks and slots, and the peak memory that each of these steps adds;
- the same for an equal number of parameters in one kernel, in four and in fifty, relative to the
  largest kernel;
- the time per step under `MirroredStrategy` on two logical devices, mask updates every 100
  steps included, over dense Keras under the same strategy. Both take turns in each round, and
  the ratio is that of the medians.

The sizes of tensors are those that the allocator of TensorFlow's x86 builds counts.
"""

import argparse
import functools
import gc
import json
import math
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time
import tracemalloc

import keras
import matplotlib
import numpy as np
import tensorflow as tf

import tf_rigl
from tf_rigl._base import tables
from tf_rigl._base.timing import in_turns
from tf_rigl.training import loop

INTERVAL = 100  # Steps from one update to the next.
SIZES = (1, 3, 10, 30, 100, 200)  # Millions of parameters, in four kernels.
KERNELS = (1, 4, 50)  # Numbers of kernels in the second part.
MEMORY_ROUNDS = 3
DEVICE = "CPU:0"
GB = 1e9


# The functions below run in a process of their own, with one model.


def peak_of(function):
    """Returns the peak bytes that a function allocates.

    TensorFlow keeps freed memory, so the size of the process does not show the peak; its
    allocator does. The peak of NumPy is added, although the two may not occur at once.
    """
    gc.collect()
    memory = tf.config.experimental
    memory.reset_memory_stats(DEVICE)
    before = memory.get_memory_info(DEVICE)["current"]
    tracemalloc.start()
    function()
    of_numpy = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return memory.get_memory_info(DEVICE)["peak"] - before + of_numpy


class Sparse:
    """A sparse model of square kernels, and the functions to measure."""

    def __init__(self, parameters, kernels):
        width = round(math.sqrt(parameters / kernels))
        layers = [keras.layers.Dense(width, "tanh", use_bias=False) for _ in range(kernels)]
        dense = keras.Sequential([keras.Input((width,)), *layers])
        self.method = tf_rigl.methods.RigL(update_interval=INTERVAL, end_step=10**9)
        began = time.perf_counter()
        self.model = tf_rigl.sparsify(dense, self.method, 0.9, "uniform_all", seed=0)
        self.sparsify_seconds = time.perf_counter() - began
        self.model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
        rng = np.random.default_rng(0)
        x = rng.standard_normal((1, width), np.float32)
        data = tf.data.Dataset.from_tensors((x, np.zeros_like(x))).repeat()
        self.model.fit(data, steps_per_epoch=1, verbose=0)
        self.iterator = iter(data)
        self.items = self.model.masked_weights
        self.gradients = None
        self.compiled_change = tf.function(self._change, autograph=False)

    def draw(self):
        """Draws new masks, one after the other."""
        for number, item in enumerate(self.items):
            self.method.initial_mask(item, 0, number)

    def step(self):
        """Runs an ordinary step."""
        self._train(1)

    def update(self):
        """Runs an update step: forward, backward, and the change of masks."""
        self._train(INTERVAL)

    def change(self):
        """Changes the masks alone, by random gradients."""
        if self.gradients is None:
            shapes = [item.weight.shape for item in self.items]
            self.gradients = [tf.random.stateless_normal(shape, [0, 0]) for shape in shapes]
        active = [item.active() for item in self.items]
        counts = tf.constant(self.method.plan(INTERVAL, active), tf.int32)
        self.compiled_change(self.gradients, counts, tf.constant(INTERVAL))
        self.items[-1].mask.numpy()

    def _change(self, gradients, counts, step):
        graph = loop.of(self.model).step
        graph._change(list(zip(graph.records, gradients, strict=True)), counts, step)

    def _train(self, step):
        loop.of(self.model).steps_taken = step
        self.model.train_function(self.iterator)["loss"].numpy()

    def bytes(self):
        """Returns the bytes of weights, masks, and the optimizer's slots."""

        def total(variables):
            return sum(math.prod(v.shape) * tf.as_dtype(v.dtype).size for v in variables)

        return {
            "weights": total(item.weight for item in self.items),
            "masks": total(item.mask for item in self.items),
            "slots": total(self.model.optimizer.variables),
        }


def measure(parameters, kernels):
    """Measures times and peaks of one model; returns a dict for JSON."""
    sparse = Sparse(parameters, kernels)
    gc.collect()
    what = {name: getattr(sparse, name) for name in ("draw", "step", "update", "change")}
    rounds = 5 if parameters <= 3e7 else 3
    seconds = in_turns(what, rounds)
    peaks = {
        name: statistics.median(peak_of(function) for _ in range(MEMORY_ROUNDS))
        for name, function in what.items()
    }
    stored = sparse.bytes()
    sizes = [math.prod(item.weight.shape) for item in sparse.items]
    return {
        "parameters": sum(sizes),
        "kernels": kernels,
        "seconds": {"sparsify": sparse.sparsify_seconds, **seconds},
        "bytes": stored,
        "largest_weight_bytes": 4 * max(sizes),
        "process_peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "added_at_peak_bytes": peaks,
        "change_over_largest_weight": peaks["change"] / (4 * max(sizes)),
    }


def lenet():
    """LeNet-300-100."""
    return _mlp(300, 100)


def wide():
    """Three hidden layers of 1024 units."""
    return _mlp(1024, 1024, 1024)


def _mlp(*units):
    hidden = [keras.layers.Dense(n, activation="relu") for n in units]
    return keras.Sequential([keras.Input((784,)), *hidden, keras.layers.Dense(10)])


def mirrored(rounds):
    """Times steps on two logical devices, dense and sparse in turns; returns a list for JSON."""
    device = tf.config.list_physical_devices("CPU")[0]
    logical = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(device, logical)
    # TensorFlow mixes up the sums of two strategies over the same devices.
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    rows = []
    for name, make in {"LeNet-300-100": lenet, "MLP 3x1024": wide}.items():
        rng = np.random.default_rng(0)
        x, y = rng.standard_normal((1024, 784), np.float32), rng.integers(0, 10, 1024)
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(128).cache().repeat()
        method = tf_rigl.methods.RigL(update_interval=INTERVAL, end_step=10**9)
        with strategy.scope():
            dense = make()
            models = {"dense": dense, "sparse": tf_rigl.sparsify(dense, method, 0.9, seed=0)}
            for model in models.values():
                loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
                model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
        iterators = {}
        for kind, model in models.items():
            model.fit(data, steps_per_epoch=INTERVAL + 1, verbose=0)
            iterators[kind] = iter(strategy.experimental_distribute_dataset(data))
        functions = {
            kind: functools.partial(model.train_function, iterators[kind])
            for kind, model in models.items()
        }
        wait = lambda logs: float(logs["loss"])  # noqa: E731
        medians = in_turns(functions, rounds, calls=INTERVAL, wait=wait, warm_up=0)
        rows.append(
            {
                "model": name,
                "milliseconds": {kind: 1000 * value for kind, value in medians.items()},
                "ratio": medians["sparse"] / medians["dense"],
            }
        )
    return rows


# The functions below run in the main process, which starts the others.


def alone(task, *arguments):
    """Calls a function of this file in a process of its own, and returns its result."""
    command = [sys.executable, __file__, "--alone", json.dumps([task, *arguments])]
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def machine():
    """Describes the machine."""
    names = [
        line.partition(":")[2].strip()
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load": os.getloadavg(),
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }


def show(rows):
    """Prints a table of rows from `measure`."""
    parts = ("draw", "step", "update", "change")
    header = ["params", "kernels", *(f"{part}, ms" for part in parts), "stored, GB"]
    header += [*(f"{part} adds, GB" for part in parts), "change adds / largest"]
    cells = [
        [
            f"{row['parameters'] / 1e6:.4g}M",
            str(row["kernels"]),
            *(f"{1000 * row['seconds'][part]:.1f}" for part in parts),
            f"{sum(row['bytes'].values()) / GB:.3f}",
            *(f"{row['added_at_peak_bytes'][part] / GB:.3f}" for part in parts),
            f"{row['change_over_largest_weight']:.1f}",
        ]
        for row in rows
    ]
    print("\n".join(tables.text(header, cells)), flush=True)


def growth(rows, value):
    """Returns the exponent with which a value grows over the upper half of the sizes."""
    points = [(row["parameters"], value(row)) for row in rows[len(rows) // 2 - 1 :]]
    logarithms = np.log(points)
    return float(np.polyfit(logarithms[:, 0], logarithms[:, 1], 1)[0])


def plot(rows, path):
    """Draws times and memory against the number of parameters, with lines of slope 1."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    parameters = [row["parameters"] for row in rows]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    labels = {
        "draw": "drawing masks",
        "step": "ordinary step",
        "update": "update step",
        "change": "change of masks alone",
    }
    for name, label in labels.items():
        left.plot(parameters, [row["seconds"][name] for row in rows], "o-", label=label)
    stored = [sum(row["bytes"].values()) for row in rows]
    right.plot(parameters, [n / GB for n in stored], "ko-", label="weights, masks, slots")
    for name, label in labels.items():
        added = [row["added_at_peak_bytes"][name] / GB for row in rows]
        right.plot(parameters, added, "o-", label=f"added: {label}")
    for axes, last in ((left, rows[-1]["seconds"]["update"]), (right, stored[-1] / GB)):
        line = [last * n / parameters[-1] for n in parameters]
        axes.plot(parameters, line, "k--", linewidth=1, label="slope 1")
        axes.set(xscale="log", yscale="log", xlabel="parameters")
        axes.legend(frameon=False, fontsize=8)
    left.set_ylabel("seconds")
    right.set_ylabel("GB")
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default=pathlib.Path(__file__).with_suffix(".json"))
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES, help="in millions")
    parser.add_argument("--in-kernels", type=float, default=50, help="second part, in millions")
    parser.add_argument("--rounds", type=int, default=11, help="rounds with two replicas")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        task, *arguments = json.loads(options.alone)
        print(json.dumps({"measure": measure, "mirrored": mirrored}[task](*arguments)))
        return
    output = pathlib.Path(options.output)

    result = {"machine": machine(), "sizes": [], "kernels": []}
    print("90% sparsity, RigL, SGD with momentum, batch 1", flush=True)
    for millions in options.sizes:
        result["sizes"].append(alone("measure", 1e6 * millions, 4))
        print(f"  {millions:g} million parameters measured", flush=True)
    show(result["sizes"])
    if len(options.sizes) > 1:
        result["growth"] = {
            "update_seconds": growth(result["sizes"], lambda row: row["seconds"]["update"]),
            "update_bytes": growth(
                result["sizes"],
                lambda row: sum(row["bytes"].values()) + row["added_at_peak_bytes"]["update"],
            ),
        }
        print(f"  exponents of growth: {result['growth']}")
    print("The same number of parameters in few kernels and in many", flush=True)
    for kernels in KERNELS:
        result["kernels"].append(alone("measure", 1e6 * options.in_kernels, kernels))
        print(f"  {kernels} kernels measured", flush=True)
    show(result["kernels"])
    print("Time per step with two replicas, sparse over dense", flush=True)
    result["mirrored"] = alone("mirrored", options.rounds)
    for row in result["mirrored"]:
        times = row["milliseconds"]
        print(
            f"  {row['model']:14} dense {times['dense']:.2f} ms, sparse {times['sparse']:.2f} ms: "
            f"{row['ratio']:.3f}",
            flush=True,
        )
    output.write_text(json.dumps(result, indent=1) + "\n")
    plot(result["sizes"], output.with_suffix(".png"))


if __name__ == "__main__":
    main()
