"""The time and memory of sparse training relative to dense training, measured in one run.

    python benchmarks/overhead.py

prints the following, and writes it next to this file as JSON (a part of it only to `--output`):

- the time per training step of each method at 90% sparsity over dense, mask updates every
  100 steps included, plain and with `jit_compile=True`. All models take turns in many short
  rounds, and the ratio is that of the medians. With `--copies`, several models of each kind take
  part, and the ratio is that of their means: where a model's variables happen to lie in memory
  makes a step of one up to 5% slower than that of its equal;
- the same for models whose class defines a `train_step`;
- the time of one mask update of a 3x3x512x512 kernel, and that of an update by sorting
  (`tf.math.top_k` over all entries, twice, as in google-research/rigl), and that of two
  `np.partition`s of as many scores;
- the memory that masks add.
"""

import argparse
import functools
import json
import pathlib
import statistics

import keras
import numpy as np
import tensorflow as tf

import tf_rigl
from tf_rigl import methods, models, patterns, schedules
from tf_rigl._base import tables, tensors
from tf_rigl._base.timing import in_turns

STEPS = 100  # Steps in a round; one of them is a mask update.


def mlp(input_shape, num_classes):
    """Three hidden layers of 1024 units."""
    hidden = [keras.layers.Dense(1024, activation="relu") for _ in range(3)]
    layers = [keras.Input(input_shape), keras.layers.Flatten(), *hidden]
    return keras.Sequential([*layers, keras.layers.Dense(num_classes)])


# Name: model, batch size, input shape, rounds.
MODELS = {
    "MLP 3x1024": (mlp, 64, (28, 28, 1), 11),
    "LeNet-300-100": (models.lenet_300_100, 128, (28, 28, 1), 21),
    "small CNN": (models.small_cnn, 64, (14, 14, 1), 15),
}


def compiled(model, dataset, jit_compile):
    """Compiles and warms up a model; returns its train function and an endless iterator."""
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=jit_compile,
    )
    model.fit(dataset, steps_per_epoch=STEPS + 1, epochs=2, verbose=0, shuffle=False)
    return model.train_function, iter(dataset)


def all_methods(rounds):
    """Returns each method by name; it changes masks once in a round."""
    moving = {"update_interval": STEPS, "end_step": 10**9}
    ramp = schedules.PolynomialDecay(end_step=(rounds + 4) * STEPS, frequency=STEPS)
    return {
        "static": methods.Static(),
        "snip": methods.SNIP(),
        "set": methods.SET(**moving),
        "snfs": methods.SNFS(**moving),
        "rigl": methods.RigL(**moving),
        "magnitude": methods.MagnitudePruning(ramp),
        "granet": methods.GraNet(**moving, prune_end=(rounds + 4) * STEPS),
        "srigl": methods.SRigL(**moving),
        "mest": methods.MEST(**moving),
        "acdc": methods.ACDC(warm_up=STEPS, phase=STEPS, last_dense=(10**8, 10**8)),
        "ste": methods.STE(),
    }


class OwnStep(keras.Model):
    """Trains as Keras does, by a step of its own."""

    def train_step(self, data):
        images, labels = data
        with tf.GradientTape() as tape:
            outputs = self(images, training=True)
            loss = self.compute_loss(images, labels, outputs)
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        return self.compute_metrics(images, labels, outputs)


def with_own_step(make):
    """Returns a function that makes the model of `make`, of the class `OwnStep`."""

    def made(*args):
        model = make(*args)
        return OwnStep(model.inputs, model.outputs)

    return made


def step_ratios(make, batch_size, input_shape, rounds, jit_compile, names, copies=1):
    """Times rounds of dense models and of sparse ones for each method, in turns."""
    images = np.random.default_rng(0).random((8 * batch_size, *input_shape), np.float32)
    labels = np.random.default_rng(1).integers(0, 10, 8 * batch_size)
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(batch_size)
    dataset = dataset.cache().repeat()
    dense = make(input_shape, 10)
    runners = {}
    for copy in range(copies):
        fresh = dense if copy == 0 else keras.models.clone_model(dense)
        runners["dense", copy] = compiled(fresh, dataset, jit_compile)
        for name in names:
            method = all_methods(rounds)[name]
            sparse = tf_rigl.sparsify(dense, method=method, sparsity=0.9, seed=copy)
            runners[name, copy] = compiled(sparse, dataset, jit_compile)
    masks = sum(item.mask.numpy().nbytes for item in sparse.masked_weights)
    weights = sum(int(np.prod(item.weight.shape)) for item in sparse.masked_weights)
    functions = {
        name: functools.partial(train_function, iterator)
        for name, (train_function, iterator) in runners.items()
    }
    each = in_turns(functions, rounds, calls=STEPS, warm_up=0)
    medians = {
        name: statistics.mean(each[name, copy] for copy in range(copies))
        for name in ("dense", *names)
    }
    return {
        "copies": copies,
        "milliseconds": {name: 1000 * value for name, value in medians.items()},
        "ratios": {name: value / medians["dense"] for name, value in medians.items()},
        "mask_bytes_per_weight": masks / weights,
    }


