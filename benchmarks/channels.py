"""The accuracy of networks with half of their channels, pruned early or after training.

    python benchmarks/channels.py

trains small_vgg on 10,000 images of Fashion-MNIST with a penalty on the scales of batch
normalisation (network slimming) and three seeds. From each of these trainings it

- draws Early-Bird tickets, removes their pruned channels, and trains them for the remaining
  epochs;
- removes channels at the end, and fine-tunes the smaller network, or trains it from new random
  weights for as many epochs (Scratch-E) or as many FLOPs (Scratch-B).

Counts the training FLOPs of each network: three forward passes for each image, the search
included. Writes the runs as JSON, a table, and a picture of the distances between masks.
Finished seeds are stored and not repeated; `--seed N` does only one, for several processes.
"""

import argparse
import json
import pathlib
import statistics
import time

import keras
import numpy as np

import tf_rigl
from tf_rigl import data, lottery, models, plots
from tf_rigl._base import files, tables

BATCH, RATE, PENALTY, DECAY, AT_MOST = 64, 0.05, 2e-3, 1e-4, 2.0


class Keep(keras.callbacks.Callback):
    """Removes the pruned channels of an `EarlyBird` ticket after the epoch that found it."""

    def __init__(self, bird):
        super().__init__()
        self.bird, self.small = bird, None

    def on_epoch_end(self, epoch, logs=None):
        if self.bird.epoch == epoch:
            self.small = lottery.remove_channels(self.model, self.bird.masks)


def some(name, count):
    """Loads a data set into memory, with `count` of its training images."""
    whole = data.arrays(name)
    x, y = whole.train
    chosen = np.random.default_rng(0).permutation(len(x))[:count]
    return whole._replace(train=(x[chosen], y[chosen]))


