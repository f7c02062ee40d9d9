"""What has no mask is named: in one warning, and in reports. Frozen weights are left alone."""

import json
import warnings

import keras
import numpy as np
import pytest

import tf_rigl
from tests.helpers import (
    CLASSES,
    FEATURES,
    METHODS,
    Experts,
    compiled,
    mlp,
    random_data,
    rigl,
    sparsify,
    uniform,
)

k, ops = keras.layers, keras.ops
WARNING = "have no masks and stay dense"


class Places(k.Layer):
    """Adds a table of positions."""

    def build(self, input_shape):
        self.table = self.add_weight(shape=input_shape[1:], name="table")

    def call(self, x):
        return x + self.table


def network(*middle, shape=(12, 8)):
    """Layers between an input and a classifier."""
    return keras.Sequential([keras.Input(shape), *middle, k.Flatten(), k.Dense(3, name="head")])


def messages(model, **kwargs):
    """The warnings of `sparsify` about what has no mask."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tf_rigl.sparsify(model, "static", 0.5, **kwargs)
    found = [each for each in caught if WARNING in str(each.message)]
    assert all(each.filename == __file__ for each in found)
    return [str(each.message) for each in found]


def test_the_largest_of_the_rest_are_named_once():
    model = network(*(Places(name=f"places_{n}") for n in range(4)), k.Dense(8))
    (message,) = messages(model)
    share = 384 / model.count_params()
    assert message.startswith(f"Weights with {share:.0%} of the trained parameters")
    assert "'places_0/table' (12x8, " in message
    assert "not a kernel)" in message
    assert "'places_2/table'" in message
    assert "'places_3/table'" not in message
    assert "and 1 more" in message
    assert "`get_prunable_weights()`" in message


def test_a_model_that_is_not_built_yet_warns_when_it_gets_its_masks():
    class Late(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.places, self.head = Places(), k.Dense(3)

        def call(self, x):
            return self.head(self.places(x))

    model = Late()
    sparse = tf_rigl.sparsify(model, "static", 0.5)
    with pytest.warns(UserWarning, match=WARNING) as caught:
        sparse(np.zeros((2, 12, 8), "float32"))
    assert [each.filename for each in caught if WARNING in str(each.message)] == [__file__]


@pytest.mark.parametrize("compute", ["masked", "sparse"])
def test_the_warning_is_that_of_every_form(compute):
    model = network(Places(), k.Dense(8))
    assert len(messages(model, pattern="block_4x4", compute=compute)) == 1


@pytest.mark.parametrize(
    "middle",
    [
        [Places(), k.Dense(200)],  # A small part of the parameters.
        [k.BatchNormalization(), k.LayerNormalization((1, 2)), k.Conv1D(8, 3)],
        [k.DepthwiseConv1D(3), k.Dense(64)],
        [Experts(40)],
    ],
    ids=["little", "normalisation", "depthwise", "experts"],
)
def test_a_small_rest_is_not_worth_a_warning(middle):
    assert messages(network(*middle)) == []


def test_what_was_chosen_to_stay_dense_is_not_named():
    model = network(Experts(40, name="experts"), k.Dense(40, name="wide"))
    assert messages(model, exclude=["experts", "wide"]) == []
    assert messages(model, distribution={"head": 0.5}) == []
    sparse = tf_rigl.sparsify(model, "static", 0.5, exclude=["experts", "wide"])
    assert [each.name for each in tf_rigl.report(sparse).unmasked] == ["experts/place"]


class Looping(Places):
    """Multiplies in a loop, which is not followed."""

    def call(self, x):
        return ops.fori_loop(0, 2, lambda _, y: y @ ops.transpose(self.table) @ self.table, x)


def test_unknown_uses_are_named_and_their_flops_too():
    model = network(Looping(name="loop"))
    (message,) = messages(model)
    assert "of unknown use" in message
    report = tf_rigl.report(model)
    assert report.uncounted == ["loop"]
    assert "FLOPs of products left out, in: loop" in str(report)


@pytest.mark.parametrize("change", ["lora", "int8"])
def test_lora_and_quantization_are_named(change):
    model = network(k.Dense(64, name="touched"))
    layer = model.get_layer("touched")
    layer.enable_lora(2) if change == "lora" else layer.quantize("int8")
    (message,) = messages(model)
    reason = "a kernel with LoRA" if change == "lora" else "quantized to int8"
    assert f"'touched/kernel' (8x64, {512 / model.count_params():.1%}" in message
    assert reason in message
    assert "`tf_rigl.strip` the model first" in message
    layer = model.get_layer("head")
    layer.enable_lora(2) if change == "lora" else layer.quantize("int8")
    with pytest.raises(ValueError, match=r"no maskable layer.*with LoRA or of integers"):
        sparsify(model)


def test_reports_name_what_has_no_mask():
    model = network(Places(name="places"), k.Dense(8))
    sparse = sparsify(model)
    for report in (tf_rigl.report(model), tf_rigl.plan(model, 0.5), tf_rigl.report(sparse)):
        (rest,) = report.unmasked
        assert (rest.name, rest.shape, rest.params) == ("places/table", (12, 8), 96)
        assert rest.share == 96 / model.count_params()
        assert "\nnot masked: 'places/table' (12x8, 20.9% of the parameters, not a" in str(report)
        assert json.loads(json.dumps(report.to_dict()))["unmasked"][0]["shape"] == [12, 8]


# Frozen weights.


def backbone():
    """A classifier on top of a frozen model."""
    base = keras.Sequential(
        [keras.Input((FEATURES,)), k.Dense(16, "relu", name="one"), k.Dense(8, name="two")],
        name="base",
    )
    base.trainable = False
    inputs = keras.Input((FEATURES,))
    x = k.Dense(12, "relu", name="hidden")(base(inputs))
    return keras.Model(inputs, k.Dense(CLASSES, name="head")(x))


@pytest.mark.parametrize("name", ["static", "rigl", "magnitude", "snip", "edge-popup"])
def test_a_frozen_backbone_stays_as_it_is(name):
    model = backbone()
    before = model.get_layer("base").get_weights()
    sparse = compiled(sparsify(model, METHODS[name]()), run_eagerly=True)
    assert list(sparse.masks) == ["hidden/kernel", "head/kernel"]
    x, y = random_data()
    sparse.fit(x, y, batch_size=8, verbose=0)
    for old, new in zip(before, sparse.get_layer("base").get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert sparse.sparsity == pytest.approx(0.5, abs=0.01)  # Of the others alone.
    assert messages(model) == []


def test_reports_leave_frozen_weights_out_of_the_sparsity():
    model = backbone()
    sparse = sparsify(model)
    for report in (tf_rigl.plan(model, 0.5, uniform), tf_rigl.report(sparse)):
        assert report.sparsity == pytest.approx(0.5)
        assert [row.masked for row in report.layers] == [False, False, True, True]
        assert [each.reason for each in report.unmasked] == ["frozen", "frozen"]
        assert "frozen, not masked: 2 weights" in str(report)
    assert tf_rigl.report(tf_rigl.strip(sparse)).to_dict() == report.to_dict()
    stripped = tf_rigl.strip(sparsify(mlp()))
    stripped.trainable = False  # What was pruned before it was frozen counts.
    assert tf_rigl.report(stripped).sparsity == pytest.approx(0.5)


@pytest.mark.parametrize("how", ["fixed", "distribution"])
def test_frozen_weights_are_masked_if_they_are_named(how):
    model = backbone()
    if how == "fixed":
        sparse = sparsify(model, rigl(), fixed={"one": 0.75}, distribution="uniform_all")
        expected = ["base/one/kernel", "hidden/kernel", "head/kernel"]
    else:
        sparse = sparsify(model, rigl(), distribution={"base": 0.75})
        expected = ["base/one/kernel", "base/two/kernel", "hidden/kernel", "head/kernel"]
    assert list(sparse.masks) == expected
    assert np.mean(sparse.masks["base/one/kernel"]) == 0.25
    planned = tf_rigl.plan(model, distribution={"base": 0.75})
    assert [row.masked for row in planned.layers] == [True] * 4


def test_a_model_that_is_frozen_altogether_is_refused():
    model = backbone()
    model.trainable = False
    with pytest.raises(ValueError, match=r"not frozen: .*Unfreeze.*in `fixed`.*'base/one"):
        sparsify(model)


def test_two_fits_of_transfer_learning():
    """As the guide says: train the head, unfreeze, then prune everything."""
    model, (x, y) = compiled(backbone(), run_eagerly=True), random_data()
    model.fit(x, y, verbose=0)
    model.get_layer("base").trainable = True
    sparse = compiled(sparsify(model, METHODS["magnitude"]()), run_eagerly=True)
    np.testing.assert_array_equal(sparse(x), model(x))
    assert len(sparse.masks) == 4
    sparse.fit(x, y, batch_size=8, verbose=0)
    assert sparse.sparsity == pytest.approx(0.5, abs=0.01)


class Distiller(keras.Model):
    """A student that learns from a teacher."""

    def __init__(self, student, teacher):
        super().__init__()
        self.student, self.teacher = student, teacher

    def call(self, x):
        return self.student(x)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return keras.losses.mean_squared_error(self.teacher(x, training=False), y_pred)


@pytest.mark.filterwarnings("ignore:Keras cannot clone")
def test_a_frozen_teacher_is_left_alone():
    teacher = mlp("teacher")
    teacher.trainable = False
    model, before = Distiller(mlp("student"), teacher), teacher.get_weights()
    x, y = random_data(batches=4)
    model(x)
    sparse = sparsify(model, rigl())
    assert list(sparse.masks) == ["student/hidden/kernel", "student/head/kernel"]
    sparse.compile("adam", run_eagerly=True)
    sparse.fit(x, y, batch_size=8, verbose=0)
    for old, new in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
