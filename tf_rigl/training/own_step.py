"""A training step that a user wrote: it runs as written, but for where it applies an optimizer.

The step of a GAN, a VAE or a distillation computes gradients as it likes. Where it calls
`optimizer.apply` (or `apply_gradients`), the gradients of sparse weights are masked; at an update
step the masks change there instead. So nothing needs to be known about the rest of the step.
"""

import contextlib
import warnings

import keras
import tensorflow as tf

from tf_rigl._base import keras_internals
from tf_rigl.training import slots
from tf_rigl.training.applying import Applying, intercepted
from tf_rigl.training.moment import ORDINARY
from tf_rigl.training.step import Record, Step


def check_method(method):
    """Raises if a method needs more of a training step than its gradients."""
    if method.differentiates_twice:
        raise ValueError(
            f"{type(method).__name__} differentiates the loss twice, which only the training "
            "step of Keras allows, not one of your own. Pass another method, such as 'snip'. "
            f"Received: method={method!r}"
        )


class OwnStep:
    """Runs a step that a user wrote. It knows weights, a method and optimizers, but no model.

    Args:
        weights: list of `tf_rigl.weights.sparse_weight.SparseWeight`, in model order.
        method: `tf_rigl.methods.Method`.
        optimizers: list of the `keras.optimizers.Optimizer`s that the step may apply.
        seed: int, for the random numbers of the method.
        traces: `Traces`.

    Raises:
        ValueError: if the method needs more of the step than its gradients.
    """

    def __init__(self, weights, method, optimizers, seed, traces):
        check_method(method)
        self.weights = weights
        self.method = method
        self.optimizers = optimizers
        self.seed = seed
        self.traces = traces

    @property
    def records(self) -> list:
        """The sparse weights, each with its slots in all optimizers that are built."""
        found = [slots.find_slots(each, self._variables) for each in self.optimizers if each.built]
        return [
            Record(number, weight, tuple(s for by_id in found for s in by_id.get(key, ())), place)
            for place, (number, weight) in enumerate(self._sparse)
            for key in [id(weight.weight)]
        ]

    @property
    def _sparse(self):
        return [(n, weight) for n, weight in enumerate(self.weights) if weight.is_sparse]

    @property
    def _variables(self):
        return [weight.weight for _, weight in self._sparse]

    def settle(self):
        """Runs `Method.after_optimizer` outside of a step."""
        self._step(None, self._variables, self.records).settle()

    def run(self, function, arguments, moment=ORDINARY, by_name=None):
        """Runs the user's step.

        Args:
            function: the user's step.
            arguments: tuple, its arguments.
            by_name: dict, its arguments by name, or None.
            moment: `Moment`, says what happens where the step applies an optimizer.

        Returns:
            What the user's step returns.
        """
        if moment.counts is not None and self.method.order == "before":
            self._step(None, self._variables, self.records).change_first(moment)
            moment = moment._replace(counts=None)
        applying = Applying(self, moment)
        with contextlib.ExitStack() as stack:
            for number, weight in self._sparse if moment.looks else ():
                applying.heard[number] = stack.enter_context(weight.overhear())
            for optimizer in self.optimizers:
                stack.enter_context(intercepted(optimizer, applying))
            outputs = function(*arguments, **(by_name or {}))
        # At an update, a step that leaves all to `SparseModel.train_step` applies nothing.
        # Pruning by magnitude has changed all masks before the step, and needs no gradient.
        needs_it = self.method.order != "before"
        if needs_it and not applying.elsewhere and (applying.reached or moment.counts is None):
            self._note_unreached({number for number, _ in self._sparse} - applying.reached)
        return outputs

    def _note_unreached(self, numbers):
        """Notes the weights that the step does not train, and warns of those that are new."""
        new = [self.weights[number] for number in sorted(numbers - self.traces.named)]
        paths = [weight.path for weight in new if weight.weight.trainable]  # Not frozen by intent.
        self.traces.unreached |= numbers
        self.traces.named |= numbers
        if paths:
            warnings.warn(
                "The training step applies no optimizer to some sparse weights, so their masks do "
                f"not change: {paths}. If they are trained elsewhere or not at all, pass their "
                "layers as `exclude` to `tf_rigl.sparsify`.",
                stacklevel=2,
            )

    def _step(self, optimizer, variables, records):
        """Returns the step of one call of an optimizer; it has no forward pass."""
        return Step(None, self.method, variables, records, optimizer, self.seed, self.traces)

    def step_of(self, optimizer, variables) -> Step:
        """Returns the step of a call of an optimizer on a list of variables."""
        places = {id(variable): place for place, variable in enumerate(variables)}
        if not optimizer.built:
            optimizer.build(self.trained(variables))  # As it would do itself.
        records = [
            record._replace(place=places[id(record.weight.weight)])
            for record in self.records  # Slots in other optimizers follow the masks as well.
            if id(record.weight.weight) in places
        ]
        return self._step(optimizer, variables, records)

    def trained(self, variables):
        """Returns the variables that the method trains in the place of these."""
        weights = {id(weight.weight): weight for _, weight in self._sparse}
        return [
            self.method.trained_variable(weights[id(v)]) if id(v) in weights else v
            for v in variables
        ]


def without_decorator(function):
    """Returns the function behind a `tf.function`, which would keep one trace for all steps."""
    if hasattr(function, "python_function"):
        return tf.autograph.to_graph(function.python_function)
    return function


def optimizers_of(model) -> list:
    """Returns the optimizers that a model and the layers in it keep in attributes, each once."""
    found = {}
    for layer in keras_internals.all_layers(model):
        for value in vars(layer).values():
            values = list(value.values()) if isinstance(value, dict) else value
            values = values if isinstance(values, (list, tuple)) else [values]
            for each in values:
                if isinstance(each, keras.optimizers.Optimizer):
                    found[id(each)] = each
    return list(found.values())
