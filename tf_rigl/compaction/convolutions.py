"""Compact forms of convolutions."""

import keras

from tf_rigl.compaction import matrices


def split(part):
    """A convolution for each column, over the input channels that it uses."""
    return matrices.in_columns(part, lambda n, c: _layer(part, f"_{n}", c.outputs), _axis(part))


def grouped(part):
    """Gathers the input channels of all columns, for one convolution with groups.

    Columns with fewer inputs than others get an input more, with weights of zero.
    """
    places = matrices.places_of(part)
    inputs = part.input()
    x = part.sampled(inputs)
    x = matrices.gathered(x, places.ravel(), part.columns.rows, _axis(part))
    layer = _layer(part, "_blocks", part.columns.outputs, groups=len(places))
    model = keras.Model(inputs, part.activated(layer(x)), name=part.name)

    def fill():
        kernel = matrices.in_groups(part, places.shape[1])
        layer.set_weights([kernel] if part.bias is None else [kernel, part.bias])

    return model, fill


def _layer(part, suffix, filters, groups=1):
    """Returns a convolution like the layer's, with other channels."""
    layer = part.layer
    return _class_of(layer)(
        filters,
        layer.kernel_size,
        strides=1 if part.has_one_tap else layer.strides,
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        data_format=layer.data_format,
        groups=groups,
        name=f"{part.name}{suffix}",
        **part.options,
    )


def _class_of(layer):
    """Returns the class of Keras that a convolution is of, or that it stands for."""
    return next(c for c in type(layer).__mro__ if c.__module__.startswith("keras."))


def _axis(part):
    return 1 if part.layer.data_format == "channels_first" else -1
