"""Selects exactly the k largest scores, as a boolean mask, without sorting.

Scores are mapped to integers of the same order. A histogram of the upper 16 bits finds the bucket
of the k-th largest score; a histogram of the lower 16 bits within that bucket finds its value.
Among scores equal to it, those of lowest index are taken until the count is right. All shapes are
static and nothing branches, so the same code compiles with XLA.
"""

import tensorflow as tf

from tf_rigl._base.keras_internals import in_xla

_ROW = 1024  # Counts ties by rows first, because a cumulative sum over all entries is slow.


def top_k_mask(scores, k, among=None, first=None):
    """Selects the `k` largest scores.

    Args:
        scores: tensor of any shape and any real dtype. NaN is the lowest score; 0.0 and -0.0
            are equal.
        k: int or integer scalar tensor, number of entries to select, at most the number of
            candidates.
        among: boolean tensor of the shape of `scores`, the candidates. Defaults to all entries.
        first: boolean tensor of the shape of `scores`, candidates to select before all others,
            whatever their scores.

    Returns:
        A boolean tensor of the shape of `scores` with exactly `k` entries set. Of equal scores,
        the one with the lower flat index wins.

    Example:

    >>> top_k_mask(tf.constant([1.0, 3.0, 3.0, 2.0]), 1).numpy()
    array([False,  True, False, False])
    """
    scores = tf.convert_to_tensor(scores)
    keys = ordered_integers(tf.reshape(scores, [-1]))
    count = tf.cast(k, tf.int32)
    if among is not None:
        among = tf.reshape(among, [-1])
    if first is not None:
        first = tf.reshape(first, [-1])
        ahead = tf.math.count_nonzero(first, dtype=tf.int32)
        enough = count <= ahead  # Then only these are candidates; otherwise all of these are in.
        others = ~first if among is None else among & ~first
        among = tf.where(enough, first, others)
        count = tf.where(enough, count, count - ahead)
    if among is not None:
        if scores.dtype.is_integer:  # The lowest integer is reserved; floats do not use it.
            keys = tf.maximum(keys, keys.dtype.min + 1)
        keys = tf.where(among, keys, keys.dtype.min)
    threshold, at_threshold = _kth_largest(keys, count)
    last = _index_of_nth(tf.equal(keys, threshold), at_threshold)
    # Takes keys >= threshold up to the last selected tie, and keys > threshold after it.
    position = tf.range(keys.shape[0])
    chosen = (keys > threshold) | (tf.equal(keys, threshold) & (position <= last))
    if first is not None:
        chosen |= first & ~enough
    return tf.reshape(chosen, scores.shape)


def ordered_integers(scores):
    """Maps scores to signed integers of 32 or 64 bits in the same order.

    No float becomes the lowest integer; NaN becomes the second lowest.

    Args:
        scores: tensor of any shape and any real dtype.

    Returns:
        An int32 or int64 tensor of the same shape.

    Example:

    >>> keys = ordered_integers(tf.constant([-1.0, -0.0, 0.0, 2.0]))
    >>> keys.numpy().argsort(kind="stable").tolist(), bool(keys[1] == keys[2])
    ([0, 1, 2, 3], True)
    """
    if scores.dtype == tf.uint64:
        return tf.bitcast(tf.bitwise.bitwise_xor(scores, tf.constant(2**63, tf.uint64)), tf.int64)
    if scores.dtype.is_integer:
        wide = scores.dtype in (tf.int64, tf.uint32)
        return tf.cast(scores, tf.int64 if wide else tf.int32)
    if scores.dtype != tf.float64:
        scores = tf.cast(scores, tf.float32)
    integer = tf.int64 if scores.dtype == tf.float64 else tf.int32
    infinity = tf.bitcast(tf.constant(float("inf"), scores.dtype), integer)
    bits = tf.bitcast(scores, integer)
    magnitude = tf.bitwise.bitwise_and(bits, integer.max)
    # Converts sign and magnitude to two's complement; -0.0 becomes 0.
    keys = tf.where(bits < 0, -magnitude, magnitude)
    return tf.where(magnitude > infinity, tf.constant(integer.min + 1, integer), keys)


