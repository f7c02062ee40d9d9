"""A ticket: masks, and the weights that training starts from."""

import dataclasses
import io
import json
import pathlib

import keras
import numpy as np
import tensorflow as tf

from tf_rigl._base import files
from tf_rigl.convert import sparsifying
from tf_rigl.training import loop


@dataclasses.dataclass(frozen=True, eq=False)  # `==` of arrays is no bool.
class Ticket:
    """A sparse network before its training, and the results of the training.

    Attributes:
        masks: dict of path to boolean array, as in `tf_rigl.SparseModel.masks`.
        weights: list of arrays, all weights of the dense model in the order of its
            `weights`, at initialisation or at the rewind step; `model` applies the masks to
            them.
        rewind_step: int, the number of steps that `weights` were trained for.
        round: int, the number of pruning rounds that led to it; 0 for the dense network.
        history: dict of str to list, the history that `fit` returned; empty before training.
        trained: list of arrays like `weights`, the weights after training, or None.

    Reference:

    - [The Lottery Ticket Hypothesis](https://arxiv.org/abs/1803.03635), section 1.
    """

    masks: dict
    weights: list
    rewind_step: int = 0
    round: int = 0
    history: dict = dataclasses.field(default_factory=dict)
    trained: list | None = None

    def __repr__(self):
        return (
            f"Ticket(round={self.round}, density={self.density:.4f}, "
            f"rewind_step={self.rewind_step})"
        )

    @property
    def density(self) -> float:
        """The fraction of the maskable weights that the masks keep."""
        masks = self.masks.values()
        return sum(map(np.count_nonzero, masks)) / sum(mask.size for mask in masks)

    def model(self, model, trained=False):
        """Makes a sparse model with these masks and weights; it is not compiled.

        Args:
            model: the dense `keras.Model` that was searched, or one like it. It does not
                change if Keras can clone it.
            trained: bool, whether to use the weights after training.

        Returns:
            A `tf_rigl.SparseModel` whose masks do not change. Its `step` is the rewind step.

        Raises:
            ValueError: if the model does not fit, or there are no weights after training.
        """
        weights = self.trained if trained else self.weights
        if weights is None:
            raise ValueError("The ticket has not been trained: `trained` is None.")
        if not isinstance(model, keras.Model) or sparsifying.is_sparse(model):
            raise ValueError(
                f"Argument `model` must be a dense `keras.Model`. Received: model={model!r}"
            )
        sparse = sparsifying.with_masks(model, self.masks)
        variables = dense_weights(sparse)
        shapes = [tuple(variable.shape) for variable in variables]
        if shapes != [np.shape(value) for value in weights]:
            raise ValueError(
                "Argument `model` must have the weights of the model that was searched, of the "
                f"same shapes. Received: model={model!r}"
            )
        for variable, value in zip(variables, weights, strict=True):
            variable.assign(value)
        for item in sparse.masked_weights:
            item.set_mask(self.masks[item.path])
        loop.of(sparse).steps_taken = self.rewind_step
        return sparse

    def save(self, path):
        """Writes the ticket to a temporary file, and moves it into place when it is complete.

        Args:
            path: str or path.
        """
        about = {"round": self.round, "rewind_step": self.rewind_step, "history": self.history}
        about["shapes"] = {name: list(mask.shape) for name, mask in self.masks.items()}
        arrays = {f"mask_{n}": np.packbits(mask) for n, mask in enumerate(self.masks.values())}
        for kind, weights in (("weight", self.weights), ("trained", self.trained or ())):
            about[f"{kind}_dtypes"] = [tf.as_dtype(value.dtype).name for value in weights]
            arrays |= {f"{kind}_{n}": value for n, value in enumerate(weights)}
        text = json.dumps(about).encode()
        with files.beside(pathlib.Path(path)) as scratch, open(scratch, "wb") as file:
            np.savez(file, about=np.frombuffer(text, np.uint8), **arrays)

    @classmethod
    def load(cls, path):
        """Reads a ticket that `save` wrote.

        Raises:
            ValueError: if the file is damaged, or does not hold a ticket.
        """
        content = pathlib.Path(path).read_bytes()
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            about = json.loads(arrays.pop("about").tobytes())
            masks = {}
            for number, (name, shape) in enumerate(about.pop("shapes").items()):
                bits = np.unpackbits(arrays[f"mask_{number}"], count=int(np.prod(shape)))
                masks[name] = bits.astype(bool).reshape(shape)
            weights = _numbered(arrays, "weight", about.pop("weight_dtypes"))
            trained = _numbered(arrays, "trained", about.pop("trained_dtypes"))
            return cls(masks=masks, weights=weights, trained=trained or None, **about)
        except Exception as error:  # A damaged file can make NumPy raise anything.
            raise ValueError(f"The file {str(path)!r} holds no ticket: {error!r}") from error


def check_ticket(argument, value):
    """Raises if an argument is not a `Ticket`."""
    if not isinstance(value, Ticket):
        raise ValueError(
            f"Argument `{argument}` must be a `tf_rigl.lottery.Ticket`. "
            f"Received: {argument}={value!r}"
        )


def _numbered(arrays, kind, dtypes):
    """Returns arrays of one kind in order. NumPy reads bfloat16 as bytes without a dtype."""
    return [
        arrays[f"{kind}_{number}"].view(tf.as_dtype(name).as_numpy_dtype)
        for number, name in enumerate(dtypes)
    ]


def dense_weights(model):
    """Returns the variables that the dense model has too, in its order."""
    items = model.masked_weights
    own = {id(v) for item in items for v in (item.mask, *item.state.values())}
    return [variable for variable in model.weights if id(variable) not in own]


def values(variables):
    """Copies the values of variables to arrays."""
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]
