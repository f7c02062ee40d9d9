"""The axis of the channels of each tensor in a graph: the last one, or with channels first 1."""

from keras import layers

from tf_rigl.channels import rules

LAST, FIRST = -1, 1


def find(calls, shapes) -> list:
    """Finds the axis of the channels of each tensor.

    Layers with a data format decide it. Layers that work number by number pass it on, in both
    directions. Where nothing decides, the channels are last.

    Args:
        calls: list of calls, each with a `layer` and the numbers of its `inputs` and `outputs`.
        shapes: list of shapes, by number.

    Returns:
        A list of `LAST` or `FIRST`, by number; `LAST` if there are not more than two axes.
    """
    found, before = [None if len(shape) > 2 else LAST for shape in shapes], None
    while found != before:
        before = list(found)
        for call in calls:
            axis, numbers = of(call.layer), (*call.inputs, *call.outputs)
            if axis is None and rules.is_numberwise(call.layer):
                known = {found[n] for n in numbers if len(shapes[n]) > 2} - {None}
                axis = known.pop() if len(known) == 1 else None
            for number in numbers:
                found[number] = axis if found[number] is None else found[number]
    return [axis or LAST for axis in found]


def of(layer):
    """Returns the axis of the channels that a layer works on, or None if it takes any."""
    if isinstance(layer, layers.BatchNormalization):
        axis = layer.axis[0] if isinstance(layer.axis, (list, tuple)) else layer.axis
        return FIRST if axis == FIRST else LAST
    if rules.is_numberwise(layer) or not rules.is_known(layer):
        return None
    return FIRST if getattr(layer, "data_format", None) == "channels_first" else LAST


def agree(call, shapes, axes) -> bool:
    """Returns True if a layer works on the axis that the channels of its tensors have."""
    numbers = [n for n in (*call.inputs, *call.outputs) if len(shapes[n]) > 2]
    return len({axes[n] for n in numbers} | ({of(call.layer)} - {None} if numbers else set())) <= 1


def channels_last(shape, axis):
    """Returns a shape with its channels moved to the last axis."""
    return (shape[0], *shape[2:], shape[1]) if axis == FIRST else shape
