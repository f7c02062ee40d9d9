"""What a method has to say: how masks begin, when they change, and to what."""

import dataclasses
import inspect

import keras
import tensorflow as tf

from tf_rigl._base import tensors
from tf_rigl.weights.masked_layer import random_mask


class Method:
    """Base class of all methods.

    A method answers three questions; the defaults here keep a random mask for ever.
    It holds no state of its own: masks, the step counter, and what is kept of gradients
    belong to the model.

    Attributes:
        jit_compile: bool, whether XLA may compile `update`, which makes it several times
            faster for large weights. To be set to False in a method whose scores need
            operations that XLA does not know.
        begins_dense: bool, whether masks are all ones when training begins.
        order: str, what an update step is to the optimizer. "instead": the optimizer is
            not applied on that batch. "after": it is, and masks change after it, by
            the gradient of the same batch. "before": masks change first, and need no
            gradient; then the batch is trained on.
        scope: str, "layer": each weight keeps its own share of units. "global": all
            masked weights draw theirs from one pool.
        state_names: tuple of str, what is kept for each weight beside its mask, in
            `MaskedWeight.state`: `("gradient",)` where there is an `observation`.
        trains_scores: bool, whether the optimizer trains the scores in `state["scores"]`
            instead of the weights, and masks follow from them at every step: see
            `EdgePopup`.
    """

    jit_compile = True
    begins_dense = False
    order = "instead"
    scope = "layer"
    state_names = ()
    trains_scores = False

    @property
    def needs_length(self) -> bool:
        """Whether `plan` needs to know how many steps `fit` will run."""
        return False

    @property
    def final_sparsity(self):
        """The overall sparsity that the method itself says it ends at, or None."""
        return None

    def initial_mask(self, item, seed, index):
        """How a mask begins: at random, by default.

        Args:
            item: `tf_rigl.weights.masked_weight.MaskedWeight`.
            seed: int, the model's seed.
            index: int, the number of the weight in the model.

        Returns:
            A boolean tensor of the weight's shape.
        """
        return random_mask(item, seed, index)

    def plan(self, step, active, first_step=0, run_steps=None, items=None):
        """When masks change: what happens at a step.

        Args:
            step: int, batches seen before this one.
            active: list of int, units now active in each masked weight.
            first_step: int, the step at which the present run of `fit` began.
            run_steps: int, how many steps it will have in all, or None.
            items: list of `tf_rigl.weights.masked_weight.MaskedWeight`, for methods that need to know
                shapes and target sparsities.

        Returns:
            None for an ordinary step; for an update step a list of `(keep, grow)`
            for each masked weight: the units of the present mask to keep, and those
            to add.
        """
        del step, active, first_step, run_steps, items

    def observation(self, step, first_step=0, run_steps=None):
        """Whether the method keeps the dense gradient of a step in mind, and how.

        Arguments are those of `plan`.

        Returns:
            None, or a float `past`: what is kept of gradients becomes
            `past * kept + (1 - past) * gradient`. At an update step scores then see this
            mean instead of the gradient of the batch alone.
        """
        del step, first_step, run_steps

    def next_update(self, step, first_step=0, run_steps=None):
        """The first update step from `step` on, or None where there is none.

        Arguments are those of `plan`.
        """
        del step, first_step, run_steps

    def share(self, counts, scored, patterns):
        """Divides what an update keeps and adds among the weights: as planned, by default.

        Args:
            counts: list of `(keep, grow)`, int32 scalar tensors, for each weight.
            scored: list of the arguments of `drop_scores`, for each weight.
            patterns: list of `tf_rigl.patterns.Pattern`, for each weight.

        Returns:
            A list like `counts`.
        """
        del scored, patterns
        return counts

    def drop_scores(self, weight, gradient, mask, seed):
        """Which active entries to keep: those of the highest score.

        Args:
            weight: float tensor, the weight.
            gradient: float tensor, the dense gradient of the loss with respect to it,
                averaged over the global batch.
            mask: boolean tensor, the present mask.
            seed: int32 tensor of shape (2,), for `tf.random.stateless_*`, other for
                each weight and step.

        Returns:
            A tensor of real scores of the weight's shape; its magnitude by default.
        """
        del gradient, mask, seed
        return tf.abs(weight)

    def grow_scores(self, weight, gradient, mask, seed):
        """Which entries to add, among all that are not kept: those of the highest score.

        Arguments and result are those of `drop_scores`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not grow connections.")

    def new_values(self, weight, seed):
        """The values at which newly grown entries start: zeros by default."""
        del seed
        return tf.zeros_like(weight)

    def update(self, weight, gradient, mask, keep, grow, pattern, seed):
        """One change of a mask: drop, then grow (algorithm 1 of the RigL paper).

        Args:
            weight, gradient, mask, seed: as in `drop_scores`.
            keep: int32 scalar tensor, units of the present mask to keep.
            grow: int32 scalar tensor, units to add.
            pattern: `tf_rigl.patterns.Pattern`.

        Returns:
            The new mask and the new weight. A newly grown entry starts at its new
            value; one that was dropped and grown at once keeps the old one.
        """
        kept = pattern.keep(self.drop_scores(weight, gradient, mask, seed), keep, mask)
        grown = pattern.select(self.grow_scores(weight, gradient, mask, seed), grow, kept=kept)
        new_mask = kept | grown
        old_values = tf.where(mask, weight, self.new_values(weight, seed))
        return new_mask, tf.where(new_mask, old_values, tf.zeros([], weight.dtype))

    def update_function(self, entries):
        """`update` as the training step calls it on a weight of so many entries."""
        return tensors.compiled_if_large(self.update, entries) if self.jit_compile else self.update

    def train_flops(self, report, steps=None) -> float:
        """FLOPs of a training step for one example: three sparse forward passes' worth.

        Args:
            report: `tf_rigl.Report` of the model at its target sparsities.
            steps: int, how many steps training has, for methods whose cost changes on
                the way.

        Returns:
            The mean over training.

        Reference:

        - [Rigging the Lottery](https://arxiv.org/abs/1911.11134), appendix H.
        """
        del steps
        return 3.0 * report.flops

    def get_config(self):
        """The arguments of the constructor, for serialisation."""
        return {}

    @classmethod
    def from_config(cls, config):
        """Makes the method from what `get_config` returned."""
        return cls(**config)

    def __repr__(self):
        names = list(inspect.signature(type(self).__init__).parameters)[1:]
        arguments = (f"{n}={_text(getattr(self, n))}" for n in names if hasattr(self, n))
        return f"{type(self).__name__}({', '.join(arguments)})"


def _text(value):
    """An argument as it is written: functions by name, objects by how they are made."""
    if inspect.isfunction(value):
        return value.__name__
    if not hasattr(value, "get_config") or dataclasses.is_dataclass(value):
        return repr(value)
    config = value.get_config()
    config = config.get("config", config)  # tfmot's schedules hold it one level deeper.
    return f"{type(value).__name__}({', '.join(f'{k}={v!r}' for k, v in config.items())})"


def serialize_function(value):
    """A string as it is, a function in the form that Keras writes to files."""
    return value if isinstance(value, str) else keras.saving.serialize_keras_object(value)


def deserialize_function(value):
    """The inverse of `serialize_function`."""
    return value if isinstance(value, str) else keras.saving.deserialize_keras_object(value)
