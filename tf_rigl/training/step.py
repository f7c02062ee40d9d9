"""The graph of a training step: forward, backward, then the optimizer or the mask update."""

import contextlib
from typing import NamedTuple

import keras
import tensorflow as tf

from tf_rigl._base import tensors
from tf_rigl._base.seeds import mixed
from tf_rigl.training import slots
from tf_rigl.training.moment import ORDINARY
from tf_rigl.weights import guard
from tf_rigl.weights.sparse_weight import SparseWeight, set_all


class Record(NamedTuple):
    """A sparse weight that training may change, with its numbers and optimizer slots."""

    number: int  # Its number among all masked weights: the index of its counts and seed.
    weight: SparseWeight
    slots: tuple  # Its `Slot`s; none if the method trains another variable in its place.
    place: int  # Its index among the differentiated variables.


class Traces:
    """Results of tracing the steps; they are kept as long as the compiled steps.

    Attributes:
        compiled: `tensors.Compiled`, the compiled functions of weights.
        unreached: set of int, the numbers of weights that the loss does not reach. An update
            leaves them as they are.
        named: set of int, those of them that a warning has named.
    """

    def __init__(self):
        self.compiled = tensors.Compiled()
        self.unreached = set()
        self.named = set()


class Step:
    """A training step of a batch. It knows weights, a method and an optimizer, but no model.

    Args:
        forward: function of a batch that returns the loss, and a function without arguments
            that returns the metrics when the step is done.
        method: `tf_rigl.methods.Method`.
        variables: list of `keras.Variable`, the differentiated ones, in model order.
        records: list of `Record`, the sparse weights among them.
        optimizer: `keras.optimizers.Optimizer`.
        seed: int, for the random numbers of the method.
        traces: `Traces`.
    """

    def __init__(self, forward, method, variables, records, optimizer, seed, traces):
        self.forward = forward
        self.method = method
        self.variables = variables
        self.records = records
        self.optimizer = optimizer
        self.seed = seed
        self.traces = traces

    @property
    def optimizers(self) -> list:
        """The optimizers that the step applies."""
        return [self.optimizer]

    def run(self, data, moment=ORDINARY):
        """Runs forward and backward, then the optimizer or the change of masks.

        Args:
            data: a batch.
            moment: `Moment`, says which.

        Returns:
            The metrics.
        """
        if moment.counts is not None and self.method.order == "before":
            self.change_first(moment)
            moment = moment._replace(counts=None)
        trains = self._trains(moment)
        metrics, gradients, probed = self._backward(data, trains, moment.looks)
        self.finish(gradients, probed, moment)
        return metrics()

    def change_first(self, moment):
        """Changes masks without a gradient, before the batch is seen."""
        self._change([(record, None) for record in self.records], moment)

    def _trains(self, moment):
        """Returns whether the optimizer runs: not if masks change instead."""
        return moment.counts is None or self.method.order != "instead"

    def finish(self, gradients, probed, moment):
        """Applies the optimizer, or changes the masks, once the gradients are there.

        Args:
            gradients: list of tensors, `tf.IndexedSlices` or None, for each variable.
            probed: list of (record, gradient of its probe, or None).
            moment: `Moment`.
        """
        trains, usable = self._trains(moment), None
        if moment.looks:
            dense, usable = self._dense_gradients(probed)
            if trains and usable is not None:
                usable &= tensors.all_finite(gradients)
        if moment.past is not None:
            dense = _observe(dense, moment.past, usable, is_update=moment.counts is not None)
        if trains:
            self._optimize(gradients, usable)
        elif usable is not None:
            self._rescale(usable)
        if moment.counts is not None:
            self._change(dense, moment, usable)

    def settle(self):
        """Runs `Method.after_optimizer` outside of a step."""
        set_all(self._after_optimizer())

    def _backward(self, data, trains, looks):
        """Runs forward and backward.

        Args:
            data: a batch.
            trains: bool, whether the gradients of all variables are needed.
            looks: bool, whether the dense gradients of the sparse weights are.

        Returns:
            The function that returns the metrics; the gradients of the variables (None where
            there is none, or it is not needed); a list of (record, gradient of its probe).
        """
        records = self.records if looks else []
        with contextlib.ExitStack() as stack:
            probes = [stack.enter_context(record.weight.probe()) for record in records]
            own = [probe.watched for probe in probes if probe is not None]
            tape = stack.enter_context(tf.GradientTape())
            tape.watch(own)
            if self.method.differentiates_twice and looks:
                loss, metrics = self._along_gradient(data)
            else:
                loss, metrics = self.forward(data)
                loss = self.optimizer.scale_loss(loss)
        places = range(len(self.variables))
        if not trains:
            places = [r.place for r, probe in zip(records, probes, strict=True) if probe is None]
        sources = [self.variables[place].value for place in places], own
        found, seen = tape.gradient(loss, sources)
        gradients = [None] * len(self.variables)
        for place, gradient in zip(places, found, strict=True):
            gradients[place] = gradient
        seen = iter(seen)
        probed = [
            (record, gradients[record.place] if probe is None else probe.found(next(seen)))
            for record, probe in zip(records, probes, strict=True)
        ]
        return metrics, gradients, probed

    def _along_gradient(self, data):
        """Runs forward and backward, and returns the product of the gradient with itself.

        One of the two factors counts as a constant, the gradient over all replicas. So the
        gradient of the product is that of the Hessian with the gradient.

        Returns:
            The product over the sparse weights, scaled as a loss; and the metrics' function.
        """
        weights = [record.weight.weight.value for record in self.records]
        with tf.GradientTape() as tape:
            loss, metrics = self.forward(data)
        found = tape.gradient(loss, weights)
        reached = [
            (w, tensors.whole(g)) for w, g in zip(weights, found, strict=True) if g is not None
        ]
        constant = [tf.stop_gradient(g) for g in tensors.all_reduce([g for _, g in reached])]
        product = tf.zeros([], loss.dtype)
        for (weight, gradient), other in zip(reached, constant, strict=True):
            # The gradient may not depend on a weight. Its product is then 0, not missing.
            part = tf.reduce_sum(gradient * other + 0 * weight)
            product += tf.cast(part, loss.dtype)
        return self.optimizer.scale_loss(product), metrics

    def _dense_gradients(self, probed):
        """Sums dense gradients over replicas, and undoes the loss scale.

        Args:
            probed: list of (record, gradient of its probe on this replica, or None).

        Returns:
            A list of (record, dense gradient) without the weights that the loss does not
            reach; and a boolean tensor, True if no gradient overflowed, or None where there
            is no dynamic loss scale.
        """
        reached = [(record, tensors.whole(g)) for record, g in probed if g is not None]
        self.traces.unreached |= {record.number for record, _ in probed}
        self.traces.unreached -= {record.number for record, _ in reached}
        gradients = tensors.all_reduce([g for _, g in reached])
        usable = None
        if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            usable = tf.reduce_all([tensors.is_finite(g) for g in gradients])
        one = tf.ones([])
        scale = self.optimizer.scale_loss(one)
        dense = []
        for (record, _), gradient in zip(reached, gradients, strict=True):
            dtype = record.weight.weight.value.dtype
            gradient = tensors.divided(gradient, None if scale is one else scale, dtype)
            dense.append((record, record.weight.dense_gradient(gradient)))
        return dense, usable

    def _optimize(self, gradients, usable=None):
        """Applies the optimizer to the variables that the method trains.

        Args:
            gradients: list of tensors, `tf.IndexedSlices` or None, for each variable.
            usable: boolean scalar tensor, False if a gradient overflowed, or None.
        """
        method, trained, masked = self.method, list(self.variables), list(gradients)
        for _, weight, _, place in self.records:
            trained[place] = method.trained_variable(weight)
            if masked[place] is not None:
                masked[place] = method.trained_gradient(weight, masked[place])
                added = method.added_gradient(weight)
                if added is not None:
                    masked[place] = self._sum(masked[place], added)
        if usable is None and self._checks_one_replica():
            usable = tensors.all_finite(masked)
        reached = [place for place, gradient in enumerate(masked) if gradient is not None]
        if usable is not None and reached:
            # One gradient that is not finite makes the optimizer skip the step.
            last = tf.convert_to_tensor(masked[reached[-1]])
            masked[reached[-1]] = tensors.where(usable, last, float("nan"))
        if trained:
            with guard.inside([record.weight.weight for record in self.records]):
                self.optimizer.apply_gradients(zip(masked, trained, strict=True))
        tensors.assign(self._after_optimizer() or self._emptied())

    def _sum(self, gradient, added):
        """Adds to the gradient of this replica its part of what counts once for all."""
        part = self.optimizer.scale_loss(tf.ones([]))
        part /= tf.distribute.get_strategy().num_replicas_in_sync
        gradient = tf.convert_to_tensor(gradient)
        return gradient + tf.cast(added, gradient.dtype) * tf.cast(part, gradient.dtype)

    def _after_optimizer(self):
        """Returns the pairs (variable, new value) of `Method.after_optimizer`."""
        weights = [record.weight for record in self.records]
        return self.method.after_optimizer(weights, self.traces.compiled)

    def _emptied(self):
        """Returns pairs (variable, value) that put zeros back if the optimizer may move them."""
        # Some optimizers and constraints move weights without a gradient.
        free = not slots.moves_only_by_gradient(self.optimizer)
        pairs = []
        for record in self.records:
            if free or guard.constraint_of(record.weight.weight):
                pairs += record.weight.emptied(record.slots)
        return pairs

    def _checks_one_replica(self):
        """Returns True if Keras checks gradients only on the first of several replicas."""
        scaled = isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)
        return scaled and tf.distribute.get_strategy().num_replicas_in_sync > 1

    def _rescale(self, usable):
        """Halves the loss scale after an overflow, as the optimizer would if it were applied."""
        variables = [self.optimizer.dynamic_scale, self.optimizer.step_counter]
        scale, steps = (tf.convert_to_tensor(variable.value) for variable in variables)
        values = [tf.where(usable, scale, scale / 2), tf.where(usable, steps, 0)]
        tensors.assign(zip(variables, values, strict=True))

    def _change(self, dense, moment, usable=None):
        """Changes masks, the weights under them, and their optimizer slots.

        Args:
            dense: list of (record, dense gradient); None if the method needs no gradient.
            moment: `Moment`, of an update.
            usable: boolean scalar tensor, False if nothing may change, or None.
        """
        method, (counts, number, _) = self.method, moment
        seeds = [tf.stack([mixed(self.seed, record.number), number]) for record, _ in dense]
        shares = [tuple(tf.unstack(counts[record.number])) for record, _ in dense]
        if method.scope == "global":
            pairs = zip(dense, seeds, strict=True)
            evidence = [record.weight.evidence(g, seed) for (record, g), seed in pairs]
            shares = method.share(shares, evidence, [r.weight.pattern for r, _ in dense])
        changes = []
        for (record, gradient), seed, share in zip(dense, seeds, shares, strict=True):
            changes += record.weight.changes(
                method,
                share,
                gradient,
                seed,
                record.slots,
                usable=usable,
                compiled=self.traces.compiled,
            )
        tensors.assign(changes)


def _observe(dense, past, usable, is_update):
    """Mixes dense gradients into the method's running means, and returns the means.

    Args:
        dense: list of (record, dense gradient).
        past: float32 scalar tensor, the weight of the mean so far.
        usable: boolean scalar tensor, False if the gradients overflowed, or None.
        is_update: bool, whether masks change at this step. Then entries that are infinite or
            NaN start again from the gradient; a check at each step would be costly.

    Returns:
        A list of (record, mean) at an update; `dense` at other steps.
    """
    variables = [record.weight.state["gradient"] for record, _ in dense]
    gradients = [g if usable is None else tensors.where(usable, g) for _, g in dense]
    if not is_update:
        tensors.mix(variables, gradients, past)
        return dense
    values = []
    for variable, gradient in zip(variables, gradients, strict=True):
        kept = tf.convert_to_tensor(variable.value)
        weight = tf.cast(past, kept.dtype)
        value = weight * kept + (1 - weight) * gradient
        value = tf.where(tf.math.is_finite(value), value, gradient)
        values.append(tensors.where(tf.math.is_finite(value), value))
    tensors.assign(zip(variables, values, strict=True))
    return [(record, value) for (record, _), value in zip(dense, values, strict=True)]