def update_ratio(rounds=9, shape=(3, 3, 512, 512), density=0.1):
    """Times one mask update of one kernel, and two sorts of as many scores."""
    entries = int(np.prod(shape))
    active = int(density * entries)
    moved = int(0.3 * active)
    rng = np.random.default_rng(0)
    mask = np.zeros(entries, bool)
    mask[rng.permutation(entries)[:active]] = True
    mask = tf.constant(mask.reshape(shape))
    weight = tf.where(mask, tf.constant(rng.standard_normal(shape), tf.float32), 0.0)
    gradient = tf.constant(rng.standard_normal(shape), tf.float32)
    method, pattern = methods.RigL(), patterns.Unstructured()

    update = tensors.compiled_if_large(method.update, entries)

    @tf.function
    def ours(keep, grow):
        return update(weight, gradient, mask, keep, grow, pattern, tf.constant([0, 0]))

    @tf.function
    def sorting():
        drop = tf.math.top_k(tf.reshape(tf.abs(weight), [-1]), k=entries).indices
        grow = tf.math.top_k(tf.reshape(tf.abs(gradient), [-1]), k=entries).indices
        return drop, grow

    drop, grow = (np.abs(tensor.numpy()).ravel() for tensor in (weight, gradient))

    def partition():
        """The least that a selection of the highest scores takes on the host."""
        kept, grown = np.partition(drop, entries - active), np.partition(grow, entries - moved)
        return tf.constant(kept[:1]), tf.constant(grown[:1])

    counts = tf.constant(active - moved), tf.constant(moved)
    runners = {
        "ours": lambda: ours(*counts),
        "two_top_k": sorting,
        "two_partitions": partition,
    }
    # Reading an entry waits for the result.
    wait = lambda outputs: [tf.reshape(output, [-1])[0].numpy() for output in outputs]  # noqa: E731
    ms = {name: 1000 * value for name, value in in_turns(runners, rounds, wait=wait).items()}
    return {
        "milliseconds": ms,
        "times_faster": ms["two_top_k"] / ms["ours"],
        "over_partition": ms["ours"] / ms["two_partitions"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, help="for a part; else beside this file")
    parser.add_argument("--only", default="", help="models with this text in their name")
    parser.add_argument("--methods", nargs="*", default=list(all_methods(1)))
    parser.add_argument("--copies", type=int, default=1, help="models of each kind")
    parser.add_argument("--plain", action="store_true", help="not with jit_compile=True")
    options = parser.parse_args()

    result = {"steps": [], "update": update_ratio()}
    milliseconds = result["update"]["milliseconds"]
    print(
        f"One mask update of a 3x3x512x512 kernel at 10% density: {milliseconds['ours']:.1f} ms; "
        f"two full top_k: {milliseconds['two_top_k']:.1f} ms, "
        f"{result['update']['times_faster']:.1f} times as long; two np.partition: "
        f"{milliseconds['two_partitions']:.1f} ms, of which it takes "
        f"{result['update']['over_partition']:.2f} times",
        flush=True,
    )
    print("\nTime per training step over dense, 90% sparsity, masks changed every 100 steps:")
    names, rows = options.methods, []
    own = {
        f"{name}, own step": (with_own_step(make), *rest) for name, (make, *rest) in MODELS.items()
    }
    for jit_compile in (False,) if options.plain else (False, True):
        for model, arguments in {**MODELS, **own}.items():
            if options.only not in model:
                continue
            row = step_ratios(*arguments, jit_compile, names, options.copies)
            result["steps"].append({"model": model, "jit_compile": jit_compile, **row})
            ratios = [f"{row['ratios'][name]:.3f}" for name in names]
            mode = "jit_compile" if jit_compile else "plain"
            rows.append([model, mode, f"{row['milliseconds']['dense']:.2f}", *ratios])
            print(f"  {', '.join(rows[-1])}", flush=True)
    print("\n".join(tables.text(["model", "", "dense ms", *names], rows, left=(0, 1))))
    is_whole = not options.only and not options.plain and len(names) == len(all_methods(1))
    path = options.output or (pathlib.Path(__file__).with_suffix(".json") if is_whole else None)
    if path is not None:
        path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
