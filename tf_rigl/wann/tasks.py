"""What networks are searched for: tasks give each network a score for each shared weight."""

import zlib

import numpy as np

from tf_rigl._base.arguments import check_integer
from tf_rigl.wann.population import Stack

SCORES = ("log_likelihood", "accuracy")
_CHUNK = 2**21  # Numbers in the arrays of a chunk of networks, which fit into a cache.


class Classification:
    """Classes of examples; the outputs are logits.

    Args:
        x: float array of shape (examples, inputs).
        y: int array of shape (examples,), the classes, from 0 on.
        score: str, "log_likelihood" (the mean over examples, at most 0) or "accuracy".
        classes: int, or None: the largest in `y`, and one.

    Raises:
        ValueError: if the arrays have other shapes or values, or `score` is unknown.

    Example:

    >>> task = tf_rigl.wann.Classification(x, y)
    >>> task.inputs, task.outputs
    (16, 4)
    """

    def __init__(self, x, y, score="log_likelihood", classes=None):
        x, y = np.asarray(x, np.float32), np.asarray(y)
        if x.ndim != 2 or y.shape != x.shape[:1] or not np.issubdtype(y.dtype, np.integer):
            raise ValueError(
                "Arguments `x` and `y` must have shapes (examples, inputs) and (examples,), and "
                f"`y` integers. Received: x of shape {x.shape}, y of shape {y.shape} and dtype "
                f"{y.dtype}"
            )
        if score not in SCORES:
            raise ValueError(
                f"Argument `score` must be one of {list(SCORES)}. Received: score={score!r}"
            )
        if not len(x) or not np.isfinite(x).all():
            raise ValueError(
                "Argument `x` must have examples, and be finite. Received: x of shape "
                f"{x.shape}, of which {np.count_nonzero(~np.isfinite(x))} numbers are not finite"
            )
        outputs = int(y.max()) + 1 if classes is None else check_integer("classes", classes, 1)
        if y.min() < 0 or y.max() >= outputs:
            raise ValueError(
                f"Argument `y` must hold classes from 0 to {outputs - 1}. Received: y from "
                f"{y.min()} to {y.max()}"
            )
        self.x, self.y, self.score = x, y, score
        self.inputs, self.outputs = x.shape[1], outputs

    @property
    def fingerprint(self) -> int:
        """A number that differs for other examples or another score."""
        found = zlib.crc32(self.x.tobytes())
        found = zlib.crc32(self.y.astype(np.int64).tobytes(), found)
        return zlib.crc32(f"{self.score} {self.outputs}".encode(), found)

    def scores(self, networks, weights) -> np.ndarray:
        """Returns a score for each network and shared weight.

        Args:
            networks: list of `Network`.
            weights: float array.

        Returns:
            A float array of shape (networks, weights).
        """
        found = np.zeros((len(networks), len(weights)))
        most = max(self.outputs + network.hidden for network in networks)
        size = max(1, _CHUNK // (most * max(len(self.x), self.inputs + most)))
        for begin in range(0, len(networks), size):
            stack = Stack(networks[begin : begin + size])
            sums = stack.sums(self.x)
            for number, weight in enumerate(weights):
                outputs = stack.run(sums, weight)
                found[begin : begin + size, number] = self._score(outputs)
        return found

    def _score(self, outputs):
        if self.score == "accuracy":
            return (outputs.argmax(axis=-1) == self.y).mean(axis=-1)
        logits = outputs - outputs.max(axis=-1, keepdims=True)
        chosen = logits[:, np.arange(len(self.y)), self.y]
        return (chosen - np.log(np.exp(logits).sum(axis=-1))).mean(axis=-1)

    def accuracy(self, network, weights) -> tuple[np.ndarray, float]:
        """Returns the accuracy of a network with each shared weight, and of their ensemble.

        Args:
            network: `Network`.
            weights: float array.

        Returns:
            Two results: an array of an accuracy for each weight; and the accuracy of the class
            with the highest mean probability over the weights.
        """
        if not np.size(weights):
            raise ValueError("Argument `weights` must not be empty. Received: weights=[]")
        stack, found = Stack([network]), []
        total = np.zeros((len(self.x), self.outputs))
        sums = stack.sums(self.x)
        for weight in np.atleast_1d(weights):
            (logits,) = stack.run(sums, weight)
            found.append((logits.argmax(axis=-1) == self.y).mean())
            odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
            total = total + odds / odds.sum(axis=-1, keepdims=True)
        return np.array(found), float((total.argmax(axis=-1) == self.y).mean())
