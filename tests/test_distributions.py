"""How sparse each layer is to be: from formulas worked by hand, and from their reference."""

import functools
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
from references import rigl_numpy

from tf_rigl import distributions

LENET = {"a": (784, 300), "b": (300, 100), "c": (100, 10)}
CNN = {"stem": (3, 3, 3, 16), "body": (3, 3, 16, 64), "wide": (1, 1, 64, 256), "head": (256, 10)}

BALANCED = {
    "erdos_renyi": (distributions.erdos_renyi, rigl_numpy.erdos_renyi),
    "erk": (distributions.erdos_renyi_kernel, rigl_numpy.erdos_renyi_kernel),
}
every_balanced = pytest.mark.parametrize("name", BALANCED)
every_distribution = pytest.mark.parametrize("name", distributions.NAMES)


@pytest.fixture(autouse=True)
def fresh_start():
    """Replaces that of conftest.py, which is slow: no test here makes a model."""


def entries(shape):
    return math.prod(shape)


# Uniform.


def test_uniform_leaves_the_first_layer_dense():
    assert distributions.uniform(LENET, 0.9) == {"a": 0.0, "b": 0.9, "c": 0.9}


def test_uniform_can_treat_the_first_layer_like_the_others():
    sparsities = distributions.uniform(LENET, 0.9, first_layer_dense=False)
    assert sparsities == {"a": 0.9, "b": 0.9, "c": 0.9}


def test_uniform_keeps_what_is_fixed_the_first_layer_included():
    sparsities = distributions.uniform(LENET, 0.9, fixed={"a": 0.5, "c": 0.0})
    assert sparsities == {"a": 0.5, "b": 0.9, "c": 0.0}


def test_uniform_of_no_layers_is_empty():
    assert distributions.uniform({}, 0.9) == {}


# Erdős-Rényi and ERK, by hand.


@every_balanced
def test_one_layer_gets_the_sparsity_asked_for(name):
    function, _ = BALANCED[name]
    assert function({"a": (20, 50)}, 0.9) == pytest.approx({"a": 0.9})


@every_balanced
def test_equal_layers_share_equally(name):
    function, _ = BALANCED[name]
    shapes = {"a": (8, 8), "b": (8, 8), "c": (8, 8)}
    assert function(shapes, 0.75) == pytest.approx({"a": 0.75, "b": 0.75, "c": 0.75})


@every_balanced
def test_two_dense_layers_by_hand(name):
    """raw = 40/400 and 60/800; eps (40 + 60) = (1200 - 1080) = 120, so eps = 1.2."""
    function, _ = BALANCED[name]
    sparsities = function({"a": (20, 20), "b": (20, 40)}, 0.9)
    assert sparsities == pytest.approx({"a": 1 - 0.12, "b": 1 - 0.09})


def test_a_kernel_counts_its_width_and_height_in_erk_only():
    """ERK: raw N = 3 + 3 + 4 + 8 = 18 and 4 + 8 = 12, 320 entries, 160 of them kept.

    Erdős–Rényi: raw = 12/32 for both, so both have the sparsity asked for.
    """
    shapes = {"conv": (3, 3, 4, 8), "pointwise": (1, 1, 4, 8)}
    assert distributions.erdos_renyi(shapes, 0.5) == pytest.approx({"conv": 0.5, "pointwise": 0.5})
    # raw N = 18 and 14; of "pointwise" (raw 14/32) eps = 160/32 would keep 2.19: dense.
    # Then eps 18 = (288 - 144) - 16 = 128, and "conv" keeps 128 of 288.
    sparsities = distributions.erdos_renyi_kernel(shapes, 0.5)
    assert sparsities == pytest.approx({"conv": 1 - 128 / 288, "pointwise": 0.0})


def test_a_saturated_layer_is_dense_and_the_others_make_up_for_it():
    """raw N = 1084, 400, 110; "c" (raw 0.11) would keep 1.8 of itself.

    Then eps (1084 + 400) = (23520 + 3000) - 900 = 25620.
    """
    sparsities = distributions.erdos_renyi(LENET, 0.9)
    eps = 25_620 / 1484
    assert sparsities == pytest.approx(
        {"a": 1 - eps * 1084 / 235_200, "b": 1 - eps * 400 / 30_000, "c": 0.0}
    )


@every_balanced
def test_layers_tied_at_the_maximum_saturate_together(name):
    function, _ = BALANCED[name]
    shapes = {"small": (4, 4), "large": (100, 100), "same": (4, 4), "tied": (3, 6)}
    sparsities = function(shapes, 0.9)
    # (4, 4) and (3, 6) have the same raw density, 1/2.
    assert sparsities["small"] == sparsities["same"] == sparsities["tied"] == 0.0
    kept = 1000 - (14 + 14 + 16)
    assert sparsities["large"] == pytest.approx(1 - kept / 10_000)


