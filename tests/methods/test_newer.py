"""The methods since RigL take the steps of NumPy models that are written from their papers."""

import keras
import numpy as np
import pytest
from references import newer_numpy, patterns_numpy
from references.pruning_numpy import global_masks, layer_masks
from references.rigl_numpy import MLP, top_k_mask, zeros

import tf_rigl
from tests.methods.test_exactness import (
    LEARNING_RATE,
    follow,
    make_batches,
    make_model,
    masks_of,
    reading_off,
    weights_of,
)

SPARSITY = 0.8
OFTEN = {"update_interval": 5, "end_step": 90}


def like(cls, sparse, **kwargs):
    """A NumPy model at the point where the library's stands."""
    given = {"sparsity": SPARSITY, "interval": 5, "end_step": 90, **kwargs}
    return cls(weights_of(sparse), masks_of(sparse), learning_rate=LEARNING_RATE, **given)


@pytest.mark.parametrize("initial", [0.0, 0.5])
@pytest.mark.parametrize("drop_fraction", [0.3, 0.5])
def test_granet(initial, drop_fraction):
    own = {"drop_fraction": drop_fraction, "prune_end": 60}
    method = tf_rigl.methods.GraNet(**OFTEN, **own, initial_sparsity=initial)
    sparse = make_model(method, SPARSITY, seed=0)
    assert sparse.sparsity == pytest.approx(initial, abs=0.01)
    follow(sparse, like(newer_numpy.GraNetMLP, sparse, **own, initial=initial), 0, 100)
    assert sparse.sparsity == pytest.approx(SPARSITY, abs=1e-9)


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize(
    "times", [(10, 5, (30, 40)), (3, 4, (17, 18)), (8, 4, (12, 30)), (0, 6, (30, 36))]
)
def test_acdc(scope, times):
    warm_up, phase, last = times
    method = tf_rigl.methods.ACDC(scope, warm_up=warm_up, phase=phase, last_dense=last)
    sparse = make_model(method, SPARSITY, seed=1)
    given = {"scope": scope, "warm_up": warm_up, "phase": phase, "last": last}
    reference = newer_numpy.AcdcMLP(
        weights_of(sparse), learning_rate=LEARNING_RATE, sparsity=SPARSITY, **given
    )
    follow(sparse, reference, 1, 50)
    assert sparse.sparsity == pytest.approx(SPARSITY, abs=1e-9)


@pytest.mark.parametrize(
    ("gamma", "ablates"), [(0.0, False), (0.5, True), (0.75, True), (1.0, True)]
)
def test_srigl(gamma, ablates):
    method = tf_rigl.methods.SRigL(**OFTEN, drop_fraction=0.3, gamma=gamma)
    sparse = make_model(method, SPARSITY, seed=2)
    for mask in masks_of(sparse):
        assert len(set(mask.sum(axis=0))) == 1
    reference = like(newer_numpy.SrigLMLP, sparse, gamma=gamma, drop_fraction=0.3)
    follow(sparse, reference, 2, 100)
    assert (reference.ablated > 0) == ablates


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("margins", [(0.2, 0.1, 0.0), (0.5, 0.0)])
def test_mest(soft, margins):
    """Growth is random: what grows is read off, and has to be new and as much as asked for."""
    own = {"margins": margins, "gradient_weight": 0.5, "soft": soft}
    sparse = make_model(tf_rigl.methods.MEST(**OFTEN, **own), SPARSITY, seed=3)
    reference = like(newer_numpy.MestMLP, sparse, **own)

    read_off = reading_off(sparse)
    # Where nothing moves, the library trains; so does the reference, at a margin of 0.
    for x, y in make_batches(3, 90):
        last = reference.step * len(margins) // 90 == len(margins) - 1
        still = last and all(
            int(mask.sum()) == n for mask, n in zip(reference.masks, reference.targets, strict=True)
        )
        reference.interval = 10**6 if still else 5
        sparse.train_on_batch(x, y)
        reference.train_on_batch(x, y, read_off)
        for weight, expected in zip(weights_of(sparse), reference.weights, strict=True):
            np.testing.assert_allclose(weight, expected, rtol=1e-9, atol=1e-12)
    assert sparse.sparsity == pytest.approx(SPARSITY, abs=1e-9)


