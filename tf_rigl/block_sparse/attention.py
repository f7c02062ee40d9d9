"""Multi-head attention with block-sparse projections."""

import keras

from tf_rigl._base import keras_internals
from tf_rigl._base.arguments import unknown_key
from tf_rigl.block_sparse.layers import EinsumDense

PROJECTIONS = tuple(keras_internals.PROJECTIONS)  # The names of the projections.
_ARGUMENTS = ("block_size", "density", "seed")
_TENSORS = ("query", "value", "key")  # In the order in which `call` takes them.


def tensors_of_call(args, kwargs) -> dict:
    """Returns the tensors that a call of attention gets, by name, in the order of `call`."""
    given = {**dict(zip(_TENSORS, args, strict=False)), **kwargs}
    return {name: given[name] for name in _TENSORS if given.get(name) is not None}


@keras.saving.register_keras_serializable(package="tf_rigl.block_sparse")
class MultiHeadAttention(keras.layers.MultiHeadAttention):
    """A `keras.layers.MultiHeadAttention` with block-sparse projections.

    Args:
        *args, **kwargs: arguments of `keras.layers.MultiHeadAttention`.
        blocks: dict of "query", "key", "value", "attention_output" or, with `use_gate`,
            "gate" to a dict of `block_size`, `density` and `seed`, as in
            `tf_rigl.block_sparse.EinsumDense`. Projections that it does not name are
            dense. By default every projection has the default blocks.

    Raises:
        ValueError: if `blocks` is not a dict of dicts, or names an unknown projection or
            argument.

    Example:

    >>> blocks = {"query": {"block_size": 16, "density": 0.25}}
    >>> layer = MultiHeadAttention(4, 32, blocks=blocks)
    >>> layer(np.ones((1, 5, 128)), np.ones((1, 5, 128))).shape
    TensorShape([1, 5, 128])
    >>> tuple(layer.query_dense.values.shape)
    (8, 2, 16, 16)
    """

    def __init__(self, *args, blocks=None, **kwargs):
        super().__init__(*args, **kwargs)
        is_gated = keras_internals.is_gated(self)
        names = [name for name in PROJECTIONS if name != "gate" or is_gated]
        blocks = {name: {} for name in names} if blocks is None else blocks
        if not isinstance(blocks, dict) or not all(isinstance(v, dict) for v in blocks.values()):
            raise ValueError(
                "Argument `blocks` must be a dict of projection names to dicts, such as "
                f"{{'query': {{'block_size': 32}}}}. Received: blocks={blocks!r}"
            )
        for name, own in blocks.items():
            if name not in names:
                raise unknown_key("blocks", blocks, name, names, "projections")
            for key in own:
                if key not in _ARGUMENTS:
                    raise unknown_key(f"blocks[{name!r}]", own, key, _ARGUMENTS, "arguments")
            EinsumDense("ab,bc->ac", 1, **own)  # Checks the values.
        # Tuples: Keras would track a dict.
        self._blocks = tuple((name, tuple(own.items())) for name, own in blocks.items())

    @property
    def blocks(self):
        """The arguments of each block-sparse projection, by name."""
        return {name: dict(own) for name, own in self._blocks}

    def build(self, query_shape, value_shape, key_shape=None):
        """Builds the dense projections of Keras, then replaces them by block-sparse ones."""
        super().build(query_shape, value_shape, key_shape)
        for name, own in self.blocks.items():
            dense = keras_internals.projection(self, name)
            sparse = EinsumDense.from_config({**dense.get_config(), **own})
            keras_internals.set_projection(self, name, sparse)
            sparse.build(self._input_shape_of(name, query_shape, value_shape, key_shape))

    def _input_shape_of(self, name, query, value, key):
        if name == "attention_output":
            return (*query[:-1], self.num_heads, self.value_dim)
        shapes = {"query": query, "gate": query, "value": value, "key": key or value}
        return shapes[name]

    def get_config(self):
        return {**super().get_config(), "blocks": self.blocks}

    def ordinary(self):
        """Returns a layer of the Keras class with the same configuration, not built."""
        return keras.layers.MultiHeadAttention.from_config(super().get_config())
