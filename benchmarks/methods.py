"""The methods side by side, each in the setting that is recommended for it.

    python -m benchmarks.methods

trains an MLP and a residual network on Fashion-MNIST, with normalised inputs, by every method, at
three sparsities and with several seeds. Then come what new optimizer slots and the initial weights
of sparse networks are worth. Finished trainings are stored and not repeated, and the same command
in a second shell shares the work (`--threads 1` then). Writes tables of accuracies, FLOPs and
R_s (the entries active at least once), and what each method has over another, paired by seed.
`--stored` trains nothing. `--recorded docs/results/methods` begins from results that were recorded.
"""

import argparse
import itertools
import json
import pathlib
import statistics
import time
import warnings
from typing import NamedTuple

import keras
import tensorflow as tf

import tf_rigl
from tf_rigl import data, methods, schedules
from tf_rigl._base import files, tables
from tf_rigl._base.store import Store
from tf_rigl.callbacks.explored import Exploration

SHAPE, BATCH = (28, 28, 1), 128


def mlp():
    """LeNet-300-100."""
    layers = [keras.Input(SHAPE), keras.layers.Flatten()]
    layers += [keras.layers.Dense(units, activation="relu") for units in (300, 100)]
    return keras.Sequential([*layers, keras.layers.Dense(10)])


def wide_resnet(blocks=2, width=2):
    """WRN-16-2, on images that a strided stem makes 14x14; the depth is 6 * blocks + 4."""
    same = {"padding": "same", "use_bias": False, "kernel_initializer": "he_normal"}

    def activated(x):
        return keras.layers.ReLU()(keras.layers.BatchNormalization()(x))

    inputs = keras.Input(SHAPE)
    x = keras.layers.Conv2D(16, 3, strides=2, **same)(inputs)
    for stage, channels in enumerate((16, 32, 64)):
        units = max(1, round(channels * width))
        for block in range(blocks):
            strides = 2 if stage and not block else 1
            y = activated(x)
            shortcut = x if block else keras.layers.Conv2D(units, 1, strides=strides, **same)(y)
            y = activated(keras.layers.Conv2D(units, 3, strides=strides, **same)(y))
            x = keras.layers.Add()([shortcut, keras.layers.Conv2D(units, 3, **same)(y)])
    x = keras.layers.GlobalAveragePooling2D()(activated(x))
    return keras.Model(inputs, keras.layers.Dense(10)(x))


class Network(NamedTuple):
    """What is trained, and how."""

    make: object
    sparsities: tuple
    seeds: int
    examples: int
    epochs: int
    rate: float


NETWORKS = {
    "MLP": Network(mlp, (0.9, 0.95, 0.98), 5, 60_000, 10, 0.1),
    "WRN-10-1": Network(lambda: wide_resnet(1, 1), (0.8, 0.9, 0.95), 3, 10_000, 15, 0.1),
}


