"""Why a moving topology escapes: paths between solutions, and restarts of a static one.

    python -m benchmarks.landscape

trains an MLP on Fashion-MNIST at 0.98 sparsity, with a static mask and by gradual pruning, for
three seeds. Between the two solutions, the training loss is measured on the straight path, on a
Bezier curve trained among the connections of either mask, and on one among all connections. Then
the static solution is trained on, with its mask and by RigL. Writes JSON and pictures. Finished
seeds are stored and not repeated.
"""

import argparse
import pathlib
import statistics

import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

import tf_rigl
from benchmarks.methods import BATCH, Study
from tf_rigl import analysis, methods, schedules
from tf_rigl._base import files, tables
from tf_rigl._base.store import Store
from tf_rigl.experiments import plots

SPARSITY, SEEDS, EPOCHS, SHOWN = 0.98, 3, 10, 10_000
PATHS = ("straight", "curve in the masks", "curve, dense")
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def compiled(model, steps, rate=0.1):
    """Compiles a model for so many steps."""
    decay = keras.optimizers.schedules.CosineDecay(rate, steps)
    model.compile(keras.optimizers.SGD(decay, momentum=0.9, nesterov=True), LOSS)
    return model


def solutions(study, seed):
    """Returns a static and a pruned solution of one initialisation."""
    found = []
    often = max(2, study.steps // 50)
    for method in (
        methods.Static(),
        methods.MagnitudePruning(schedules.PolynomialDecay(frequency=often)),
    ):
        keras.utils.set_random_seed(seed)
        model = tf_rigl.sparsify(study.plan.make(), method, SPARSITY, seed=seed)
        compiled(model, study.steps)
        model.fit(*study.train, BATCH, EPOCHS, verbose=0)
        found.append(model)
    return found


def restarted(study, static, method, seed):
    """Returns the training losses by epoch of a static solution that is trained on."""
    keras.utils.set_random_seed(seed)
    dense = tf_rigl.strip(static)
    model = tf_rigl.sparsify(study.plan.make(), method, SPARSITY, seed=seed)
    for item, mask in zip(model.masked_weights, static.masks.values(), strict=True):
        item.set_mask(mask)
    own = {id(item.mask) for item in model.masked_weights}
    plain = [weight for weight in model.weights if id(weight) not in own]
    for weight, value in zip(plain, dense.get_weights(), strict=True):
        weight.assign(value)
    compiled(model, study.steps)
    return model.fit(*study.train, BATCH, EPOCHS, verbose=0).history["loss"]


def measured(study, seed):
    """Returns all figures of a seed."""
    x, y = (array[:SHOWN] for array in study.train)
    static, pruned = solutions(study, seed)

    def loss(model):
        return float(LOSS(y, model(tf.constant(x))))

    def fit(curve):
        compiled(curve, study.steps, rate=0.02)
        curve.fit(*study.train, BATCH, EPOCHS, verbose=0)

    found = {PATHS[0]: analysis.interpolate(static, pruned, loss)}
    for label, subspace in zip(PATHS[1:], analysis.paths.SUBSPACES, strict=True):
        found[label] = analysis.bezier(static, pruned, fit, loss, subspace=subspace)
    often = max(2, study.steps // 50)
    return {
        "paths": {label: path.losses.tolist() for label, path in found.items()},
        "barriers": {label: path.barrier for label, path in found.items()},
        "static": loss(tf_rigl.strip(static)),
        "pruned": loss(tf_rigl.strip(pruned)),
        "restarts": {
            "static": restarted(study, static, methods.Static(), seed),
            "RigL": restarted(study, static, methods.RigL(update_interval=often), seed),
        },
    }


def draw(results, folder):
    """Draws the paths of all seeds, and the restarts."""
    mean = {
        label: np.mean([result["paths"][label] for result in results], axis=0) for label in PATHS
    }
    positions = np.linspace(0, 1, len(mean[PATHS[0]]))
    paths = {label: analysis.Path(positions, losses) for label, losses in mean.items()}
    plots.draw_paths(paths, folder / "paths.png", name="training loss")
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for label in ("static", "RigL"):
        losses = np.mean([result["restarts"][label] for result in results], axis=0)
        axes.plot(np.arange(1, len(losses) + 1), losses, label=f"trained on: {label}")
    begin = statistics.fmean(result["static"] for result in results)
    axes.axhline(begin, color="black", linewidth=0.8, linestyle=":", label="static solution")
    axes.set(xlabel="epoch", ylabel="training loss")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(folder / "restarts.png", dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="runs/landscape", type=pathlib.Path)
    output = parser.parse_args().output
    store, study, results = Store(output / "runs"), Study("MLP"), []
    study.steps = -(-len(study.train[0]) // BATCH) * EPOCHS
    for seed in range(SEEDS):
        found = store.get(str(seed))
        if found is None:
            found = measured(study, seed)
            store.add(str(seed), found)
        print(seed, found["barriers"], found["static"], found["pruned"], flush=True)
        results.append(found)
    rows = []
    for label in PATHS:
        values = [result["barriers"][label] for result in results]
        rows.append([f"barrier, {label}", tables.mean_and_spread(values, digits=3)])
    for key in ("static", "pruned"):
        values = [result[key] for result in results]
        rows.append([f"loss, {key} solution", tables.mean_and_spread(values, digits=3)])
    for label in ("static", "RigL"):
        values = [result["restarts"][label][-1] for result in results]
        rows.append([f"loss, trained on: {label}", tables.mean_and_spread(values, digits=3)])
    print("\n".join(tables.markdown(["", "mean of seeds"], rows)))
    files.write_text(output / "landscape.json", files.to_json(results))
    draw(results, output)


if __name__ == "__main__":
    main()
