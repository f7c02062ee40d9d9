"""A grown weight trains as a new one does: step by step, with every optimizer of Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import compiled, fit, mlp, random_data, rigl, sparsify
from tests.training.test_slots import BUILT_IN, VARIANTS, make
from tf_rigl import block_sparse
from tf_rigl.patterns import Unstructured
from tf_rigl.training.slots import find_slots, moves_only_by_gradient
from tf_rigl.weights.masked_weight import MaskedWeight
from tf_rigl.weights.sparse_weight import set_all

SHAPE = (6, 4)
ONE = [0.0]
# What each slot of a weight is for an entry that was never trained: None is the weight's value.
EMPTY = {
    "Adadelta": ONE * 2,
    "Adafactor": ONE,
    "Adagrad": [0.1],
    "Adam": ONE * 2,
    "AdamW": ONE * 2,
    "Adamax": ONE * 2,
    "Ftrl": [0.1, 0.0],
    "Lamb": ONE * 2,
    "Lion": ONE,
    "Muon": ONE,
    "Nadam": ONE * 2,
    "RMSprop": ONE,
    "SGD": [],
    "ScheduleFreeAdamW": [None, 0.0],
    "LossScaleOptimizer": ONE * 2,
    "MultiOptimizer": ONE * 2,
    "own subclass": ONE,
    "momentum": ONE,
    "nesterov": ONE,
    "amsgrad": ONE * 3,
    "centered": ONE * 3,
    "ftrl with penalties": [0.1, 0.0],
    "clipnorm": ONE * 2,
    "clipvalue": ONE * 2,
    "global_clipnorm": ONE * 2,
    "weight_decay": ONE * 2,
    "use_ema": [None, 0.0, 0.0],
    "gradient_accumulation_steps": ONE * 3,
    "loss_scale_factor": [],
    "schedule": ONE,
}


def masked(name, value, mask):
    """A weight of its own, and its mask."""
    weight = keras.Variable(value * mask, name=name)
    return MaskedWeight(name, weight, keras.Variable(mask, dtype="bool"), 0.5, Unstructured())


def train(optimizer, items, gradients, scale):
    """An ordinary step: gradients are masked, and what the optimizer moves all the same."""
    weights, slots = [item.weight for item in items], find_slots(optimizer)
    pairs = [
        item.masked_gradient(tf.constant(g * scale))
        for item, g in zip(items, gradients, strict=True)
    ]
    optimizer.apply(pairs, weights)
    if not moves_only_by_gradient(optimizer):
        for item in items:
            set_all(item.emptied(slots.get(id(item.weight), ())))


def begin_anew(name, items, optimizer):
    """New weights of the same values, and a new optimizer of them that is as far as the other."""
    masks = [item.mask.numpy() for item in items]
    copies = [masked(i.path, i.weight.numpy(), mask) for i, mask in zip(items, masks, strict=True)]
    fresh = make(name)
    fresh.build([copy.weight for copy in copies])
    own = find_slots(fresh)
    slots = {id(slot.variable): slot for found in own.values() for slot in found}
    for old, new in zip(optimizer.variables, fresh.variables, strict=True):
        if id(new) not in slots:
            new.assign(old)
    for copy in copies:
        for slot in own.get(id(copy.weight), ()):
            if slot.empty is None:
                slot.variable.assign(copy.weight)
    return copies, fresh


@pytest.mark.parametrize("name", [*BUILT_IN, *VARIANTS])
def test_first_20_steps_are_those_of_a_new_weight(name):
    """All entries of one weight are replaced, some of another; kept ones keep their slots."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=(*shape, *SHAPE)).astype("float32")  # noqa: E731
    mask = np.indices(SHAPE).sum(axis=0) % 2 == 0
    # By these names `MultiOptimizer` gives them different optimizers.
    items = [masked(name, draw(), mask) for name in ("whole", "half")]
    optimizer = make(name)
    optimizer.build([item.weight for item in items])
    slots = find_slots(optimizer)
    scale = float(optimizer.scale_loss(1.0))
    for gradients in draw(5, 2):
        train(optimizer, items, gradients, scale)
    assert [slot.empty for slot in slots.get(id(items[0].weight), ())] == EMPTY[name]

    kept = mask & (np.indices(SHAPE)[0] < 3)
    new_masks, before = [~mask, kept | (~mask & (np.indices(SHAPE)[0] >= 3))], []
    for item, new_mask in zip(items, new_masks, strict=True):
        found, old = slots.get(id(item.weight), ()), item.weight.numpy()
        before.append([(slot.variable, slot.variable.numpy()) for slot in found])
        value = np.where(mask, old, 0.3 * draw()) * new_mask
        set_all(item.replaced(tf.constant(mask), tf.constant(new_mask), tf.constant(value), found))
    for variable, value in before[1]:
        np.testing.assert_array_equal(variable.numpy()[kept], value[kept])

    copies, fresh = begin_anew(name, items, optimizer)
    for gradients in draw(20, 2):
        train(optimizer, items, gradients, scale)
        train(fresh, copies, gradients, scale)
        np.testing.assert_array_equal(items[0].weight, copies[0].weight)
        if moves_only_by_gradient(optimizer):
            grown = new_masks[1] & ~mask
            one, other = items[1].weight.numpy(), copies[1].weight.numpy()
            np.testing.assert_array_equal(one[grown], other[grown])
    for item in items:
        assert (item.weight.numpy()[~item.mask.numpy()] == 0).all()
        assert np.isfinite(item.weight).all()


