"""Masks as bits: one for each entry, or for each block of a weight that stores blocks."""

import numpy as np


def packed(item):
    """Returns the mask of a sparse weight as an array of bytes."""
    return np.packbits(item.footprint())


def entries(bits, sizes) -> int:
    """Returns the number of entries of the set bits.

    Args:
        bits: array of bytes, one bit per part of a weight.
        sizes: the entries of each part; 1 for single entries.
    """
    found = np.unpackbits(bits)
    if isinstance(sizes, int):
        return int(np.count_nonzero(found))
    return int(sizes.ravel() @ found[: sizes.size].astype(np.int64))


def difference(before, now, sizes):
    """Returns the number of entries that differ, and the number active in both, added."""
    differing, first, second = (entries(bits, sizes) for bits in (before ^ now, before, now))
    return differing, first + second
