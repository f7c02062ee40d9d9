"""Every kind of layer trains sparse, and only what may be masked is."""

import keras
import numpy as np
import pytest

from tests.helpers import (
    CLASSES,
    FEATURES,
    LAYER_CASES,
    active,
    compiled,
    equal_masks,
    fit,
    layer_model,
    mlp,
    random_data,
    rigl,
    sparsify,
)


@keras.saving.register_keras_serializable(package="tests")
class Shift(keras.constraints.Constraint):
    """A constraint that leaves no weight at zero."""

    def __call__(self, w):
        return w + 1.0


# Compiling these takes longest, and LSTM stands for them.
EAGER = ("SimpleRNN", "GRU", "RNN-cells", "Bidirectional", "GroupQueryAttention", "ConvLSTM2D")


@pytest.mark.parametrize("case", LAYER_CASES)
def test_trains_through_three_updates(case):
    """Masks move at steps 0, 2 and 4 and at no other; counts and zeros hold throughout."""
    model, shape, dtype, paths = layer_model(case)
    sparse = sparsify(model, rigl(start_step=0), exclude=["head"])
    compiled(sparse, run_eagerly=case in EAGER)
    assert [item.path for item in sparse.masked_weights] == paths
    before, counts = sparse.masks, active(sparse)

    masks = fit(sparse, *random_data(shape, batches=5, dtype=dtype))

    assert sparse.step == 5
    assert active(sparse) == counts
    for path in paths:
        history = [before[path], *(m[path] for m in masks)]
        moved = [step for step in range(5) if (history[step] != history[step + 1]).any()]
        assert moved == [0, 2, 4], path


def test_depthwise_kernels_biases_and_normalisation_stay_dense():
    k = keras.layers
    model = keras.Sequential(
        [
            keras.Input((6, 6, 4)),
            k.DepthwiseConv2D(3),
            k.BatchNormalization(),
            k.SeparableConv2D(6, 3),
            k.LayerNormalization(),
            k.Flatten(),
            k.Dense(CLASSES, name="head"),
        ]
    )
    sparse = compiled(sparsify(model), run_eagerly=True)
    assert [i.path for i in sparse.masked_weights] == [
        "separable_conv2d/pointwise_kernel",
        "head/kernel",
    ]
    fit(sparse, *random_data((6, 6, 4), batches=5))
    masked = {id(item.weight) for item in sparse.masked_weights}
    dense = [w for w in sparse.trainable_weights if id(w) not in masked]
    assert len(dense) == 9
    for weight in dense:
        assert np.count_nonzero(weight.numpy()) == weight.numpy().size, weight.path


def test_frozen_layers_with_masks_keep_weights_and_masks():
    model = mlp()
    model.get_layer("hidden").trainable = False
    halves = {"hidden": 0.5, "head": 0.5}  # Without being named, "hidden" has no mask.
    sparse = compiled(sparsify(model, distribution=halves), run_eagerly=True)
    hidden, head = sparse.masked_weights
    weight, before = hidden.weight.numpy(), sparse.masks
    fit(sparse, *random_data(batches=5))
    np.testing.assert_array_equal(hidden.weight.numpy(), weight)
    np.testing.assert_array_equal(hidden.mask.numpy(), before[hidden.path])
    assert (head.mask.numpy() != before[head.path]).any()


def test_layer_frozen_after_sparsify_keeps_weights_and_masks():
    """Freezing and compiling again, as for fine-tuning, holds on the next run."""
    sparse = compiled(sparsify(mlp()), run_eagerly=True)
    fit(sparse, *random_data(batches=5))
    sparse.get_layer("hidden").trainable = False
    compiled(sparse, run_eagerly=True)
    hidden = sparse.masked_weights[0]
    weight, mask = hidden.weight.numpy(), hidden.mask.numpy()
    fit(sparse, *random_data(batches=5))
    np.testing.assert_array_equal(hidden.weight.numpy(), weight)
    np.testing.assert_array_equal(hidden.mask.numpy(), mask)


def test_weight_that_the_loss_does_not_reach_keeps_its_mask():
    inputs = keras.Input((FEATURES,))
    x = keras.layers.Dense(8, name="hidden")(inputs)
    outputs = {
        "used": keras.layers.Dense(CLASSES, name="used")(x),
        "idle": keras.layers.Dense(CLASSES, name="idle")(x),
    }
    sparse = sparsify(keras.Model(inputs, outputs))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    sparse.compile("sgd", loss={"used": loss}, run_eagerly=True)
    before = sparse.masks
    x, y = random_data(batches=5)
    fit(sparse, x, {"used": y})
    assert (sparse.masks["used/kernel"] != before["used/kernel"]).any()
    np.testing.assert_array_equal(sparse.masks["idle/kernel"], before["idle/kernel"])


@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_constraint": keras.constraints.UnitNorm()},
        {"kernel_constraint": keras.constraints.MinMaxNorm(0.5, 1.0)},
        {"kernel_constraint": Shift()},
        {"kernel_regularizer": keras.regularizers.L1L2(0.1, 0.1)},
        {"kernel_regularizer": keras.regularizers.OrthogonalRegularizer(0.1)},
        {"activity_regularizer": keras.regularizers.L2(0.1)},
    ],
    ids=["unit_norm", "min_max_norm", "shift", "l1_l2", "orthogonal", "activity"],
)
def test_constraints_and_regularizers_do_not_reach_masked_entries(arguments):
    inputs = keras.Input((FEATURES,))
    x = keras.layers.Dense(8, name="hidden", **arguments)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(CLASSES)(x))
    sparse = compiled(sparsify(model), run_eagerly=True)
    before = sparse.masks
    fit(sparse, *random_data(batches=5))
    assert not equal_masks(sparse.masks, before)


def test_layer_of_sparsity_zero_is_left_alone():
    """A layer whose target is zero keeps a mask of ones, and trains as it would dense."""
    sparse = compiled(sparsify(mlp(), distribution={"head": 0.5}), run_eagerly=True)
    fit(sparse, *random_data(batches=5))
    assert sparse.masks["hidden/kernel"].all()
    assert np.count_nonzero(sparse.get_layer("hidden").kernel.numpy()) == 80


def test_method_static_never_changes_masks():
    sparse = compiled(sparsify(mlp(), "static"), run_eagerly=True)
    before = sparse.masks
    fit(sparse, *random_data(batches=5))
    assert equal_masks(sparse.masks, before)