@pytest.mark.parametrize(
    "name",
    ["Adam", "Adagrad", "ScheduleFreeAdamW", "use_ema", "gradient_accumulation_steps", "Ftrl"],
)
def test_first_20_steps_of_a_grown_block(name):
    """The same of blocks that move: their slots move along, or begin anew."""
    rng = np.random.default_rng(0)
    layer = block_sparse.Dense(8, block_size=2, density=0.5, seed=0)
    layer.build((None, 8))
    item, optimizer = layer.sparse_weight("kernel"), make(name)
    optimizer.build([layer.values])
    slots, shape = find_slots(optimizer)[id(layer.values)], tuple(layer.values.shape)
    draw = lambda: rng.normal(size=shape).astype("float32")  # noqa: E731
    for _ in range(5):
        optimizer.apply([tf.constant(draw())], [layer.values])

    old, before = layer.places.numpy(), [slot.variable.numpy() for slot in slots]
    places = np.stack([np.sort(rng.permutation(4)[:2]) for _ in old]).astype("int32")
    mask, new_mask = item.mask, layer.as_kernel(layer.geometry.mask(tf.constant(places)))
    value = tf.where(mask, item.dense(), 0.3 * rng.normal(size=(8, 8)).astype("float32"))
    set_all(item.replaced(mask, new_mask, tf.where(new_mask, value, 0), slots))
    grown = np.array([[p not in o for p in new] for new, o in zip(places, old, strict=True)])
    assert 0 < grown.sum() < grown.size
    for slot, was in zip(slots, before, strict=True):
        for column, row in zip(*np.nonzero(~grown), strict=True):
            place = list(old[column]).index(places[column, row])
            np.testing.assert_array_equal(slot.variable.numpy()[column, row], was[column, place])

    copy, fresh = keras.Variable(layer.values, name="values"), make(name)
    fresh.build([copy])
    new_slots = find_slots(fresh)[id(copy)]
    assert len(new_slots) == len(slots)
    ids = {id(slot.variable) for slot in new_slots}
    for one, other in zip(optimizer.variables, fresh.variables, strict=True):
        if id(other) not in ids:
            other.assign(one)
    for slot in new_slots:
        if slot.empty is None:
            slot.variable.assign(copy)
    for _ in range(20):
        gradient = tf.constant(draw())
        optimizer.apply([gradient], [layer.values])
        fresh.apply([gradient], [copy])
        np.testing.assert_array_equal(layer.values.numpy()[grown], copy.numpy()[grown])


@pytest.mark.parametrize("name", ["ScheduleFreeAdamW", "use_ema"])
@pytest.mark.parametrize("compute", ["masked", "sparse"])
def test_copies_of_grown_weights_begin_at_their_value(name, compute):
    """With a `grow_initializer`; at zero, the next step would draw the weight back to zero."""
    kwargs = {}
    if compute == "sparse":
        kwargs = {"compute": "sparse", "pattern": "block_2x2"}
    sparse = sparsify(mlp(), rigl(grow_initializer="ones"), **kwargs)
    compiled(sparse, make(name), run_eagerly=True)

    class Check(keras.callbacks.Callback):
        grown = 0

        def on_train_batch_begin(self, batch, logs=None):
            self.before = sparse.masks

        def on_train_batch_end(self, batch, logs=None):
            found = find_slots(sparse.optimizer)
            for item in sparse.masked_weights:
                copy = next(s for s in found[id(item.weight)] if s.empty is None)
                grown = sparse.masks[item.path] & ~self.before[item.path]
                Check.grown += grown.sum()
                value = item.dense(copy.variable).numpy()
                np.testing.assert_array_equal(value[grown], np.ones(grown.sum()))
                assert (value[~sparse.masks[item.path]] == 0).all()

    fit(sparse, *random_data(batches=5), callbacks=[Check()])
    assert Check.grown > 0
