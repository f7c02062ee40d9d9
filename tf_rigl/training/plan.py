"""Which kind of step each batch gets; decided on the host, from the number of the step."""

import dataclasses
import warnings

# More than the halvings from the largest loss scale to one that fits.
_ATTEMPTS = 32


@dataclasses.dataclass
class Length:
    """How long the present run of `fit` is.

    Attributes:
        first_step: int, the number of the step at which the run began.
        steps: int, how many steps it has in all, or None if that is not known.
        skip: int, batches to take and leave out: an earlier run has trained on them.
    """

    first_step: int = 0
    steps: int | None = None
    skip: int = 0


class Plan:
    """Asks the method at which steps masks change, and counts what is active.

    Args:
        method: `tf_rigl.methods.Method`.
        weights: list of `tf_rigl.weights.sparse_weight.SparseWeight`.
        length: `Length`.
        unreached: set of int, the numbers of weights that the loss does not reach. Plans
            treat them as dense.

    Attributes:
        active: list of int, the units that are active in each weight.
    """

    def __init__(self, method, weights, length, unreached):
        self._method = method
        self._weights = weights
        self._length = length
        self._unreached = unreached
        self._failures = 0  # Updates in a row that changed no count.
        self.active = self._count()

    def _count(self):
        return [weight.active() for weight in self._weights]

    def counts(self, step):
        """The units to keep and to grow in each weight at a step; None at an ordinary step."""
        if self._failures >= _ATTEMPTS:
            return None
        weights, length = self._weights, self._length
        if self._unreached:
            weights = [
                dataclasses.replace(weight, target_sparsity=0.0) if n in self._unreached else weight
                for n, weight in enumerate(weights)
            ]
        return self._method.plan(step, self.active, length.first_step, length.steps, weights)

    def observation(self, step):
        """What `Method.observation` says of a step."""
        return self._method.observation(step, self._length.first_step, self._length.steps)

    def is_ordinary(self, step) -> bool:
        """True if neither masks change nor gradients are observed at a step."""
        return self.counts(step) is None and self.observation(step) is None

    def updated(self, counts):
        """Takes note of an update that was done by these counts."""
        planned, before = [sum(each) for each in counts], self.active
        if planned == before:
            return
        # Frozen weights keep their counts, and a common pool divides anew.
        self.active = self._count()
        self._failures = self._failures + 1 if self.active == before else 0
        if self._failures == _ATTEMPTS:
            warnings.warn(
                f"{type(self._method).__name__} cannot prune the model: no usable gradient has "
                f"reached the weights in {_ATTEMPTS} attempts. They stay as they are.",
                stacklevel=2,
            )
