"""Patterns with loops in plain Python, written from what they promise and not from the library.

A weight is seen as a stack of matrices, inputs by outputs: the axes are named as two tuples,
inputs and outputs; all others are stacked. A weight of one axis has one output. After the axes
may come "all": then what is stacked are taps, and a block covers all of them.
"""

import functools
import itertools
import math

import numpy as np

# Where an entry is.


def default_axes(rank):
    """Kernels of Keras: inputs on the last axis but one, outputs on the last."""
    return ((rank - 2,), (rank - 1,)) if rank > 1 else (tuple(range(rank)), ())


@functools.lru_cache(maxsize=64)
def places(shape, axes=None):
    """(stack, input, output) of each entry, as flat numbers, by index."""
    rank = len(shape)
    joined = axes is not None and axes[-1] == "all"
    axes = axes[:-1] if joined else axes
    inputs, outputs = axes or default_axes(rank)
    inputs, outputs = [a % rank for a in inputs], [a % rank for a in outputs]
    stack = [a for a in range(rank) if a not in inputs and a not in outputs]

    def number(index, group):
        result = 0
        for axis in group:
            result = result * shape[axis] + index[axis]
        return result

    stack = [] if joined else stack
    return {
        index: tuple(number(index, group) for group in (stack, inputs, outputs))
        for index in itertools.product(*map(range, shape))
    }


@functools.lru_cache(maxsize=64)
def members(shape, rows, cols, axes=None):
    """The blocks in order, each a list of indices: position, then rows, then columns."""
    blocks = {}
    for index, (stack, i, o) in places(shape, axes).items():
        blocks.setdefault((stack, i // rows, o // cols), []).append(index)
    return [blocks[key] for key in sorted(blocks)]


# What is chosen.


def best_first(scores):
    """Positions from the highest score to the lowest: NaN last, of equals the lower first."""

    def key(n):
        bad = math.isnan(scores[n])
        return bad, 0.0 if bad else -scores[n], n

    return sorted(range(len(scores)), key=key)


def block_scores(scores, rows, cols, score="sum", axes=None):
    """The score of each block; NaN where one of its entries is, or infinities cancel."""
    result = []
    for block in members(scores.shape, rows, cols, axes):
        values = [float(scores[index]) for index in block]
        if any(math.isnan(v) for v in values) or (
            score != "max" and math.inf in values and -math.inf in values
        ):
            result.append(math.nan)
        elif score == "max":
            result.append(max(values))
        else:
            result.append(sum(values) / (len(values) if score == "mean" else 1))
    return result


def block_mask(scores, count, rows, cols, score="sum", axes=None, among=None, kept=None):
    """The `count` best blocks; those that may be chosen, and are not kept already."""
    blocks = members(scores.shape, rows, cols, axes)
    mask = np.zeros(scores.shape, bool)
    left = count
    for n in best_first(block_scores(scores, rows, cols, score, axes)):
        allowed = among is None or any(among[index] for index in blocks[n])
        taken = kept is not None and any(kept[index] for index in blocks[n])
        if left and allowed and not taken:
            left -= 1
            for index in blocks[n]:
                mask[index] = True
    assert left == 0, "more is asked for than there is"
    return mask


@functools.lru_cache(maxsize=64)
def groups(shape, m, axes=None):
    """The group of each entry: m inputs in a row of one output."""
    return {index: (stack, i // m, o) for index, (stack, i, o) in places(shape, axes).items()}


def nm_mask(scores, count, n, m, axes=None, among=None, kept=None):
    """The `count` best entries of which at most n fall in a group; then the best of the rest."""
    group_of = groups(scores.shape, m, axes)
    indices = list(group_of)
    filled = dict.fromkeys(group_of.values(), 0)
    if kept is not None:
        for index in indices:
            filled[group_of[index]] += bool(kept[index])
    candidates = [
        indices[k]
        for k in best_first([float(scores[index]) for index in indices])
        if (among is None or among[indices[k]]) and (kept is None or not kept[indices[k]])
    ]
    fitting, rest = [], []
    for index in candidates:
        if filled[group_of[index]] < n:
            filled[group_of[index]] += 1
            fitting.append(index)
        else:
            rest.append(index)
    chosen = (fitting + rest)[:count]
    assert len(chosen) == count, "more is asked for than there is"
    mask = np.zeros(scores.shape, bool)
    for index in chosen:
        mask[index] = True
    return mask


# What holds of a mask.


def are_whole(mask, rows, cols, axes=None):
    """Whether each block lives or dies as a whole."""
    blocks = members(mask.shape, rows, cols, axes)
    return all(len({bool(mask[index]) for index in block}) == 1 for block in blocks)


def blocks_kept(mask, rows, cols, axes=None):
    """How many blocks have an entry that is kept."""
    blocks = members(mask.shape, rows, cols, axes)
    return sum(any(mask[index] for index in block) for block in blocks)


def kept_in_groups(mask, m, axes=None):
    """How many entries of each group are kept, and how many there are."""
    counts = {}
    for index, group in groups(mask.shape, m, axes).items():
        kept, size = counts.get(group, (0, 0))
        counts[group] = kept + bool(mask[index]), size + 1
    return list(counts.values())


def holds_nm(mask, n, m, axes=None):
    """Whether no group has more than n entries."""
    return all(kept <= n for kept, _ in kept_in_groups(mask, m, axes))


def nm_capacity(shape, n, m, axes=None):
    """How many entries can be kept at most."""
    return sum(min(n, size) for _, size in kept_in_groups(np.zeros(shape, bool), m, axes))


# Blocks of which each column has as many.


@functools.lru_cache(maxsize=64)
def columns(shape, rows, cols, axes=None):
    """The column of blocks that each block of `members` is in: position and output."""
    found = set()
    for stack, i, o in places(shape, axes).values():
        found.add((stack, i // rows, o // cols))
    return [(stack, o) for stack, _, o in sorted(found)]


def fan_in_mask(scores, each, rows, cols, score="sum", axes=None, kept=None):
    """Fills each column of blocks up to `each`, with its best that are not kept already."""
    shape = scores.shape
    blocks, column_of = members(shape, rows, cols, axes), columns(shape, rows, cols, axes)
    taken = [kept is not None and any(kept[index] for index in block) for block in blocks]
    filled = dict.fromkeys(column_of, 0)
    for n, column in enumerate(column_of):
        filled[column] += taken[n]
    mask = np.zeros(shape, bool)
    for n in best_first(block_scores(scores, rows, cols, score, axes)):
        if not taken[n] and filled[column_of[n]] < each:
            filled[column_of[n]] += 1
            for index in blocks[n]:
                mask[index] = True
    assert set(filled.values()) == {each}, "more is asked for than there is"
    return mask


def kept_in_columns(mask, rows, cols, axes=None):
    """How many blocks of each column are kept."""
    counts = dict.fromkeys(columns(mask.shape, rows, cols, axes), 0)
    blocks = members(mask.shape, rows, cols, axes)
    for column, block in zip(columns(mask.shape, rows, cols, axes), blocks, strict=True):
        counts[column] += any(mask[index] for index in block)
    return list(counts.values())
