"""Whether a pruned network needs its trained weights, when single weights are pruned.

    python benchmarks/rethinking.py

prunes a trained LeNet-300-100 on Fashion-MNIST once, to several densities and with several seeds.
It compares the pruned network fine-tuned, trained from its initial weights (the lottery ticket),
and trained from new random weights for as many epochs (Scratch-E) or as many FLOPs (Scratch-B, at
most twice the epochs). Writes the runs as JSON, and a table. `channels.py` does the same for
channels.
"""

import argparse
import functools
import json
import pathlib

import keras

from tf_rigl import data, lottery, models
from tf_rigl._base import files, tables

BATCH, RATE = 128, 1.2e-3
KINDS = {
    "dense": "dense",
    "fine_tuned": "fine-tuned",
    "scratch_e": "Scratch-E",
    "scratch_b": "Scratch-B",
    "ticket": "ticket, rewound",
}


def train(model, epochs, images, rate=RATE):
    """Trains a model; returns the accuracy on test images."""
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=50,
    )
    (x, y), test = images.train, images.test
    model.fit(x, y, BATCH, epochs, verbose=0)
    return {"test_accuracy": [model.evaluate(*test, batch_size=1000, verbose=0)[1]]}


def one(images, fraction, seed, epochs):
    """Returns test accuracies of all kinds at one pruned fraction."""
    keras.utils.set_random_seed(seed)
    dense = models.lenet_300_100(images.input_shape, images.num_classes)
    whole = functools.partial(train, epochs=epochs, images=images)
    # The output layer, which is small, is pruned half as much.
    before, ticket = lottery.find_ticket(
        dense, whole, 1, fraction, rates={"logits": fraction / 2}, seed=seed
    )
    fit = functools.partial(train, images=images)
    more = max(1, epochs // 4)
    tune = functools.partial(train, images=images, rate=RATE / 10)
    return {
        "density": ticket.density,
        "epochs": {"scratch_b": lottery.scratch_b_epochs(ticket, dense, epochs), "tuned": more},
        "dense": before.history["test_accuracy"][-1],
        "ticket": ticket.history["test_accuracy"][-1],
        "fine_tuned": _last(lottery.fine_tune(ticket, dense, tune, more, before, seed)),
        "scratch_e": _last(lottery.scratch_e(ticket, dense, fit, epochs, seed + 100)),
        "scratch_b": _last(lottery.scratch_b(ticket, dense, fit, epochs, seed + 100)),
    }


def _last(trained):
    return trained.result["test_accuracy"][-1]


def table(runs):
    """Returns the runs as a Markdown table, averaged over seeds."""
    header = ["weights left, %", *KINDS.values(), "epochs of Scratch-B"]
    lines = []
    for fraction in dict.fromkeys(run["fraction"] for run in runs):
        own = [run for run in runs if run["fraction"] == fraction]
        cells = [tables.mean_and_spread([run[kind] for run in own], scale=100) for kind in KINDS]
        density, epochs = own[0]["density"], own[0]["epochs"]["scratch_b"]
        lines.append([f"{100 * density:.1f}", *cells, str(epochs)])
    return "\n".join(tables.markdown(header, lines, left=()))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    add = parser.add_argument
    add("--dataset", default="fashion_mnist", help="digits, or an image data set of TFDS")
    add("--epochs", type=int, default=12)
    add("--seeds", type=int, default=5)
    add("--fractions", type=float, nargs="+", default=[0.5, 0.8, 0.95, 0.98])
    add("--output", type=pathlib.Path, default=pathlib.Path(__file__).with_suffix(".json"))
    add("--runs", type=pathlib.Path, default=pathlib.Path("runs/rethinking"))
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    images = data.arrays(options.dataset)
    runs = []
    for seed in range(options.seeds):
        for fraction in options.fractions:
            path = options.runs / f"{options.dataset}-{options.epochs}-{fraction}-{seed}.json"
            if not path.exists():
                run = one(images, fraction, seed, options.epochs)
                files.write_text(path, files.to_json({"fraction": fraction, "seed": seed, **run}))
            runs.append(json.loads(path.read_text()))
            print(runs[-1], flush=True)
    about = {"dataset": options.dataset, "epochs": options.epochs, "batch_size": BATCH}
    files.write_text(options.output, files.to_json({"settings": about, "runs": runs}))
    text = table(runs)
    files.write_text(options.output.with_suffix(".md"), text + "\n")
    print(text)


if __name__ == "__main__":
    main()
