"""Pruning is all you need: a network that was never trained comes as near to a target as wanted.

    python -m benchmarks.pruning_alone

A target network with ReLU is approximated by pruning a random one of twice its depth, whose weights
are never changed. A target weight w between x_j and y_i is `w x = w relu(x) - w relu(-x)`. For each
of the two terms, k random units `v relu(u x_j)` are candidates, and pruning keeps, at that place,

- one from many: the unit whose product `u v` is nearest to the term's weight. The error falls like
  1 / k (Malach et al., 2020, arXiv 2002.00585);
- a subset sum: the units whose products sum up nearest to it. The error falls exponentially in k
  (Pensia et al., 2020, arXiv 2006.07990).

Measures the error of single weights, and of whole networks: masks of a `tf_rigl.SparseModel` around
a random Keras model. Writes JSON and a picture.
"""

import argparse
import itertools
import pathlib

import keras
import numpy as np
from matplotlib.figure import Figure

import tf_rigl
from tf_rigl._base import files, tables

CANDIDATES = {"one from many": (2, 4, 8, 16, 32, 64, 128), "subset sum": (2, 4, 6, 8, 10, 12, 14)}
WEIGHTS, SEEDS, EXAMPLES = 300, 5, 2_000
LARGEST = 0.5  # Of the target's weights; random ones lie in [-1, 1].
SIZES = (6, 5, 3)  # Inputs, hidden units and outputs of the target.


def one_from_many(products, wanted):
    """Returns which candidates are kept: the one nearest to what is wanted, or none.

    Args:
        products: float array, the candidates' products.
        wanted: float.
    """
    kept = np.zeros(len(products), bool)
    best = np.abs(products - wanted).argmin()
    kept[best] = abs(products[best] - wanted) < abs(wanted)
    return kept


def subset_sum(products, wanted):
    """Returns which candidates are kept: the subset whose sum is nearest; tries all."""
    bits = np.arange(2 ** len(products))[:, None] >> np.arange(len(products)) & 1
    return bits[np.abs(bits @ products - wanted).argmin()].astype(bool)


RULES = {"one from many": one_from_many, "subset sum": subset_sum}


def errors(rule, count, rng):
    """Returns the errors of random weights with so many candidates."""
    found = []
    for wanted in rng.uniform(-LARGEST, LARGEST, WEIGHTS):
        products = np.maximum(rng.uniform(-1, 1, count), 0) * rng.uniform(-1, 1, count)
        found.append(abs(products[RULES[rule](products, wanted)].sum() - wanted))
    return np.array(found)


def masks_of_layer(matrix, first, second, count, rule):
    """Returns masks of two random kernels, whose layers then compute what a matrix does.

    Args:
        matrix: float array of shape (inputs, outputs), the target's kernel.
        first: float array of shape (inputs, 2 * count * matrix.size), the random kernel before the
            ReLU: each target weight has `2 * count` units of its own.
        second: float array, the random kernel after it.
        count: int, the candidates for each term.
        rule: str.
    """
    masks = np.zeros(first.shape, bool), np.zeros(second.shape, bool)
    for number, (j, i) in enumerate(np.ndindex(*matrix.shape)):
        for sign in (1, -1):
            begin = count * (2 * number + (sign < 0))
            units = np.arange(begin, begin + count)
            products = np.maximum(sign * first[j, units], 0) * second[units, i]
            kept = units[RULES[rule](products, sign * matrix[j, i])]
            masks[0][j, kept] = masks[1][kept, i] = True
    return masks


def approximated(target, count, rule, seed):
    """Returns a random network with masks under which it computes nearly what the target does.

    Args:
        target: list of float arrays, the kernels of a network with ReLU between them.
        count, rule: as for `masks_of_layer`.
        seed: int, of the random weights.

    Returns:
        A `tf_rigl.SparseModel`.
    """
    keras.utils.set_random_seed(seed)
    uniform = keras.initializers.RandomUniform(-1, 1)
    layers = [keras.Input(target[0].shape[:1])]
    for number, kernel in enumerate(target):
        last = number == len(target) - 1
        for name, units, activation in (
            ("candidates", 2 * count * kernel.size, "relu"),
            ("sums", kernel.shape[1], None if last else "relu"),
        ):
            layers.append(
                keras.layers.Dense(
                    units,
                    activation,
                    use_bias=False,
                    kernel_initializer=uniform,
                    name=f"{name}_{number}",
                )
            )
    sparse = tf_rigl.sparsify(keras.Sequential(layers), "static", 0.0)
    kernels = [item.weight.numpy() for item in sparse.masked_weights]
    masks = []
    for number, kernel in enumerate(target):
        masks += masks_of_layer(kernel, *kernels[2 * number : 2 * number + 2], count, rule)
    for item, mask in zip(sparse.masked_weights, masks, strict=True):
        item.set_mask(mask)
    return sparse


def network_error(count, rule, seed):
    """Returns the largest error over random inputs of norm at most 1, over the target's largest."""
    rng = np.random.default_rng(seed)
    target = [rng.uniform(-LARGEST, LARGEST, shape) for shape in itertools.pairwise(SIZES)]
    sparse = approximated(target, count, rule, seed)
    x = rng.normal(size=(EXAMPLES, SIZES[0]))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    expected = x
    for number, kernel in enumerate(target):
        expected = (np.maximum(expected, 0) if number else expected) @ kernel
    outputs = sparse.predict(x.astype("float32"), verbose=0)
    return float(np.abs(outputs - expected).max() / np.abs(expected).max())


def draw(rows, path):
    """Draws the errors against the candidates: a straight line in one of the two scales each."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, (rule, scale) in zip(
        figure.subplots(1, 2), [("one from many", "log"), ("subset sum", "linear")], strict=True
    ):
        chosen = [row for row in rows if row["rule"] == rule]
        x = [row["candidates"] for row in chosen]
        axes.plot(x, [row["median"] for row in chosen], "o-", label="single weights, median")
        axes.plot(x, [row["network"] for row in chosen], "s-", label="network, largest")
        begin = chosen[0]["median"]
        bound = [begin * x[0] / k for k in x] if scale == "log" else None
        if bound:
            axes.plot(x, bound, "k:", label="1 / k")
        axes.set(xscale=scale, yscale="log", xlabel="candidates of a term", title=rule)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.axes[0].set_ylabel("error")
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="runs/pruning_alone", type=pathlib.Path)
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    rows = []
    for rule, counts in CANDIDATES.items():
        for count in counts:
            found = errors(rule, count, np.random.default_rng(0))
            networks = [network_error(count, rule, seed) for seed in range(SEEDS)]
            rows.append(
                {
                    "rule": rule,
                    "candidates": count,
                    "median": float(np.median(found)),
                    "mean": float(found.mean()),
                    "network": float(np.mean(networks)),
                    "networks": networks,
                }
            )
            print(rows[-1], flush=True)
    header = ["rule", "candidates", "median error of a weight", "error of a network"]
    lines = [
        [r["rule"], str(r["candidates"]), f"{r['median']:.5f}", f"{r['network']:.4f}"] for r in rows
    ]
    print("\n".join(tables.markdown(header, lines)))
    files.write_text(output / "pruning_alone.json", files.to_json(rows))
    draw(rows, output / "pruning_alone.png")


if __name__ == "__main__":
    main()