@every_balanced
def test_layers_saturate_one_after_the_other(name):
    """Only once "tiny" is dense does the factor rise enough for "small" to become so."""
    function, reference = BALANCED[name]
    shapes = {"tiny": (2, 2), "small": (10, 10), "large": (100, 100)}
    sparsities = function(shapes, 0.92)
    assert sparsities["tiny"] == 0.0
    assert sparsities == pytest.approx(reference(shapes, 0.92))


@every_balanced
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.8, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("shapes", [LENET, CNN], ids=["lenet", "cnn"])
def test_agrees_with_the_reference(name, sparsity, shapes):
    function, reference = BALANCED[name]
    expected = reference(shapes, sparsity)
    assert function(shapes, sparsity) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@every_balanced
@pytest.mark.parametrize("fixed", [{"stem": 0.0}, {"head": 0.5}, {"stem": 0.99, "body": 0.0}])
def test_fixed_layers_are_kept_and_left_out_of_the_balance(name, fixed):
    function, reference = BALANCED[name]
    sparsities = function(CNN, 0.9, fixed=fixed)
    assert {n: sparsities[n] for n in fixed} == fixed
    assert sparsities == pytest.approx(reference(CNN, 0.9, fixed))
    rest = {n: shape for n, shape in CNN.items() if n not in fixed}
    assert {n: sparsities[n] for n in rest} == pytest.approx(function(rest, 0.9))


@every_balanced
def test_all_layers_may_be_fixed(name):
    function, _ = BALANCED[name]
    fixed = {"a": 0.1, "b": 0.2, "c": 0.3}
    assert function(LENET, 0.9, fixed=fixed) == fixed


