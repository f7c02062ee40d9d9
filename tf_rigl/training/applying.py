"""What happens where a step that the user wrote applies an optimizer."""

import contextlib
import threading
import warnings

import tensorflow as tf

from tf_rigl._base import keras_internals, tensors
from tf_rigl.training.moment import ORDINARY
from tf_rigl.weights import guard


class Applying:
    """Runs in place of `optimizer.apply`, during one trace of the user's step.

    Args:
        own: the `tf_rigl.training.own_step.OwnStep`.
        moment: `Moment`.

    Attributes:
        heard: dict of the number of a weight to what its `overhear` yields.
        reached: set of int, the numbers of the weights that have had a gradient.
        elsewhere: bool, whether a step of the library has run within the user's step.
    """

    def __init__(self, own, moment):
        self.own = own
        self.moment = moment
        self.heard = {}
        self.reached = set()
        self.elsewhere = False
        self._graph = tensors.present_graph()
        self._done = set()  # Pairs of a thread (replicas have one each) and a weight's number.
        self._finishing = set()  # Threads in which this object applies an optimizer itself.

    def __call__(self, optimizer, apply, gradients, variables):
        """Runs in place of `optimizer.apply(gradients, variables)`."""
        if guard.is_inside():
            self.elsewhere |= threading.get_ident() not in self._finishing
            return apply(gradients, variables)
        self._check_place()
        if variables is None and self.own.method.trained_state is None:
            variables = keras_internals.built_on(optimizer)
        gradients, variables = list(gradients), list(variables or ())
        if self.own.method.freezes_others and variables:
            gradients, variables = self._without_others(gradients, variables)
        if self.own.method.trained_state is not None:
            self._check_trained(optimizer, variables)
        for chosen, moment in self._parts(gradients, variables):
            part = [gradients[place] for place in chosen], [variables[place] for place in chosen]
            self._finish(optimizer, apply, *part, moment)
        return None

    def _parts(self, gradients, variables):
        """Divides the variables: a step may train the same weights twice, and masks change once.

        Returns:
            A list of (indices of variables, `Moment`): one entry, or two if only some of the
            weights have had their turn.
        """
        everything = range(len(variables))
        numbers = {id(w.weight): n for n, w in enumerate(self.own.weights) if w.is_sparse}
        thread = threading.get_ident()
        new, old = [], []
        for place in everything:
            number = numbers.get(id(variables[place]))
            if number is not None and gradients[place] is not None:
                (old if (thread, number) in self._done else new).append(place)
                self._done.add((thread, number))
                self.reached.add(number)
        if not old or not self.moment.looks:
            return [(everything, self.moment)]
        if not new:
            return [(everything, ORDINARY)]
        return [([n for n in everything if n not in new], ORDINARY), (new, self.moment)]

    def _finish(self, optimizer, apply, gradients, variables, moment):
        """Applies the optimizer to some variables, or changes their masks."""
        step = self.own.step_of(optimizer, variables)
        if not step.records:
            apply(gradients, variables)
            return
        probed = [(record, self._dense(record, gradients)) for record in step.records]
        thread = threading.get_ident()
        self._finishing.add(thread)
        try:
            step.finish(gradients, probed, moment)
        finally:
            self._finishing.discard(thread)

    def _check_place(self):
        """Raises or warns if the optimizer is applied in an inner function, loop or condition."""
        graph = tensors.present_graph()
        if graph is self._graph:
            return
        if type(graph).__name__ == "FuncGraph":
            raise ValueError(
                "The training step applies an optimizer within a `tf.function`, of which "
                "TensorFlow keeps one trace for all steps, so masks could not change. Remove the "
                "decorator: the whole step is compiled."
            )
        if self.moment.counts is not None:
            warnings.warn(
                "The training step applies an optimizer within a condition or a loop: at an "
                "update step masks change as often as that part runs, and not at all if it does "
                "not run. To accumulate gradients, use `gradient_accumulation_steps` of the "
                "optimizer.",
                stacklevel=2,
            )

    def _check_trained(self, optimizer, variables):
        """Raises if an optimizer cannot train other variables in the place of the weights."""
        known = {id(v) for v in keras_internals.built_on(optimizer)} if optimizer.built else None
        trained = self.own.trained(variables)
        if not variables or (known is not None and not known.issuperset(map(id, trained))):
            raise ValueError(
                f"{type(self.own.method).__name__} trains other variables in the place of the "
                "weights: pass the weights to `optimizer.apply`, and do not build the optimizer "
                "before."
            )

    def _dense(self, record, gradients):
        """Returns the gradient of a weight's probe."""
        heard, gradient = self.heard.get(record.number), gradients[record.place]
        if heard is None or gradient is None:
            return gradient
        if tf.executing_eagerly():
            found = [dense for _, dense in heard] if len(heard) == 1 else []
        else:  # Of all passes of all tapes, those that the gradient comes from.
            found = tensors.contributing(gradient, heard)
        if not found:
            raise ValueError(
                f"The dense gradient of {record.weight.path!r}, which is stored as blocks, cannot "
                "be told from others in this step. Call the model and the tape in the step itself, "
                "not in a loop, an inner `tf.function` or a replica, and do not run eagerly."
            )
        return record.weight.joined(found)

    def _without_others(self, gradients, variables):
        """Leaves out the variables that the method freezes."""
        sparse = {id(weight.weight) for weight in self.own.weights if weight.is_sparse}
        pairs = [(g, v) for g, v in zip(gradients, variables, strict=True) if id(v) in sparse]
        return [g for g, _ in pairs], [v for _, v in pairs]


class _Door:
    """Stands in for `optimizer.apply` while steps that the user wrote are traced.

    Replicas are traced in threads that take turns, each with an `Applying` of its own.
    """

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.original = optimizer.apply
        self.active = []  # Pairs of a thread and its `Applying`.

    def __call__(self, grads, trainable_variables=None):
        own = [applying for thread, applying in self.active if thread == threading.get_ident()]
        # A step for a loop of one's own may itself run replicas, in other threads.
        applying = (own or [applying for _, applying in self.active])[-1]
        return applying(self.optimizer, self.original, grads, trainable_variables)


@contextlib.contextmanager
def intercepted(optimizer, applying):
    """Calls `applying` in place of `optimizer.apply`, within this context."""
    door = vars(optimizer).get("apply")
    if not isinstance(door, _Door):
        # An item of `vars`, as Keras would track an attribute.
        door = vars(optimizer)["apply"] = _Door(optimizer)
    entry = threading.get_ident(), applying
    door.active.append(entry)
    try:
        yield
    finally:
        door.active.remove(entry)
        if not door.active:
            del vars(optimizer)["apply"]
