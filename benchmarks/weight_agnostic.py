"""Weight-agnostic networks: digits, and the swing-up of a pole, with three seeds.

    python -m benchmarks.weight_agnostic

searches for networks of scikit-learn's digits (8x8) and of the cart-pole swing-up, and measures
what they do: with random shared weights, with the best one, with an ensemble of weights, with
trained weights, and with random weights that are not shared. Beside them stands a trained linear
model. Searches that were cut off go on, finished ones are not repeated, and the same command in a
second shell shares the work. Writes JSON, tables and pictures. `--stored` searches nothing, but
measures the seconds of a generation, by population and by number of nodes.

Trained weights of the swing-up need `pip install cma`.
"""

import argparse
import dataclasses
import pathlib
import time

import keras
import numpy as np
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression

from benchmarks.swing_up import SwingUps
from tf_rigl import data, wann
from tf_rigl._base import files, tables
from tf_rigl._base.store import Store
from tf_rigl.experiments import plots
from tf_rigl.wann.population import Stack

SEEDS = 3
GRID = np.concatenate([np.linspace(-2, -0.05, 40), np.linspace(0.05, 2, 40)])
SHARED = [-2, -1, -0.5, 0.5, 1, 2]
PUBLISHED = {
    "digits": ["published, MNIST 16x16", "82.0", "91.9", "91.6", "94.2", "", "91.6", "1849"],
    "swing_up": ["published", "515", "723", "", "932", "57", "", "52"],
}


def random_weights(count=100):
    """Returns random shared weights."""
    return np.random.default_rng(7).uniform(-2, 2, count)


@dataclasses.dataclass(frozen=True, eq=False)
class Weighted(wann.Network):
    """A network whose connections have weights of their own."""

    values: np.ndarray = None

    def matrix(self):
        found = np.zeros((len(self.kinds),) * 2, np.float32)
        source, target = self.edges[self.enabled].T
        found[target, source] = self.values
        return found


def weighted(network, values):
    """Returns a network with weights of its own."""
    fields = {f.name: getattr(network, f.name) for f in dataclasses.fields(wann.Network)}
    return Weighted(**fields, values=np.asarray(values, np.float32))