def method(name, steps):
    """Makes a method for a run of so many steps: masks change 50 times, or 20 if it says so."""
    often, seldom = max(2, steps // 50), max(2, steps // 20)
    itop = {"drop_fraction": 0.5, "end_step": 1.0, "apply_optimizer_on_update": True}
    made = {
        "static": lambda: methods.Static(),
        "SET": lambda: methods.SET(update_interval=often),
        "RigL": lambda: methods.RigL(update_interval=often),
        "RigL, 10 batches": lambda: methods.RigL(update_interval=often, gradient_batches=10),
        "SET-ITOP": lambda: methods.SET(update_interval=often, **itop),
        "RigL-ITOP": lambda: methods.RigL(update_interval=seldom, **itop),
        "GraNet": lambda: methods.GraNet(update_interval=often),
        "GraNet, dense": lambda: methods.GraNet(update_interval=often, initial_sparsity=0.0),
        "SRigL": lambda: methods.SRigL(update_interval=often),
        "MEST": lambda: methods.MEST(update_interval=often),
        "MEST, soft": lambda: methods.MEST(update_interval=often, soft=True),
        "AC/DC": lambda: methods.ACDC(),
        "SNFS": lambda: methods.SNFS(update_interval=often),
        "pruning": lambda: methods.MagnitudePruning(schedules.PolynomialDecay(frequency=often)),
        "STE": lambda: methods.STE(),
        "GraSP": lambda: methods.GraSP(),
        "SNIP": lambda: methods.SNIP(),
    }
    return made[name]()


NAMES = ("static", "SET", "RigL", "RigL-ITOP", "GraNet", "SRigL", "MEST", "AC/DC", "SNFS")
NAMES += ("pruning", "STE")
MORE = ("RigL, 10 batches", "SET-ITOP", "GraNet, dense", "MEST, soft", "SNIP", "GraSP")
# What the papers lead one to expect: the second is better.
ORDER = [("static", "SET"), ("SET", "RigL"), ("static", "RigL"), ("RigL", "RigL-ITOP")]
ORDER += [("SET", "SET-ITOP"), ("RigL", "GraNet"), ("RigL-ITOP", "AC/DC"), ("RigL", "AC/DC")]
ORDER += [("GraNet", "AC/DC"), ("SET", "MEST"), ("SNFS", "RigL"), ("RigL", "pruning")]
ORDER += [("pruning", "GraNet"), ("static", "SNIP"), ("static", "SRigL"), ("RigL", "SRigL")]


class Run(NamedTuple):
    """One training; equal runs are done once."""

    network: str
    method: str
    sparsity: float
    seed: int
    optimizer: str = "SGD"
    slots: str = "zero"
    initialization: str = "model"

    @property
    def name(self):
        """The name of its file."""
        return "-".join(str(part).replace("/", "").replace(", ", "_") for part in self)


def grid(network, names=NAMES, optimizer="SGD", **kinds):
    """Returns the runs of some methods on a network, seed by seed, dense ones first."""
    plan = NETWORKS[network]
    seeds = range(plan.seeds)
    found = [Run(network, "dense", 0.0, seed, optimizer) for seed in seeds]
    choices = [
        dict(zip(kinds, values, strict=True)) for values in itertools.product(*kinds.values())
    ]
    cells = itertools.product(seeds, plan.sparsities, names, choices)
    return found + [Run(network, n, s, seed, optimizer, **kind) for seed, s, n, kind in cells]


PARTS = {
    "methods": lambda network: grid(network),
    "more methods": lambda network: grid(network, NAMES + MORE),
    "slots": lambda network: grid(network, ("SET", "RigL"), "Adam", slots=("zero", "mean")),
    "initialization": lambda network: grid(
        network, ("static", "RigL"), initialization=("model", "sparse")
    ),
}


class Study:
    """The trainings of one network, with its data."""

    def __init__(self, name):
        self.plan = NETWORKS[name]
        arrays = data.arrays("fashion_mnist")
        (x, y), (test_x, test_y) = arrays.train, arrays.test
        axes = 0 if name == "MLP" else None  # Each pixel, or all pixels together.
        mean, spread = x.mean(axis=axes), x.std(axis=axes) + 1e-3
        self.train = ((x - mean) / spread)[: self.plan.examples], y[: self.plan.examples]
        self.test = (test_x - mean) / spread, test_y
        self.steps = -(-self.plan.examples // BATCH) * self.plan.epochs

    def run(self, run):
        """Trains once, and returns the figures."""
        keras.backend.clear_session()
        keras.utils.set_random_seed(run.seed)
        model, chosen = self.plan.make(), None
        callbacks, began = [], time.perf_counter()
        if run.method != "dense":
            chosen = method(run.method, self.steps)
            if run.slots != "zero":
                chosen = type(chosen)(**{**chosen.get_config(), "slots": run.slots})
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = tf_rigl.sparsify(
                    model,
                    chosen,
                    run.sparsity,
                    seed=run.seed,
                    initialization=run.initialization,
                )
            callbacks = [Exploration()]
        rate = keras.optimizers.schedules.CosineDecay(
            self.plan.rate if run.optimizer == "SGD" else 1e-3, self.steps
        )
        made = {
            "SGD": lambda: keras.optimizers.SGD(rate, momentum=0.9, nesterov=True),
            "Adam": lambda: keras.optimizers.Adam(rate),
        }
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(made[run.optimizer](), loss, metrics=["accuracy"])
        arguments = {"batch_size": BATCH, "epochs": self.plan.epochs, "verbose": 0}
        history = model.fit(*self.train, callbacks=callbacks, **arguments).history
        accuracy = model.evaluate(*self.test, batch_size=1000, verbose=0)[1]
        report = tf_rigl.report(model)
        flops = 3.0 * report.dense_flops
        if chosen is not None:
            planned = tf_rigl.plan(
                self.plan.make(), run.sparsity, pattern=str(chosen.suited(_UNSTRUCTURED))
            )
            flops = tf_rigl.train_flops(planned, chosen, steps=self.steps)
        return {
            "accuracy": accuracy,
            "losses": history["loss"],
            "sparsity": getattr(model, "sparsity", 0.0),
            "train_flops": flops / (3.0 * report.dense_flops),
            "inference_flops": report.flops / report.dense_flops,
            "explored": callbacks[0].explored.share(model) if callbacks else None,
            "seconds": time.perf_counter() - began,
        }


_UNSTRUCTURED = tf_rigl.patterns.get("unstructured")


def train(runs, store):
    """Does the runs that are unfinished and unclaimed."""
    left, studies, began = [r for r in runs if store.get(r.name) is None], {}, time.perf_counter()
    for number, run in enumerate(left, 1):
        with store.claim(run.name) as mine:
            if not mine:
                continue
            if run.network not in studies:
                studies[run.network] = Study(run.network)
            study = studies[run.network]
            result = study.run(run)
            store.add(run.name, result)
        minutes = (time.perf_counter() - began) / number * (len(left) - number) / 60
        print(f"[{number}/{len(left)}, {minutes:.0f} min] {run.name}: {result['accuracy']:.4f}")


def take(folder, store):
    """Stores the recorded results of a folder that are not there yet."""
    for path in sorted(folder.glob("*.json")):
        for name, result in json.loads(path.read_text(encoding="utf-8")).items():
            if store.get(name) is None:
                store.add(name, result)


def accuracies(store, run):
    """Returns the accuracies of a run in percent, by seed, as far as they are there."""
    found = {}
    for seed in range(NETWORKS[run.network].seeds):
        result = store.get(run._replace(seed=seed).name)
        if result is not None:
            found[seed] = 100 * result["accuracy"]
    return found


def verdict(differences):
    """Says whether differences that should be above 0 are: by twice their standard error."""
    if len(differences) < 2:
        return "one seed"
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / len(differences) ** 0.5
    if abs(mean) <= 2 * error:
        return "cannot be told"
    return "held" if mean > 0 else "did not hold"


def main_table(network, runs, store):
    """Returns the table of a network: a row for each method, a column for each sparsity."""
    plan, rows = NETWORKS[network], []
    for name in dict.fromkeys(run.method for run in runs):
        row, figures = [name], []
        for sparsity in (0.0,) if name == "dense" else plan.sparsities:
            found = accuracies(store, Run(network, name, sparsity, 0))
            row.append(tables.mean_and_spread(list(found.values())) if found else "-")
            if found:
                figures.append(store.get(Run(network, name, sparsity, min(found)).name))
        row += [""] * (1 + len(plan.sparsities) - len(row))
        for key in ("train_flops", "inference_flops", "explored"):
            values = [figure[key] for figure in figures]
            row.append(", ".join("-" if value is None else f"{value:.3f}" for value in values))
        rows.append(row)
    header = ["method", *map(str, plan.sparsities), "training FLOPs", "inference FLOPs", "R_s"]
    return "\n".join(tables.markdown(header, rows))


def paired(store, better, worse):
    """Returns the differences of two runs in points, seed by seed."""
    one, other = accuracies(store, better), accuracies(store, worse)
    return [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]


def pair_table(network, pairs, store):
    """Returns a table of differences.

    Args:
        pairs: list of (label, worse run, better run), runs without sparsity.
    """
    plan, rows = NETWORKS[network], []
    for label, worse, better in pairs:
        row = [label]
        for sparsity in plan.sparsities:
            found = paired(
                store, better._replace(sparsity=sparsity), worse._replace(sparsity=sparsity)
            )
            row.append(f"{tables.mean_and_spread(found)}: {verdict(found)}" if found else "-")
        rows.append(row)
    header = ["expected", *map(str, plan.sparsities)]
    return "\n".join(tables.markdown(header, rows, left=(0, 1, 2, 3)))


def written(network, part, runs, store):
    """Returns the tables of a part as Markdown."""
    if part.endswith("methods"):
        pairs = [
            (f"{worse} < {better}", Run(network, worse, 0, 0), Run(network, better, 0, 0))
            for worse, better in ORDER
        ]
        table = main_table(network, runs, store)
        return f"{table}\n\n{pair_table(network, pairs, store)}"
    field, values = {
        "slots": ("slots", ("zero", "mean")),
        "initialization": ("initialization", ("model", "sparse")),
    }[part]
    pairs = []
    for name in dict.fromkeys(run.method for run in runs if run.method != "dense"):
        start = Run(network, name, 0, 0, runs[0].optimizer)
        one, other = (start._replace(**{field: value}) for value in values)
        pairs.append((f"{name}: {values[0]} < {values[1]}", one, other))
    return pair_table(network, pairs, store)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="runs/methods", type=pathlib.Path)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--threads", type=int, default=0, help="of each operation; 0: all")
    parser.add_argument("--stored", action="store_true", help="train nothing")
    parser.add_argument("--recorded", type=pathlib.Path, help="a folder of results to begin from")
    options = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    store, lines = Store(options.output / "runs"), []
    if options.recorded is not None:
        take(options.recorded, store)
    for network, part in itertools.product(options.networks, options.parts):
        runs = PARTS[part](network)
        if not options.stored:
            train(runs, store)
        lines.append(f"**{network}, {part}**\n\n{written(network, part, runs, store)}\n")
        print(lines[-1], flush=True)
        results = {r.name: store.get(r.name) for r in runs if store.get(r.name) is not None}
        files.write_text(
            options.output / f"{network}-{part.replace(' ', '-')}.json", files.to_json(results)
        )
    files.write_text(options.output / "methods.md", "\n".join(lines))


if __name__ == "__main__":
    main()
