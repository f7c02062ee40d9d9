"""`tf_rigl.block_sparse.tune`: what it measures, and what it says of it."""

import keras
import numpy as np
import pytest

from tests.helpers import CLASSES, mlp
from tf_rigl import block_sparse
from tf_rigl.accounting.tuning import Measurement, Tuning

SHORT = {"rounds": 1, "steps": 1}


def model():
    return keras.Sequential(
        [
            keras.Input((24,)),
            keras.layers.Dense(32, activation="relu", name="hidden"),
            keras.layers.Dense(CLASSES, name="head"),
        ]
    )


@pytest.mark.parametrize("jit_compile", [False, True])
def test_each_block_size_is_measured_beside_the_dense_model(jit_compile):
    original = model()
    before = original.get_weights()
    tuning = block_sparse.tune(
        original,
        4,
        density=0.5,
        block_sizes=(4, 8, 64),
        distribution="uniform_all",
        exclude=["head"],
        optimizer=keras.optimizers.Adam(0.1),
        jit_compile=jit_compile,
        **SHORT,
    )
    assert [row.block_size for row in tuning.rows] == [None, 4, 8], "64 is larger than the kernel"
    dense = tuning.rows[0]
    assert dense.times_faster == 1
    assert dense.layers == []
    for row in tuning.rows[1:]:
        assert row.layers == ["hidden/kernel"]
        assert row.times_faster == dense.milliseconds / row.milliseconds
    # Of 6 blocks three are left, of 3 two, at least half.
    assert [row.sparsity for row in tuning.rows[1:]] == pytest.approx([1 / 2, 1 / 3])
    for weight, now in zip(before, original.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, now)


def test_convolutions_are_measured_with_blocks_over_all_taps():
    inputs = keras.Input((6, 6, 8))
    x = keras.layers.Conv2D(16, 3, name="wide")(inputs)
    network = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    tuning = block_sparse.tune(network, 2, density=0.25, block_sizes=(4, (1, 8)), **SHORT)
    assert [row.pattern for row in tuning.rows] == [None, "channels_4x4", "channels_1x8"]
    assert all(row.layers == ["wide/kernel"] for row in tuning.rows[1:])
    assert "1x8" in str(tuning)


def test_integers_and_several_inputs_and_outputs():
    tokens, numbers = keras.Input((3,), dtype="int32"), keras.Input((16,))
    x = keras.layers.Flatten()(keras.layers.Embedding(5, 4)(tokens))
    x = keras.layers.Concatenate()([x, keras.layers.Dense(16, name="hidden")(numbers)])
    outputs = [keras.layers.Dense(2, name=name)(x) for name in ("one", "two")]
    tuning = block_sparse.tune(
        keras.Model([tokens, numbers], outputs), 4, density=0.5, block_sizes=(8,), **SHORT
    )
    assert "hidden/kernel" in tuning.rows[1].layers


def test_inputs_of_unknown_shape_must_be_given():
    inputs = keras.Input((None, 16))
    free = keras.Model(inputs, keras.layers.Dense(16, name="hidden")(inputs))
    arguments = {"density": 0.5, "block_sizes": (8,), **SHORT}
    with pytest.raises(ValueError, match="`inputs` must be given"):
        block_sparse.tune(free, 4, **arguments)
    tuning = block_sparse.tune(free, 4, inputs=np.ones((4, 5, 16), "float32"), **arguments)
    assert len(tuning.rows) == 2


def test_the_best_is_the_fastest_and_the_table_says_so():
    rows = [
        Measurement(None, 40.0, 1.0, 0.0, []),
        Measurement(16, 20.0, 2.0, 0.9, ["a/kernel"], "block_16x16"),
        Measurement(32, 10.0, 4.0, 0.9, [f"{name}/kernel" for name in "abcde"], "block_32x32"),
    ]
    tuning = Tuning(rows)
    assert tuning.best == 32
    lines = str(tuning).splitlines()
    assert lines[1].split() == ["dense", "40.00", "1.00"]
    assert lines[2].split() == ["16", "20.00", "2.00", "0.900", "a/kernel"]
    assert lines[3].endswith("a/kernel, b/kernel, c/kernel and 2 more")
    assert lines[-1] == "Fastest: pattern='block_32x32'"
    assert Tuning(rows[:1]).best is None
    assert str(Tuning(rows[:1])).endswith("the dense model")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": None}, "`model`"),
        ({"model": keras.Sequential([keras.layers.Dense(3)])}, "built"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"density": 1.0}, "`density`"),
        ({"block_sizes": (0,)}, "`block_sizes`"),
        ({"block_sizes": (64,)}, "has no size"),
        ({"block_sizes": 32}, "`block_sizes`.*block_sizes=32"),
        ({"density": "all"}, "`density`.*density='all'"),
        ({"model": keras.Sequential([keras.Input((8,)), block_sparse.Dense(8)])}, "not sparse"),
        ({"rounds": 0}, "`rounds`"),
        ({"steps": True}, "`steps`"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        block_sparse.tune(**{"model": mlp(), "batch_size": 4, **arguments})