def of_groups(dense):
    """The two largest of four inputs of an output."""
    count = patterns_numpy.nm_capacity(dense.shape, 2, 4)
    return patterns_numpy.nm_mask(np.abs(dense), count, 2, 4)


def of_all(dense):
    """The largest of a layer."""
    return top_k_mask(np.abs(dense), dense.size - zeros(0.8, dense.size))


@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize(
    ("pattern", "sparsity", "choose"), [("unstructured", 0.8, of_all), ("2:4", 0.5, of_groups)]
)
def test_ste(decay, pattern, sparsity, choose):
    keras.utils.set_random_seed(4)
    model = keras.Sequential(
        [
            keras.Input((20,), dtype="float64"),
            keras.layers.Dense(32, activation="relu", dtype="float64"),
            keras.layers.Dense(5, dtype="float64"),
        ]
    )
    dense = [layer.kernel.numpy() for layer in model.layers]
    method = tf_rigl.methods.SRSTE(decay=decay) if decay else tf_rigl.methods.STE()
    sparse = tf_rigl.sparsify(model, method, sparsity, "uniform_all", pattern=pattern, seed=0)
    sparse.compile(
        keras.optimizers.SGD(LEARNING_RATE),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype="float64"),
    )
    for item, start in zip(sparse.masked_weights, dense, strict=True):
        np.testing.assert_array_equal(item.state["dense"], start)
    first = [np.zeros(0)] * 4
    first[1], first[3] = (layer.bias.numpy() for layer in model.layers)
    reference = newer_numpy.SteMLP(
        first, dense, learning_rate=LEARNING_RATE, decay=decay, choose=choose
    )
    begun = masks_of(sparse)
    for step, (x, y) in enumerate(make_batches(4, 60)):
        sparse.train_on_batch(x, y)
        reference.train_on_batch(x, y)
        for mask, expected in zip(masks_of(sparse), reference.masks, strict=True):
            np.testing.assert_array_equal(mask, expected, err_msg=f"step {step}")
    kernels = [item.weight.numpy() for item in sparse.masked_weights]
    for weight, expected in zip(kernels, reference.weights[::2], strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-9, atol=1e-12)
    for mask, other in zip(masks_of(sparse), begun, strict=True):
        assert np.any(mask != other)


class Smooth(MLP):
    """The model with tanh in place of ReLU."""

    def gradients(self, x, labels):
        kernel1, bias1, kernel2, bias2 = self.weights
        hidden = np.tanh(x @ kernel1 + bias1)
        logits = hidden @ kernel2 + bias2
        exp = np.exp(logits - logits.max(axis=1, keepdims=True))
        slope = (exp / exp.sum(axis=1, keepdims=True) - np.eye(5)[labels]) / len(x)
        before = (slope @ kernel2.T) * (1 - hidden**2)
        return [x.T @ before, before.sum(axis=0), hidden.T @ slope, slope.sum(axis=0)]


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_grasp(scope, jit_compile):
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [
            keras.Input((20,), dtype="float64"),
            keras.layers.Dense(30, activation="tanh", dtype="float64"),
            keras.layers.Dense(5, dtype="float64"),
        ]
    )
    method = tf_rigl.methods.GraSP(scope=scope)
    sparse = tf_rigl.sparsify(model, method, SPARSITY, "uniform_all", seed=0)
    sparse.compile(
        keras.optimizers.SGD(LEARNING_RATE),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype="float64"),
        jit_compile=jit_compile,
    )
    reference = Smooth(weights_of(sparse), masks_of(sparse), learning_rate=LEARNING_RATE)
    batches = make_batches(5, 20)
    scores = [-score for score in newer_numpy.grasp_scores(reference, *batches[0])]
    counts = [score.size - zeros(SPARSITY, score.size) for score in scores]
    if scope == "global":
        reference.masks = global_masks(scores, sum(counts))
    else:
        reference.masks = layer_masks(scores, counts)
    for layer, mask in enumerate(reference.masks):
        reference.weights[2 * layer] = reference.weights[2 * layer] * mask
    for number, (x, y) in enumerate(batches):
        sparse.train_on_batch(x, y)
        if number:
            reference.descend(reference.gradients(x, y))
        for mask, expected in zip(masks_of(sparse), reference.masks, strict=True):
            np.testing.assert_array_equal(mask, expected)
    for weight, expected in zip(weights_of(sparse), reference.weights, strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-8, atol=1e-10)
