"""The plan of a run: the host decides the kind of each step from its number."""

import dataclasses
import warnings

# More than the halvings that the largest loss scale needs until no gradient overflows.
_ATTEMPTS = 32


@dataclasses.dataclass
class Length:
    """The length of the present run of `fit`.

    Attributes:
        first_step: int, the number of the step at which the run began.
        steps: int, the number of its steps, or None if that is unknown.
        skip: int, the number of batches to skip: an earlier run has trained on them.
    """

    first_step: int = 0
    steps: int | None = None
    skip: int = 0


class Plan:
    """Asks the method at which steps masks change, and counts active units.

    Args:
        method: `tf_rigl.methods.Method`.
        weights: list of `tf_rigl.weights.sparse_weight.SparseWeight`.
        length: `Length`.
        unreached: set of int, the numbers of weights that the loss does not reach. The plan
            treats them as dense.

    Attributes:
        active: list of int, the units that are active in each weight.
    """

    def __init__(self, method, weights, length, unreached):
        self._method = method
        self._weights = weights
        self._length = length
        self._unreached = unreached
        self._frozen = {n for n, each in enumerate(weights) if not each.weight.trainable}
        sparse = {n for n, each in enumerate(weights) if each.is_sparse}
        self._all_frozen = bool(sparse) and sparse <= self._frozen
        self._failures = 0  # Updates in a row that should change counts and did not.
        self.recount()

    def recount(self):
        """Counts the active units anew, after the masks were changed elsewhere."""
        self.active = self._count()

    def _count(self):
        return [weight.active() for weight in self._weights]

    def counts(self, step):
        """Returns the units to keep and to grow in each weight; None at an ordinary step."""
        if self._failures >= _ATTEMPTS or self._all_frozen:
            return None
        weights, length = self._weights, self._length
        unreached = self._unreached | self._frozen
        if unreached:
            weights = [
                dataclasses.replace(weight, target_sparsity=0.0) if n in unreached else weight
                for n, weight in enumerate(weights)
            ]
        return self._method.plan(step, self.active, length.first_step, length.steps, weights)

    def observation(self, step):
        """Returns the result of `Method.observation` for a step."""
        return self._method.observation(step, self._length.first_step, self._length.steps)

    def is_ordinary(self, step) -> bool:
        """Returns True if a step neither changes masks nor observes gradients."""
        return self.counts(step) is None and self.observation(step) is None

    def updated(self, counts):
        """Counts the active units after an update by these counts, and notices failures."""
        planned, before = [keep + grow for keep, grow, *_ in counts], self.active
        if planned == before and self._method.keeps_counts:
            return
        # The plan may not come true: frozen weights keep their counts, and a global scope
        # divides the units anew.
        self.active = self._count()
        failed = self.active == before and sum(planned) != sum(before)
        self._failures = self._failures + 1 if failed else 0
        if self._failures == _ATTEMPTS:
            warnings.warn(
                f"{type(self._method).__name__} cannot prune the model: no usable gradient has "
                f"reached the weights in {_ATTEMPTS} attempts. The masks stay as they are.",
                stacklevel=2,
            )