@every_balanced
def test_the_balance_is_met_exactly(name):
    """eps is such that the zeros asked for, layer by layer, are those there are in all."""
    function, _ = BALANCED[name]
    sparsities = function(CNN, 0.9)
    zeros = sum(sparsities[n] * entries(shape) for n, shape in CNN.items())
    assert zeros == pytest.approx(sum(9 * entries(s) // 10 for s in CNN.values()))


@every_balanced
def test_a_whole_number_of_zeros_is_not_lost_to_rounding(name):
    """0.29 * 100 is 28.999999999999996, and must not make 28 zeros of 29."""
    function, _ = BALANCED[name]
    sparsities = function({"a": (10, 10), "b": (10, 10)}, 0.29)
    assert sparsities == pytest.approx({"a": 0.29, "b": 0.29}, abs=1e-12)


@pytest.mark.parametrize("equal", [True, False])
def test_layers_that_share_one_number_of_zeros_lose_less_than_one_in_all(equal):
    rng = np.random.default_rng(0)
    for _ in range(200):
        entries = rng.integers(1, 30, rng.integers(1, 9))
        thousandths = rng.integers(0, 1000, 1 if equal else len(entries)) + 0 * entries
        found = distributions.zeros_together(list(thousandths / 1000), list(entries))
        exact = thousandths * entries  # In thousandths.
        up = -(-exact // 1000)
        assert all(exact // 1000 <= found)
        assert all(found <= up)
        assert all(found < entries)
        if all(up < entries):  # No layer would get zeros alone.
            assert sum(found) == exact.sum() // 1000


# All of them.


@every_distribution
def test_no_sparsity_means_dense_layers(name):
    assert distributions.get(name)(CNN, 0.0) == dict.fromkeys(CNN, 0.0)


@every_distribution
def test_names_come_in_model_order_with_python_floats(name):
    sparsities = distributions.get(name)(CNN, np.float32(0.5), fixed={"body": 0})
    assert list(sparsities) == list(CNN)
    assert {type(s) for s in sparsities.values()} == {float}


@every_distribution
def test_arguments_are_not_changed(name):
    shapes, fixed = dict(CNN), {"stem": 0.0}
    distributions.get(name)(shapes, 0.9, fixed=fixed)
    assert shapes == CNN
    assert fixed == {"stem": 0.0}


# Errors name the argument and say what was received.


@every_distribution
@pytest.mark.parametrize("sparsity", [1.0, 1, -0.1, 90, "0.9", None, True, float("nan")])
def test_refuses_a_sparsity_out_of_range(name, sparsity):
    with pytest.raises(ValueError, match=r"`sparsity` must be .*\[0, 1\)") as error:
        distributions.get(name)(CNN, sparsity)
    assert f"Received: sparsity={sparsity!r}" in str(error.value)


@every_distribution
def test_refuses_a_fixed_sparsity_out_of_range(name):
    with pytest.raises(ValueError, match=r"fixed\['stem'\].*Received: fixed\['stem'\]=1.5"):
        distributions.get(name)(CNN, 0.9, fixed={"stem": 1.5})


@every_distribution
@pytest.mark.parametrize(
    ("shapes", "fixed", "message"),
    [
        ([(3, 3)], None, r"`shapes` must be a mapping of layer name to kernel shape.*\[\(3, 3\)\]"),
        (None, None, "`shapes` must be a mapping of layer name to kernel shape.*shapes=None"),
        ({"a": 3}, None, r"`shapes` must give every axis a size.*shapes\['a'\]=3"),
        ({"a": "33"}, None, "`shapes` must give every axis a size.*'33'"),
        ({"a": (3, "x")}, None, "`shapes` must give every axis a size.*'x'"),
        ({"a": (3.5, 3)}, None, r"`shapes` must give every axis a size.*3\.5"),
        ({"a": (3, None)}, None, "`shapes` must give every axis a size.*None"),
        ({"a": (3, 3)}, ["a"], r"`fixed` must be a mapping of layer name to sparsity.*\['a'\]"),
    ],
)
def test_wrong_types_are_named(name, shapes, fixed, message):
    with pytest.raises(ValueError, match=message):
        distributions.get(name)(shapes, 0.5, fixed=fixed)


@every_distribution
def test_a_fixed_layer_that_is_not_there_is_named_with_the_closest(name):
    with pytest.raises(ValueError, match=r"`fixed`.*Did you mean 'stem'.*Received: fixed={'sten"):
        distributions.get(name)(CNN, 0.9, fixed={"sten": 0.0})


@every_distribution
@pytest.mark.parametrize("shape", [(), (0, 3), (None, 3), (-1, 3)])
def test_refuses_a_shape_with_an_empty_axis(name, shape):
    with pytest.raises(ValueError, match=r"`shapes`.*Received: ") as error:
        distributions.get(name)({"layer": shape}, 0.9)
    assert f"shapes['layer']={shape}" in str(error.value)


# Looking them up.


def test_get_finds_each_by_its_name():
    assert distributions.get("uniform") is distributions.uniform
    assert distributions.get("erdos_renyi") is distributions.erdos_renyi
    assert distributions.get("erk") is distributions.erdos_renyi_kernel


def test_get_passes_functions_through():
    function = functools.partial(distributions.uniform, first_layer_dense=False)
    assert distributions.get(function) is function


def test_get_offers_the_closest_name():
    message = r"`distribution`.*Did you mean 'erdos_renyi'.*Received: distribution='erdos-renyi'"
    with pytest.raises(ValueError, match=message):
        distributions.get("erdos-renyi")


@pytest.mark.parametrize("identifier", [None, 3, ["erk"]])
def test_get_refuses_what_is_neither_a_name_nor_a_function(identifier):
    with pytest.raises(ValueError, match=r"`distribution` must be one of 'erdos_renyi', 'erk'"):
        distributions.get(identifier)


def test_importing_it_loads_neither_tensorflow_nor_keras():
    code = (
        "import sys, tf_rigl.distributions\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        "print(*sorted(loaded & {'tensorflow', 'keras', 'tf_keras'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_first_layer_of_a_custom_block_is_one_layer():
    """Attention and recurrent layers are one layer, a block of somebody's own is not."""
    import keras

    import tf_rigl

    class Block(keras.layers.Layer):
        def __init__(self, first, **kwargs):
            super().__init__(**kwargs)
            self.parts = [first, keras.layers.Dense(8), keras.layers.Dense(8)]

        def call(self, x):
            for number, part in enumerate(self.parts):
                is_attention = not number and isinstance(part, keras.layers.MultiHeadAttention)
                x = part(x, x) if is_attention else part(x)
            return x

    def planned(first):
        inputs = keras.Input((4, 8))
        model = keras.Model(inputs, keras.layers.Dense(8)(Block(first)(inputs)))
        rows = tf_rigl.plan(model, 0.5, "uniform").layers
        return [row.sparsity for row in rows if not row.name.endswith("products")]

    assert planned(keras.layers.Dense(8)) == [0, 0.5, 0.5, 0.5]
    attention = keras.layers.MultiHeadAttention(2, 4)
    assert planned(attention) == [0, 0, 0, 0, 0.5, 0.5, 0.5]
    recurrent = keras.layers.Bidirectional(keras.layers.LSTM(4, return_sequences=True))
    assert planned(recurrent) == [0, 0, 0, 0, 0.5, 0.5, 0.5]


def test_a_first_layer_that_has_most_of_the_weights_is_told():
    import keras

    import tf_rigl

    def model():
        dense = keras.layers.Dense
        layers = [dense(8, name="first"), dense(32), dense(8)]
        return keras.Sequential([keras.Input((64,)), *layers])

    with pytest.warns(UserWarning, match=r"The sparsity is 0\.4 in place of 0\.8"):
        tf_rigl.sparsify(model(), sparsity=0.8, distribution="uniform")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tf_rigl.sparsify(model(), sparsity=0.8, distribution="erk")
        tf_rigl.sparsify(model(), sparsity=0.8, distribution="uniform", fixed={"first": 0.0})
