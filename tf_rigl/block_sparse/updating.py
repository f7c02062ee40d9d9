"""How the blocks of a kernel move: `Method.update` for what stores no dense kernel."""

import tensorflow as tf

from tf_rigl._base import tensors
from tf_rigl.block_sparse.strips import Strips


def moved(weight, method, counts, gradient, seed, usable=None):
    """Computes the new places and values of blocks by a method.

    The method scores one strip of the kernel after the other. The blocks are those that
    `Method.update` chooses for the dense kernel. (Random scores of a kernel of several strips
    are others than those of the whole, and as random.)

    Args:
        weight: `BlockSparseWeight`.
        method: `tf_rigl.methods.Method`, which has the `update` of the base class.
        counts: (keep, grow), int32 scalar tensors: blocks to keep and to grow.
        gradient: `Factors`, or None if the method needs no gradient.
        seed: int32 tensor of shape (2,).
        usable: boolean scalar tensor, False if nothing may change; or None.

    Returns:
        The new places and the new values, tensors.
    """
    layer, pattern, shape = weight.layer, weight.pattern, weight.shape
    strips, geometry = Strips(layer), layer.geometry
    values = tf.convert_to_tensor(layer.values.value)
    old = tf.convert_to_tensor(layer.places)

    def scores(first, part):
        kernel = strips.shaped(strips.unpacked(values, first, part))
        dense = None if gradient is None else strips.shaped(gradient.strip(first, part))
        mask = strips.shaped(strips.mask(first, part))
        arguments = kernel, dense, mask, strips.seed(seed, first)
        found = method.drop_scores(*arguments), method.grow_scores(*arguments)
        return tuple(strips.unit_scores(each, part, pattern) for each in found)

    def flat(units):  # Patterns count along block rows first.
        return tf.reshape(tf.transpose(units), [-1])

    drop, grow = map(flat, strips.map(scores))
    present = flat(geometry.units(old))
    kept = pattern.keep_units(drop, counts[0], present, shape)
    grown = pattern.select_units(grow, counts[1], ~kept, kept, shape)
    new = kept | grown
    if usable is not None:
        new = tf.where(usable, new, present)
    units = tf.transpose(tf.reshape(new, [geometry.down, geometry.across]))
    places = geometry.places_of(units)
    return places, _values(strips, method, values, old, places, seed)


def _values(strips, method, values, old, places, seed):
    """Returns the values of blocks at new places: those that were there keep theirs."""
    stays, position = kept(old, places)
    result = tf.gather(values, position, batch_dims=1)
    if method.begins_at_zero:
        return tensors.where(stays, result)

    def new(first, part):
        kernel = strips.shaped(strips.unpacked(values, first, part))
        begun = strips.flat(method.new_values(kernel, strips.seed(seed, first)))
        return part.pack(begun, strips.cut(places, first))

    return tf.where(stays, result, tf.cast(strips.map(new), values.dtype))


def kept(old, places):
    """Tells which blocks were there before, and where they were stored.

    Args:
        old, places: the places of blocks before and now, see `Geometry`.

    Returns:
        A boolean tensor of shape (columns, active, 1, 1), and an int32 tensor of shape
        (columns, active), the former position of each block in its column.
    """
    position = tf.searchsorted(old, places)  # Places ascend.
    position = tf.minimum(position, old.shape[1] - 1)
    stays = tf.equal(tf.gather(old, position, batch_dims=1), places)
    return stays[:, :, None, None], position


def slots_moved(old, places, values, slots, inside=None):
    """Returns pairs (slot, value): the slots of kept blocks move along, others start empty.

    Args:
        old, places: the places of blocks before and now, see `Geometry`.
        values: tensor, the values of the blocks now.
        slots: iterable of `Slot`.
        inside: boolean tensor of the shape of `values`, which of them are entries of the kernel,
            if slots of squares start at their mean over the kept blocks; None: they start empty.
    """
    stays, position = kept(old, places)
    pairs = []
    for slot, empty, squares in slots:
        value = tf.gather(tf.convert_to_tensor(slot.value), position, batch_dims=1)
        if empty is None:
            new = tf.where(stays, value, tf.cast(values, value.dtype))
        else:
            new = tensors.where(stays, value, empty)
        if squares and inside is not None:
            mean = tensors.mean_where(stays & inside, value)
            new = tf.where(~stays & inside, mean, new)
        pairs.append((slot, new))
    return pairs