def best_of_columns(scores, number, among):
    """Selects the largest scores along the last axis but one, a number for each column.

    Args:
        scores: real tensor of shape (..., rows, columns).
        number: int32 tensor of shape (..., 1, columns) or a scalar, at most the number of
            candidates of the column.
        among: boolean tensor of the shape of `scores`, the candidates.

    Returns:
        A boolean tensor of the shape of `scores`. Of equal scores, the first row wins.
    """
    keys = ordered_integers(scores)
    if scores.dtype.is_integer:  # The lowest integer is reserved; floats do not use it.
        keys = tf.maximum(keys, keys.dtype.min + 1)
    keys = tf.where(among, keys, keys.dtype.min)
    # The number-th largest key of each column, bit by bit: XLA's sort is many times slower.
    threshold = tf.fill([*keys.shape[:-2], 1, keys.shape[-1]], keys.dtype.min)
    for bit in range(8 * keys.dtype.size - 1, -1, -1):
        # The first of them is the sign: adding it to the lowest integer gives 0.
        step = tf.constant(keys.dtype.min if bit == 8 * keys.dtype.size - 1 else 2**bit, keys.dtype)
        higher = threshold + step
        reach = tf.math.count_nonzero(keys >= higher, axis=-2, keepdims=True, dtype=tf.int32)
        threshold = tf.where(reach >= number, higher, threshold)
    above = keys > threshold
    ties = number - tf.math.count_nonzero(above, axis=-2, keepdims=True, dtype=tf.int32)
    equal = tf.equal(keys, threshold)
    return above | (equal & (tf.cumsum(tf.cast(equal, tf.int32), axis=-2) <= ties))


def evenly(scores, count, allowed, kept, grid):
    """Selects units so that kept and selected ones together are as many in each column.

    The total is `count` more than are kept, or the nearest number that divides evenly among the
    columns; but each column gets at least one unless nothing is asked for.

    Args:
        scores: real tensor of shape (units,).
        count: int or int32 scalar tensor, number of units to select.
        allowed, kept: boolean tensors of shape (units,).
        grid: tuple of int, the numbers of matrices, of rows and of columns.

    Returns:
        A boolean tensor of shape (units,).
    """
    kept = tf.cast(tf.reshape(kept, grid), tf.int32)
    total = tf.cast(count, tf.int32) + tf.reduce_sum(kept)
    # Rounds as `Pattern.possible` does, except that a total of 0 stays 0.
    each = tf.cast(tf.round(total / (grid[0] * grid[2])), tf.int32)
    room = tf.maximum(each, tf.minimum(total, 1)) - tf.reduce_sum(kept, axis=1, keepdims=True)
    scores, allowed = tf.reshape(scores, grid), tf.reshape(allowed, grid)
    return tf.reshape(best_of_columns(scores, room, allowed), [-1])


def _kth_largest(keys, k):
    """Returns the k-th largest key, and how many keys equal to it are among the k largest."""
    bits = 8 * keys.dtype.size
    threshold = tf.zeros([], keys.dtype)
    inside = None  # True for keys that equal the threshold in the digits found so far.
    for shift in range(bits - 16, -1, -16):
        digit = tf.cast(tf.bitwise.right_shift(keys, tf.cast(shift, keys.dtype)), tf.int32)
        if inside is None:
            histogram = _histogram(digit + 2**15)  # The highest digit is signed.
        else:
            digit = tf.bitwise.bitwise_and(digit, 2**16 - 1)
            histogram = _histogram(digit, tf.cast(inside, tf.int32))
        at_least = tf.cumsum(histogram, reverse=True)
        bucket = tf.reduce_sum(tf.cast(at_least >= k, tf.int32)) - 1
        k -= tf.gather(at_least, bucket) - tf.gather(histogram, bucket)
        found = bucket - 2**15 if inside is None else bucket
        hit = tf.equal(digit, found)
        del digit
        inside = hit if inside is None else inside & hit
        threshold += tf.bitwise.left_shift(tf.cast(found, keys.dtype), tf.cast(shift, keys.dtype))
    return threshold, k


def _histogram(digits, counts=None):
    """Counts the digits from 0 to 2^16 - 1.

    Args:
        digits: flat int32 tensor.
        counts: int32 tensor of its shape, how often each digit counts; None: once.
    """
    if in_xla():
        # The same for XLA; but XLA of TensorFlow 2.22 tries to evaluate the input of a bincount
        # when it compiles, which takes minutes after a cumulative sum.
        counts = tf.ones_like(digits) if counts is None else counts
        return tf.math.unsorted_segment_sum(counts, digits, 2**16)
    weights = tf.constant([], tf.int32) if counts is None else counts
    return tf.raw_ops.DenseBincount(input=digits, size=tf.constant(2**16), weights=weights)


def _index_of_nth(flags, n):
    """Returns the index of the n-th flag that is set, n starting at 1; -1 for n = 0."""
    rows = -(-flags.shape[0] // _ROW)
    padded = tf.pad(flags, [[0, rows * _ROW - flags.shape[0]]])
    table = tf.cast(tf.reshape(padded, [rows, _ROW]), tf.int32)
    in_row = tf.reduce_sum(table, axis=1)
    up_to_row = tf.cumsum(in_row)
    row = tf.minimum(tf.reduce_sum(tf.cast(up_to_row < n, tf.int32)), rows - 1)
    before = tf.gather(up_to_row, row) - tf.gather(in_row, row)
    up_to_column = tf.cumsum(tf.gather(table, row))
    column = tf.reduce_sum(tf.cast(up_to_column < n - before, tf.int32))
    return tf.where(n > 0, row * _ROW + column, -1)