def compiled(model, epochs, images, start=0, rate=RATE):
    """Compiles a model for a training of `epochs` epochs that begins at epoch `start`.

    The learning rate falls to a tenth after half of the epochs, and again after three quarters.
    """
    steps = -(-len(images.train[0]) // BATCH)
    drops = [round(steps * epochs * part) for part in (0.5, 0.75)]
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        drops, [rate, rate / 10, rate / 100]
    )
    model.compile(
        keras.optimizers.SGD(
            lottery.from_step(schedule, steps * start), momentum=0.9, weight_decay=DECAY
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=10,
        jit_compile=False,
    )
    return model


def fit(model, images, epochs, start=0, callbacks=()):
    """Trains from epoch `start` on, and returns the accuracy on test images."""
    x, y = images.train
    model.fit(x, y, BATCH, epochs, initial_epoch=start, verbose=0, callbacks=list(callbacks))
    return model.evaluate(*images.test, batch_size=500, verbose=0)[1]


def forward(model):
    """Returns the FLOPs of a forward pass for one image."""
    return tf_rigl.report(model).dense_flops


def one_seed(images, options, seed):
    """Does all trainings of a seed; returns rows and the distances between masks."""
    epochs, count = options.epochs, len(images.train[0])
    keras.utils.set_random_seed(seed)
    initial = models.small_vgg(images.input_shape, images.num_classes)
    dense = compiled(lottery.with_scale_penalty(initial, PENALTY), epochs, images)
    rows, began = [], time.perf_counter()

    def add(kind, fraction, model, accuracy, trained, extra=0, **more):
        own = 3 * count * trained * forward(model)
        row = {"kind": kind, "fraction": fraction, "seed": seed, "accuracy": accuracy}
        row |= {"parameters": model.count_params(), "flops": forward(model)}
        row |= {"epochs": trained, "train_flops": own + extra, **more}
        rows.append(row)
        minutes = (time.perf_counter() - began) / 60
        print(f"seed {seed}, {minutes:.0f} min: {kind} {fraction}: {accuracy:.4f}", flush=True)

    birds = [lottery.EarlyBird(p, stop=False, least=options.least) for p in options.fractions]
    keeps = [Keep(bird) for bird in birds]
    accuracy = fit(dense, images, epochs, callbacks=[*birds, *keeps])
    add("dense", 0, dense, accuracy, epochs)
    whole = 3 * count * forward(dense)
    for bird, keep in zip(birds, keeps, strict=True):
        fraction, small = bird.prune_fraction, keep.small
        if small is None:
            print(f"seed {seed}: no ticket of {fraction} was found", flush=True)
            continue
        start = bird.epoch + 1
        keras.utils.set_random_seed(seed)
        accuracy = fit(compiled(small, epochs, images, start), images, epochs, start)
        searched = start * whole
        add("early-bird", fraction, small, accuracy, epochs - start, searched, drawn=start)

    for fraction in options.fractions:
        masks = lottery.channel_masks(dense, fraction, least=options.least)
        small = lottery.remove_channels(dense, masks)
        compiled(small, epochs, images)
        at_once = small.evaluate(*images.test, batch_size=500, verbose=0)[1]
        searched = epochs * whole
        add("removed, not trained", fraction, small, at_once, 0, searched)

        def train(model, number):
            return fit(compiled(model, number, images), images, number)

        def tune(model, number):
            return fit(compiled(model, 10**6, images, rate=RATE / 100), images, number)

        more = max(1, epochs // 4)
        tuned = lottery.fine_tune(small, dense, tune, more, seed=seed)
        add("fine-tuned", fraction, tuned.model, tuned.result, more, searched)
        for kind, protocol in (("scratch-e", "scratch_e"), ("scratch-b", "scratch_b")):
            limit = {"at_most": AT_MOST} if kind == "scratch-b" else {}
            made = getattr(lottery, protocol)(small, dense, train, epochs, seed + 100, **limit)
            add(kind, fraction, made.model, made.result, made.epochs)
    distances = {str(bird.prune_fraction): bird.distances().tolist() for bird in birds}
    drawn = {str(bird.prune_fraction): bird.epoch for bird in birds}
    return {"rows": rows, "distances": distances, "drawn": drawn}


def table(rows):
    """Returns the rows as a Markdown table, averaged over seeds."""
    header = ["channels pruned", "network", "test accuracy, %", "drawn after epoch"]
    header += ["parameters", "FLOPs, of dense", "epochs", "training FLOPs, of dense"]
    lines = []
    dense = {row["seed"]: row for row in rows if row["kind"] == "dense"}
    for fraction, kind in dict.fromkeys((row["fraction"], row["kind"]) for row in rows):
        own = [row for row in rows if (row["fraction"], row["kind"]) == (fraction, kind)]

        def over(key, own=own):
            return statistics.fmean(row[key] / dense[row["seed"]][key] for row in own)

        lines.append(
            [
                f"{100 * fraction:.0f}%",
                kind,
                tables.mean_and_spread([row["accuracy"] for row in own], scale=100),
                ", ".join(str(row["drawn"]) for row in own if "drawn" in row) or "-",
                f"{statistics.fmean(row['parameters'] for row in own):,.0f}",
                f"{over('flops'):.2f}",
                f"{statistics.fmean(row['epochs'] for row in own):.0f}",
                f"{over('train_flops'):.2f}",
            ]
        )
    return "\n".join(tables.markdown(header, lines, left=(1,)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    add = parser.add_argument
    add("--dataset", default="fashion_mnist", help="digits, or an image data set of TFDS")
    add("--images", type=int, default=10_000, help="number of training images")
    add("--epochs", type=int, default=30)
    add("--seeds", type=int, default=3)
    add("--seed", type=int, help="train only this seed; write no table")
    add("--fractions", type=float, nargs="+", default=[0.5, 0.7])
    add("--least", type=int, default=8, help="fewest channels that each layer keeps")
    add("--output", type=pathlib.Path, default=pathlib.Path(__file__).with_suffix(".json"))
    add("--runs", type=pathlib.Path, default=pathlib.Path("runs/channels"))
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    images = some(options.dataset, options.images)
    seeds = range(options.seeds) if options.seed is None else [options.seed]
    found = []
    for seed in seeds:
        numbers = (options.images, options.epochs, options.fractions, options.least, seed)
        path = options.runs / f"{options.dataset}-{'-'.join(map(str, numbers))}.json"
        if not path.exists():
            files.write_text(path, files.to_json(one_seed(images, options, seed)))
        found.append(json.loads(path.read_text()))
    if options.seed is not None:
        return
    about = {"dataset": options.dataset, "images": options.images, "epochs": options.epochs}
    about["least"] = options.least
    files.write_text(options.output, files.to_json({"settings": about, "seeds": found}))
    text = table([row for each in found for row in each["rows"]])
    files.write_text(options.output.with_suffix(".md"), text + "\n")
    fraction = str(options.fractions[0])
    plots.draw_mask_distances(
        found[0]["distances"][fraction],
        options.output.with_suffix(".png"),
        drawn=found[0]["drawn"][fraction],
    )
    print(text)


if __name__ == "__main__":
    main()