class Digits:
    """Classes of scikit-learn's digits."""

    population, generations, digits = 192, 3000, 1

    def __init__(self):
        arrays = data.arrays("digits")
        self.train, self.test = (
            (np.asarray(x).reshape(len(x), -1), np.asarray(y).astype(int))
            for x, y in (arrays.train, arrays.test)
        )

    def task(self):
        """Returns the task of the search."""
        return wann.Classification(*self.train)

    def measured(self, network, seed):
        """Returns the test accuracies of a network, in percent."""
        fit, test = (wann.Classification(*part) for part in (self.train, self.test))
        best = GRID[fit.accuracy(network, GRID)[0].argmax()]
        random = test.accuracy(network, random_weights())[0]
        rng = np.random.default_rng(seed)
        loose = [
            test.accuracy(weighted(network, rng.uniform(-2, 2, network.connections)), [1.0])[0][0]
            for _ in range(100)
        ]
        inputs, model = self.test[0], network.to_keras(weight=best)
        ours = Stack([network]).outputs_of(inputs, best)[0]
        return {
            "random": 100 * random.mean(),
            "random deviation": 100 * random.std(),
            "best": 100 * test.accuracy(network, [best])[0][0],
            "best weight": best,
            "ensemble": 100 * test.accuracy(network, SHARED)[1],
            "trained": 100 * self.trained(network, best, seed),
            "not shared": 100 * np.mean(loose),
            "linear": 100 * self.linear(),
            "Keras and search differ by": float(
                np.abs(ours - model.predict(inputs, verbose=0)).max()
            ),
        }

    def trained(self, network, weight, seed):
        """Returns the accuracy after training the connections."""
        keras.utils.set_random_seed(seed)
        model = network.to_keras(weight=weight, trainable=True)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        steps = 200 * -(-len(self.train[0]) // 32)
        rate = keras.optimizers.schedules.CosineDecay(0.01, steps)
        optimizer = keras.optimizers.Adam(rate, global_clipnorm=1.0)
        model.compile(optimizer, loss, metrics=["accuracy"])
        model.fit(*self.train, batch_size=32, epochs=200, verbose=0)
        return model.evaluate(*self.test, verbose=0)[1]

    def linear(self):
        """Returns the accuracy of a linear classifier."""
        return LogisticRegression(max_iter=5000).fit(*self.train).score(*self.test)


class SwingUp:
    """The swing-up of a pole, of 1000."""

    population, generations, digits = 192, 1024, 0

    def task(self):
        """Returns the task of the search."""
        return wann.Control(SwingUps)

    def measured(self, network, seed):
        """Returns the mean returns of a network in 100 rollouts that no search has seen."""
        test, fit = wann.Control(SwingUps, 100, seed=1_000), wann.Control(SwingUps, 20, seed=500)
        best = GRID[network.scores(fit, GRID).argmax()]
        random = network.scores(test, random_weights())
        rng = np.random.default_rng(seed)
        count = network.connections
        loose = [weighted(network, rng.uniform(-2, 2, count)) for _ in range(100)]
        start = wann.network.start(test.inputs, test.outputs, 1.0, rng)
        inputs, model = rng.normal(size=(1000, 5)).astype(np.float32), network.to_keras(best)
        ours = Stack([network]).outputs_of(inputs, best)[0]
        return {
            "random": random.mean(),
            "random deviation": random.std(),
            "best": network.scores(test, [best])[0],
            "best weight": best,
            "trained": self.trained(network, best, seed, test),
            "not shared": test.scores(loose, [1.0]).mean(),
            "linear": self.trained(start, 0.0, seed, test),
            "Keras and search differ by": float(
                np.abs(ours - model.predict(inputs, verbose=0)).max()
            ),
        }

    def trained(self, network, weight, seed, test, rounds=200):
        """Returns the mean return after training the connections by CMA-ES."""
        import cma

        task, begin = wann.Control(SwingUps, seed=50), np.full(network.connections, weight)
        options = {"seed": seed + 1, "popsize": 32, "verbose": -9}
        search = cma.CMAEvolutionStrategy(begin, 0.3, options)
        for _ in range(rounds):
            tried = search.ask()
            scores = task.scores([weighted(network, values) for values in tried], [1.0])[:, 0]
            search.tell(tried, (-scores).tolist())
        return test.scores([weighted(network, search.result.xfavorite)], [1.0])[0, 0]


TASKS = {"digits": Digits, "swing_up": SwingUp}
COLUMNS = ("random", "best", "ensemble", "trained", "not shared", "linear")


def found(name, seed, output, store, generations):
    """Searches, measures and stores."""
    case, folder, began = TASKS[name](), output / f"{name}-{seed}", time.perf_counter()
    count = generations or case.generations
    result = wann.search(
        case.task(), population=case.population, generations=count, seed=seed, folder=folder
    )
    figures = case.measured(result.best, seed)
    seconds = [row["seconds"] for row in result.history]
    figures |= {
        "connections": result.best.connections,
        "hidden": result.best.hidden,
        "generations": len(seconds),
        "minutes": sum(seconds) / 60,
        "seconds of the last 50": float(np.mean(seconds[-50:])),
        "measuring": time.perf_counter() - began,
        "history": [row["mean"] for row in result.history],
    }
    store.add(f"{name}-{seed}", {key: _plain(value) for key, value in figures.items()})


def _plain(value):
    return float(value) if isinstance(value, (float, np.floating)) else value


def speeds(output):
    """Returns generations per second by population and by hidden nodes of the found networks."""
    rows = []
    for name, make in TASKS.items():
        task = make().task()
        state = wann.search(
            task,
            population=make.population,
            generations=1,
            seed=0,
            folder=output / f"{name}-0",
            verbose=False,
        )
        for label, networks in (("at the start", None), ("at the end", state.population)):
            for size in (48, 96, 192):
                rng = np.random.default_rng(0)
                chosen = (
                    networks[:size]
                    if networks
                    else [
                        wann.network.start(task.inputs, task.outputs, 0.5, rng) for _ in range(size)
                    ]
                )
                task.scores(chosen[:2], SHARED)
                began = time.perf_counter()
                task.scores(chosen, SHARED)
                nodes = np.mean([network.hidden for network in chosen])
                rows.append([name, label, size, f"{nodes:.0f}", time.perf_counter() - began])
    return rows


def table(name, store):
    """Returns the figures of a task as Markdown: a row for each seed."""
    digits, rows = TASKS[name].digits, []
    for seed in range(SEEDS):
        figures = store.get(f"{name}-{seed}")
        if figures is None:
            continue
        row = [f"seed {seed}"]
        for column in COLUMNS:
            value = f"{figures[column]:.{digits}f}" if column in figures else ""
            if column == "random":
                value += f" ± {figures['random deviation']:.{digits}f}"
            row.append(value)
        rows.append([*row, figures["connections"]])
    return "\n".join(tables.markdown(["", *COLUMNS, "connections"], [*rows, PUBLISHED[name]]))


def draw(name, store, output):
    """Draws the mean score of the best network by generation, and the best network of seed 0."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for seed in range(SEEDS):
        figures = store.get(f"{name}-{seed}")
        if figures is not None:
            axes.plot(np.arange(1, len(figures["history"]) + 1), figures["history"], label=seed)
    axes.set(xlabel="generation", ylabel="score, mean over shared weights")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, title="seed")
    figure.savefig(output / f"{name}.png", dpi=120)
    case = TASKS[name]()
    result = wann.search(
        case.task(),
        population=case.population,
        generations=1,
        seed=0,
        folder=output / f"{name}-0",
        verbose=False,
    )
    plots.draw_network(result.best, output / f"{name}-network.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="runs/weight_agnostic", type=pathlib.Path)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--generations", type=int, help="by default those of each task")
    parser.add_argument("--stored", action="store_true", help="search nothing")
    options = parser.parse_args()
    output, store = options.output, Store(options.output / "runs")
    for seed in range(SEEDS):
        for name in options.tasks:
            if options.stored or store.get(f"{name}-{seed}") is not None:
                continue
            with store.claim(f"{name}-{seed}") as mine:
                if mine:
                    found(name, seed, output, store, options.generations)
    lines = []
    for name in options.tasks:
        if store.get(f"{name}-0") is not None:
            lines.append(f"**{name}**\n\n{table(name, store)}\n")
            draw(name, store, output)
    if options.stored:
        rows = [[*row[:4], f"{row[4]:.2f}"] for row in speeds(output)]
        header = ["task", "networks", "population", "hidden nodes", "seconds a generation"]
        lines.append("\n".join(tables.markdown(header, rows, left=(0, 1))))
    print("\n".join(lines))
    files.write_text(output / "weight_agnostic.md", "\n".join(lines))


if __name__ == "__main__":
    main()
