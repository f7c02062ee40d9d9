"""The accuracy of subnetworks of a random network whose weights are never trained.

    python benchmarks/edge_popup.py

searches by edge-popup in LeNet-300-100 and in networks two and four times as wide, on
Fashion-MNIST, at several sparsities and with several seeds. The trained dense network and the
untrained random network are controls. Checks at the end that each weight equals its initial
value bit for bit, or is 0. Writes the runs as JSON, and prints and writes a table. Finished
trainings are stored and not repeated.
"""

import argparse
import json
import pathlib
import time

import keras
import numpy as np

import tf_rigl
from tf_rigl import data
from tf_rigl._base import files, tables

BATCH, DENSE_RATE = 128, 0.1
CONTROLS = {"dense": "dense, trained", "random": "dense, random"}


def network(input_shape, num_classes, width):
    """LeNet-300-100, `width` times as wide, initialised as in the paper on edge-popup."""
    drawn = {"kernel_initializer": "he_normal"}
    stack = [keras.Input(input_shape), keras.layers.Flatten()]
    stack += [keras.layers.Dense(n * width, activation="relu", **drawn) for n in (300, 100)]
    return keras.Sequential([*stack, keras.layers.Dense(num_classes, **drawn)])


def unchanged(model):
    """Returns True if each masked weight has its frozen value where the mask is 1, and else 0."""
    return all(
        np.array_equal(
            item.weight.numpy(), np.where(item.mask.numpy(), item.state["values"].numpy(), 0)
        )
        for item in model.masked_weights
    )


def train(dataset, epochs, width, kind, seed, arguments, learning_rate):
    """Trains one network.

    Args:
        dataset: `tf_rigl.data.Data`.
        epochs, width, seed: int.
        kind: "dense", "random", or a sparsity.
        arguments: dict, the arguments of `EdgePopup`.
        learning_rate: float, the learning rate of the scores; dense weights have their own.

    Returns:
        A dict of test accuracies, before training and after each epoch, and seconds.
    """
    keras.utils.set_random_seed(seed)
    model = network(dataset.input_shape, dataset.num_classes, width)
    frozen, rate = None, DENSE_RATE
    if kind not in CONTROLS:
        rate = learning_rate
        method = tf_rigl.methods.EdgePopup(**arguments)
        model = tf_rigl.sparsify(model, method, kind, distribution="uniform_all", seed=seed)
        frozen = [item.state["values"].numpy() for item in model.masked_weights]
    model.compile(
        keras.optimizers.SGD(
            keras.optimizers.schedules.CosineDecay(rate, epochs * len(dataset.train)), momentum=0.9
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    began = time.perf_counter()
    before, after = model.evaluate(dataset.test, verbose=0)[1], []
    if kind != "random":
        history = model.fit(
            dataset.train, epochs=epochs, verbose=0, shuffle=False, validation_data=dataset.test
        )
        after = history.history["val_accuracy"]
    result = {"accuracies": [before, *after], "seconds": time.perf_counter() - began}
    if frozen is not None:
        values = [item.state["values"].numpy() for item in model.masked_weights]
        same = all(np.array_equal(a, b) for a, b in zip(frozen, values, strict=True))
        result |= {"sparsity": model.sparsity, "unchanged": same and unchanged(model)}
        if not result["unchanged"]:
            raise RuntimeError(f"A weight has changed: width {width}, {kind}, seed {seed}.")
    return result


def all_runs(options, folder):
    """Does the trainings that are not stored; returns a list of all results."""
    folder.mkdir(parents=True, exist_ok=True)
    arguments, results = {"weights": options.weights, "scale": options.scale}, []
    for seed in range(options.seeds):
        dataset = data.load(options.dataset, BATCH, seed=seed)
        for width in options.widths:
            for kind in [*CONTROLS, *options.sparsities]:
                rate = options.learning_rate
                name = f"{options.dataset}-{options.epochs}-{width}x-{kind}-{seed}"
                if kind not in CONTROLS:
                    name += f"-{options.weights}-{options.scale}-{rate}"
                path = folder / f"{name}.json"
                if not path.exists():
                    run = train(dataset, options.epochs, width, kind, seed, arguments, rate)
                    files.write_text(path, files.to_json(run))
                run = json.loads(path.read_text())
                results.append({"width": width, "kind": kind, "seed": seed, **run})
                print(
                    f"seed {seed}, {width}x, {kind}: {run['accuracies'][0]:.4f} -> "
                    f"{run['accuracies'][-1]:.4f}, {run['seconds']:.0f} s",
                    flush=True,
                )
    return results


def table(results):
    """Returns test accuracies as Markdown: a row for each kind, a column for each width."""
    widths = list(dict.fromkeys(run["width"] for run in results))
    names = [f"{300 * width}-{100 * width}" for width in widths]
    lines = []
    for kind in dict.fromkeys(run["kind"] for run in results):
        label = CONTROLS.get(kind, f"edge-popup, {kind} zeros")
        cells = [
            _percent([r for r in results if (r["width"], r["kind"]) == (width, kind)])
            for width in widths
        ]
        lines.append([label, *cells])
    return "\n".join(tables.markdown(["", *names], lines))


def _percent(runs):
    return tables.mean_and_spread([run["accuracies"][-1] for run in runs], scale=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    add = parser.add_argument
    add("--dataset", default="fashion_mnist", help="digits, or an image data set of TFDS")
    add("--epochs", type=int, default=20)
    add("--seeds", type=int, default=5)
    add("--widths", type=int, nargs="+", default=[1, 2, 4])
    add("--sparsities", type=float, nargs="+", default=[0.3, 0.5, 0.7, 0.9])
    add("--weights", default="signed_constant", choices=["signed_constant", "initial"])
    add("--no-scale", dest="scale", action="store_false", help="do not rescale the frozen weights")
    add("--learning-rate", type=float, default=1.0, help="initial learning rate of the scores")
    add("--output", type=pathlib.Path, default=pathlib.Path(__file__).with_suffix(".json"))
    add("--runs", type=pathlib.Path, default=pathlib.Path("runs/edge_popup"))
    options = parser.parse_args()
    results = all_runs(options, options.runs)
    names = ("dataset", "epochs", "seeds", "weights", "scale", "learning_rate")
    settings = {name: getattr(options, name) for name in names}
    settings |= {"batch_size": BATCH, "learning_rate_dense": DENSE_RATE}
    files.write_text(options.output, files.to_json({"settings": settings, "runs": results}))
    text = table(results)
    files.write_text(options.output.with_suffix(".md"), text + "\n")
    print(text)


if __name__ == "__main__":
    main()
