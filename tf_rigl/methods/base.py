"""The base class of methods: how masks begin, when they change, and to what."""

import dataclasses
import inspect

import keras
import tensorflow as tf

from tf_rigl._base.arguments import ChecksArguments, constructor_arguments
from tf_rigl.weights.masked_layer import random_mask

# Packages with classes and functions that files may name.
_LIBRARIES = ("builtins", "keras", "keras_hub", "tensorflow", "tf_rigl")


class Method(ChecksArguments):
    """Base class of all methods.

    A method says which mask a weight starts with, at which steps masks change, and which
    entries are then dropped and grown. By default it keeps a random mask. A method holds no
    state of its own: the model holds masks, the step counter and averages of gradients.

    Attributes:
        jit_compile: bool, whether XLA may compile `update`, which makes it several times
            faster for large weights. Set it to False if the scores need operations that
            XLA does not have.
        begins_dense: bool, whether masks are all ones when training begins.
        ends_at_target: bool, whether weights have their target sparsity when the method is done.
        order: str, how an update step relates to the optimizer. "instead": the optimizer is
            not applied to that batch. "after": it is, and then masks change by the gradient
            of the same batch. "before": masks change first and need no gradient, and then
            the batch is trained on.
        scope: str, "layer": each weight keeps its own number of units. "global": all masked
            weights share one number.
        state_names: tuple of str, the names in `SparseWeight.state` of what the method keeps
            for each weight beside its mask. A method with an `observation` keeps "gradient".
        trained_state: str, the name in `state` of the variable that the optimizer trains in
            the weight's place; None: it trains the weight itself. Such a method fills the
            state in `initial_mask` and sets masks and weights in `after_optimizer`, as
            `EdgePopup` does.
        pruning_ends: str, the argument that says when pruning ends.
        regularizes_masked: bool, whether regularizers of the weights count although the optimizer
            trains another variable.
        freezes_others: bool, whether only the masked weights are trained.
        initial_sparsity: float, the overall sparsity at which training begins, by the
            distribution that `tf_rigl.sparsify` gets; None: the target.
        slots: str, what the second moments of an optimizer begin at for a newly grown entry.
            "zero": like those of an entry that was never trained. "mean": at the mean of the
            weight's entries that stay active.
        keeps_counts: bool, whether the number of active units of a weight stays as it is, or
            only falls if the method begins dense. False: it may rise.
        differentiates_twice: bool, whether scores get the product of the Hessian of the loss
            with its gradient in place of the gradient.
    """

    jit_compile = True
    begins_dense = False
    ends_at_target = True
    order = "instead"
    scope = "layer"
    state_names: tuple[str, ...] = ()
    trained_state: str | None = None
    regularizes_masked = False
    pruning_ends = "end_step"
    freezes_others = False
    initial_sparsity: float | None = None
    slots = "zero"
    keeps_counts = True
    differentiates_twice = False

    @property
    def changes_masks(self) -> bool:
        """True if masks change while the model trains."""
        return type(self).plan is not Method.plan or self.trained_state is not None

    @property
    def needs_length(self) -> bool:
        """True if `plan` needs to know how many steps `fit` will run."""
        return False

    @property
    def final_sparsity(self):
        """The overall sparsity at which the method ends by itself, or None."""
        return None

    @property
    def has_own_update(self) -> bool:
        """True if the method chooses units in its own way, not by scores alone."""
        return type(self).update is not Method.update

    @property
    def begins_at_zero(self) -> bool:
        """True if newly grown entries start at zero."""
        return type(self).new_values is Method.new_values

    def suited(self, pattern):
        """Returns the pattern to use where the caller asks for `pattern`: by default that one.

        Raises:
            ValueError: if the method does not work with the pattern.
        """
        return pattern

    def initial_mask(self, item, seed, index):
        """Returns the mask that a weight starts with: by default ones, or a random one.

        Args:
            item: `tf_rigl.weights.sparse_weight.SparseWeight`.
            seed: int, the model's seed.
            index: int, the number of the weight in the model.

        Returns:
            A boolean tensor of the weight's shape. By default it is all ones if the method
            begins dense, and else drawn at random, at the weight's `target_sparsity`.
        """
        if self.begins_dense:
            return tf.ones(item.weight.shape, tf.bool)
        return random_mask(item, seed, index)

    def plan(self, step, active, first_step=0, run_steps=None, items=None):
        """Decides whether masks change at a step, and how many units move.

        Args:
            step: int, the number of batches before this one.
            active: list of int, the units that are active in each masked weight.
            first_step: int, the step at which the present run of `fit` began.
            run_steps: int, how many steps the run has in all, or None if that is unknown.
            items: list of `tf_rigl.weights.sparse_weight.SparseWeight`, for methods that
                need shapes and target sparsities.

        Returns:
            None for an ordinary step. For an update step a list with `(keep, grow)` for each
            masked weight: how many units of the present mask to keep, and how many to add.
            More integers may follow these two, as many for each weight: `share` and `update`
            get them too.
        """
        del step, active, first_step, run_steps, items

    def observation(self, step, first_step=0, run_steps=None):
        """Decides whether the dense gradient of a step goes into a running mean.

        Arguments are those of `plan`.

        Returns:
            None, or a float `past`: the mean becomes `past * mean + (1 - past) * gradient`.
            At an update step, scores get the mean in place of the gradient of the batch.
        """
        del step, first_step, run_steps

    def next_update(self, step, first_step=0, run_steps=None):
        """Returns the first update step from `step` on, or None if there is none.

        Arguments are those of `plan`.
        """
        del step, first_step, run_steps

    def cautions(self, first_step=0, run_steps=None) -> list[str]:
        """Returns warnings about a run of `fit` that begins: by default none.

        Arguments are those of `plan`.
        """
        del first_step, run_steps
        return []

    def share(self, counts, scored, patterns):
        """Divides what an update keeps and adds among the weights, with `scope="global"`.

        Args:
            counts: list of `(keep, grow)`, and what else `plan` gives, int32 scalar tensors, for
                each weight.
            scored: list of the arguments of `drop_scores`, for each weight.
            patterns: list of `tf_rigl.patterns.Pattern`, for each weight.

        Returns:
            A list of what `update` gets for each weight: by default `counts`.
        """
        del scored, patterns
        return counts

    def drop_scores(self, weight, gradient, mask, seed):
        """Scores the active entries: those of highest score are kept.

        Args:
            weight: float tensor, the weight.
            gradient: float tensor, the dense gradient of the loss with respect to the
                weight, averaged over the global batch.
            mask: boolean tensor, the present mask.
            seed: int32 tensor of shape (2,), for `tf.random.stateless_*`; it differs for
                each weight and step.

        Returns:
            A tensor of real scores of the weight's shape: by default `|weight|`.
        """
        del gradient, mask, seed
        return tf.abs(weight)

    def grow_scores(self, weight, gradient, mask, seed):
        """Scores the entries that are not kept: those of highest score are grown.

        Arguments and result are those of `drop_scores`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not grow connections.")

    def new_values(self, weight, seed):
        """Returns the values at which newly grown entries start: zeros by default."""
        del seed
        return tf.zeros_like(weight)

    def update(self, weight, gradient, mask, keep, grow, pattern, seed):
        """Changes a mask: drops, then grows (algorithm 1 of the RigL paper).

        Args:
            weight, gradient, mask, seed: as in `drop_scores`.
            keep: int32 scalar tensor, units of the present mask to keep.
            grow: int32 scalar tensor, units to add.
            pattern: `tf_rigl.patterns.Pattern`.

        Returns:
            The new mask and the new weight. A newly grown entry starts at its new value.
            An entry that is dropped and grown at once keeps its value.
        """
        kept = pattern.keep(self.drop_scores(weight, gradient, mask, seed), keep, mask)
        grown = pattern.select(self.grow_scores(weight, gradient, mask, seed), grow, kept=kept)
        new_mask = kept | grown
        old_values = tf.where(mask, weight, self.new_values(weight, seed))
        return new_mask, tf.where(new_mask, old_values, tf.zeros([], weight.dtype))

    def trained_variable(self, weight):
        """Returns the variable that the optimizer trains for a sparse weight.

        Args:
            weight: `tf_rigl.weights.sparse_weight.SparseWeight`.
        """
        return weight.weight if self.trained_state is None else weight.state[self.trained_state]

    def trained_gradient(self, weight, gradient):
        """Returns the gradient of the trained variable: by default the weight's, masked.

        Args:
            weight: `tf_rigl.weights.sparse_weight.SparseWeight`.
            gradient: tensor or `tf.IndexedSlices`, that of the loss with respect to the weight.
        """
        return weight.masked_gradient(gradient)

    def added_gradient(self, weight):
        """Returns what is added to the gradient of the trained variable, such as a decay, or None.

        It is added once, however many replicas there are, and without a loss scale.

        Args:
            weight: `tf_rigl.weights.sparse_weight.SparseWeight`.
        """
        del weight

    def after_optimizer(self, weights, compiled):
        """Recomputes masks and weights after each optimizer step: by default they stay.

        It is also called when training begins and ends.

        Args:
            weights: list of `tf_rigl.weights.sparse_weight.SparseWeight` that are trained.
            compiled: `tf_rigl._base.tensors.Compiled`, which keeps compiled functions.

        Returns:
            A list of pairs (variable, new value).
        """
        del weights, compiled
        return []

    def train_flops(self, report, steps=None) -> float:
        """Returns the FLOPs of a training step for one example: by default `3 f_S`.

        `f_S` are the FLOPs of a sparse forward pass; a backward pass costs twice as much.

        Args:
            report: `tf_rigl.Report` of the model at its target sparsities.
            steps: int, how many steps training has, for methods whose cost changes.

        Returns:
            The mean over training.

        Reference:

        - [Rigging the Lottery](https://arxiv.org/abs/1911.11134), appendix H.
        """
        del steps
        return 3.0 * report.flops

    def get_config(self):
        """Returns the arguments of the constructor, for serialisation."""
        return {}

    @classmethod
    def from_config(cls, config):
        """Makes the method from a result of `get_config`."""
        return cls(**config)

    def __repr__(self):
        names = constructor_arguments(type(self))
        arguments = (f"{n}={_text(getattr(self, n))}" for n in names if hasattr(self, n))
        return f"{type(self).__name__}({', '.join(arguments)})"


def _text(value):
    """Writes an argument: a function by its name, an object by its constructor."""
    if inspect.isfunction(value):
        return value.__name__
    if not hasattr(value, "get_config") or dataclasses.is_dataclass(value):
        return repr(value)
    config = value.get_config()
    config = config.get("config", config)  # tfmot's schedules hold it one level deeper.
    return f"{type(value).__name__}({', '.join(f'{k}={v!r}' for k, v in config.items())})"


def serialize_function(value):
    """Returns a string as it is, and a function in the form that Keras stores."""
    return value if isinstance(value, str) else keras.saving.serialize_keras_object(value)


def deserialize_function(argument, value):
    """The inverse of `serialize_function`; refuses what only a file could have put there.

    A file can name any layer or function of a library. Those are not the user's, and nobody
    calls them to find out what they return.

    Args:
        argument: str, the name of the method's argument.
        value: str, or the form that Keras stores.
    """
    if isinstance(value, str):
        return value
    found = keras.saving.deserialize_keras_object(value)
    named = isinstance(found, type) or inspect.isroutine(found)
    home = getattr(found if named else type(found), "__module__", None) or ""
    if callable(found) and home.partition(".")[0] in _LIBRARIES:
        raise ValueError(
            f"Argument `{argument}` must be a name, or an object of your own. "
            f"Received: {argument}={found!r} from a file"
        )
    return found
