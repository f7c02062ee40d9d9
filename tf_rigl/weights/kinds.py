"""The layers of Keras whose weights can be masked, and the attributes that hold these."""

from keras import layers

from tf_rigl._base.keras_internals import ConvLSTMCell

# Layer class -> the attributes that hold its maskable variables. Attention layers are
# not listed: their projections are `EinsumDense` sublayers. Nor are recurrent layers:
# their weights sit in their cells.
MASKABLE_ATTRIBUTES = {
    layers.Dense: ("kernel",),
    layers.EinsumDense: ("kernel",),
    layers.Conv1D: ("kernel",),
    layers.Conv2D: ("kernel",),
    layers.Conv3D: ("kernel",),
    layers.Conv1DTranspose: ("kernel",),
    layers.Conv2DTranspose: ("kernel",),
    layers.Conv3DTranspose: ("kernel",),
    layers.SeparableConv1D: ("pointwise_kernel",),
    layers.SeparableConv2D: ("pointwise_kernel",),
    # Reversible embeddings have a second matrix, for the way back, if it is not the same one.
    layers.Embedding: ("embeddings", "reverse_embeddings"),
    layers.SimpleRNNCell: ("kernel", "recurrent_kernel"),
    layers.GRUCell: ("kernel", "recurrent_kernel"),
    layers.LSTMCell: ("kernel", "recurrent_kernel"),
    ConvLSTMCell: ("kernel", "recurrent_kernel"),
}


def attributes(layer) -> tuple:
    """Returns the names of the attributes of a layer that hold its maskable variables."""
    found = (names for cls, names in MASKABLE_ATTRIBUTES.items() if isinstance(layer, cls))
    return next(found, ())
