"""Second moments of grown weights start at the mean of those that stay, with `slots="mean"`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import BATCH, check_equal_models, compiled, fit, mlp, random_data, rigl, sparsify
from tests.training.test_grown_weights import SHAPE, masked
from tests.training.test_slots import BUILT_IN, VARIANTS, make
from tf_rigl.training.slots import find_slots
from tf_rigl.weights.sparse_weight import set_all

# How many slots of each optimizer hold squares; the others have none.
SQUARES = dict.fromkeys(
    ("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "Ftrl", "Lamb", "Nadam", "RMSprop"), 1
)
SQUARES |= dict.fromkeys(("Adafactor", "ScheduleFreeAdamW", "LossScaleOptimizer"), 1)
SQUARES |= {"MultiOptimizer": 1, "amsgrad": 2, "centered": 1, "ftrl with penalties": 1}
SQUARES |= dict.fromkeys(("clipnorm", "clipvalue", "global_clipnorm", "weight_decay"), 1)
SQUARES |= {"use_ema": 1, "gradient_accumulation_steps": 1}


@pytest.mark.parametrize("name", [*BUILT_IN, *VARIANTS])
def test_only_squares_start_at_their_mean(name):
    rng = np.random.default_rng(0)
    mask = np.indices(SHAPE).sum(axis=0) % 2 == 0
    new_mask = mask.copy()
    new_mask[:2] = ~mask[:2]
    item, optimizer = masked("whole", rng.normal(size=SHAPE).astype("float32"), mask), make(name)
    optimizer.build([item.weight])
    slots = find_slots(optimizer).get(id(item.weight), ())
    squares = [slot for slot in slots if slot.squares]
    assert len(squares) == SQUARES.get(name, 0)
    for slot in slots:
        slot.variable.assign(rng.random(SHAPE))
    before = [slot.variable.numpy() for slot in slots]
    value = item.weight * new_mask
    pairs = item.replaced(tf.constant(mask), tf.constant(new_mask), value, slots, "mean")
    set_all(pairs)
    kept, grown = mask & new_mask, new_mask & ~mask
    assert kept.any()
    assert grown.any()
    for slot, was in zip(slots, before, strict=True):
        now = slot.variable.numpy()
        np.testing.assert_array_equal(now[kept], was[kept])
        if slot.squares:
            np.testing.assert_allclose(now[grown], was[kept].mean(), rtol=1e-6)
            np.testing.assert_array_equal(now[~new_mask], np.float32(slot.empty or 0))
        elif slot.empty is not None:
            np.testing.assert_array_equal(now[~kept], np.float32(slot.empty))


class Watch(keras.callbacks.Callback):
    """Compares second moments of Adam before and after each update, in dense form."""

    updates = 0

    def _now(self):
        found = find_slots(self.model.optimizer, self.model.trainable_variables)
        return {
            item.path: (item.mask.numpy(), item.dense(slot.variable).numpy())
            for item in self.model.masked_weights
            for slot in found.get(id(item.weight), ())
            if slot.squares
        }

    def on_train_batch_begin(self, batch, logs=None):
        self.before = self._now()

    def on_train_batch_end(self, batch, logs=None):
        for path, (mask, now) in self._now().items():
            if path not in self.before:  # The optimizer is built at the first step.
                continue
            old, was = self.before[path]
            if (mask == old).all():
                continue
            self.updates += 1
            kept, grown = mask & old, mask & ~old
            np.testing.assert_array_equal(now[kept], was[kept])
            np.testing.assert_allclose(now[grown], was[kept].mean(), rtol=1e-5)
            assert (now[~mask] == 0).all()


@pytest.mark.parametrize("compute", ["masked", "sparse"])
def test_in_training(compute):
    """Blocks of 3x3 reach beyond the kernel; what lies there does not count."""
    kwargs = {} if compute == "masked" else {"pattern": "block_3x3", "compute": "sparse"}
    model = compiled(sparsify(mlp(), rigl(slots="mean"), **kwargs), keras.optimizers.Adam(0.05))
    watch = Watch()
    model.fit(*random_data(), batch_size=BATCH, verbose=0, callbacks=[watch])
    assert watch.updates >= 3


def test_without_second_moments_nothing_differs():
    models = []
    for slots in ("zero", "mean"):
        keras.utils.set_random_seed(0)
        models.append(compiled(sparsify(mlp(), rigl(slots=slots))))
        fit(models[-1], *random_data())
    check_equal_models(*models)


def test_an_unknown_start_is_refused():
    with pytest.raises(ValueError, match="`slots` must be one of 'mean', 'zero'"):
        rigl(slots="warm")
