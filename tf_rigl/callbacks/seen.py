"""The masks that a run has had: at its start, at its last update, and all of them together."""

import math
import os
import warnings
import zipfile

import numpy as np

from tf_rigl._base import files
from tf_rigl.weights import maskable


class MasksOfRun:
    """The masks of a model at its start and at its last update, and which entries had a turn.

    One bit per entry or block.

    Args:
        model: `tf_rigl.SparseModel`.
        step: int, the step at which the run of `fit` began.
        path: path of the file that keeps the masks of the start, or None. A file beside it keeps
            when other entries became active first.
        writes: bool, whether this process writes these files.
    """

    def __init__(self, model, step, path, writes):
        self._start = {item.path: _packed(item) for item in model.masked_weights}
        if model.step > step == 0 and model.method.begins_dense:
            # The first batch built the model, and may have pruned it: the start was dense.
            self._start = {
                item.path: np.packbits(np.ones(item.shape, bool)) for item in model.masked_weights
            }
        self._now = dict(self._start)
        self._changed = {}  # Path -> `_difference` of the masks before and after the last update.
        self._inputs = {
            item.path: maskable.input_axes(item.layer, item.shape) for item in model.masked_weights
        }
        self._sizes = {item.path: item.part_sizes() for item in model.masked_weights}
        known = True
        if path is not None and step > 0:
            found = _load(path, model, self._start)
            known, self._start = found is not None, found or self._start
        elif path is not None and writes:
            _save(path, model, self._start)
        self._explored = dict(self._start)
        self._log = None
        if path is not None and writes:
            name = path.name.removesuffix("start.npz") + "explored.bin"
            self._log = path.with_name(name)
            self._read_log(step, known)
        self._explore(self._now, step)

    def _read_log(self, step, known):
        """Reads which entries have become active up to a step, and drops what came later."""
        records = np.zeros((0, 3), np.int32)
        if step > 0 and known and self._log.exists():
            content = self._log.read_bytes()
            records = np.frombuffer(content[: len(content) // 12 * 12], np.int32).reshape(-1, 3)
            records = records[records[:, 0] <= step]
        elif step > 0 and known:
            warnings.warn(
                f"{os.fspath(self._log)!r} is missing: `explored` counts from step {step} on.",
                stacklevel=2,
            )
        for number, path in enumerate(self._explored):
            bits = np.unpackbits(self._explored[path])
            bits[records[records[:, 1] == number, 2]] = 1
            self._explored[path] = np.packbits(bits)
        with files.beside(self._log) as scratch:
            scratch.write_bytes(records.tobytes())

    def refresh(self, model):
        """Copies the present masks: the model may have been restored."""
        self._now = {item.path: _packed(item) for item in model.masked_weights}
        self._explore(self._now, model.step)

    def update(self, model):
        """Copies the masks after an update, and counts the entries that it changed."""
        for item in model.masked_weights:
            before, now = self._now[item.path], _packed(item)
            self._changed[item.path] = _difference(before, now, self._sizes[item.path])
            self._now[item.path] = now
        self._explore(self._now, model.step)

    def look(self, model):
        """Takes note of masks that follow from a state, not from updates."""
        masks = {item.path: _packed(item) for item in model.masked_weights}
        self._explore(masks, model.step)

    def _explore(self, masks, step):
        """Adds masks to those that the run has had, and notes in the file what is new."""
        records = []
        for number, (path, seen) in enumerate(self._explored.items()):
            new = np.flatnonzero(np.unpackbits(masks[path] & ~seen))
            if new.size:
                self._explored[path] = seen | masks[path]
                columns = np.full_like(new, step), np.full_like(new, number), new
                records.append(np.stack(columns, axis=1))
        if records and self._log is not None:
            with open(self._log, "ab", buffering=0) as file:
                file.write(np.concatenate(records).astype(np.int32).tobytes())

    def counts(self, model):
        """Yields the path of each weight with nine numbers.

        They are: entries, active entries; `_difference` from the start, two numbers; the same
        for the last update; dead units, units; entries that have been active.
        """
        for item in model.masked_weights:
            now, sizes = _packed(item), self._sizes[item.path]
            units = item.alive(self._inputs[item.path])
            yield (
                item.path,
                math.prod(item.shape),
                _entries(now, sizes),
                *_difference(self._start[item.path], now, sizes),
                *self._changed.get(item.path, (0, 0)),
                np.count_nonzero(~units),
                units.size,
                _entries(self._explored[item.path] | now, sizes),
            )


def _packed(item):
    return np.packbits(item.footprint())


def _entries(bits, sizes) -> int:
    """Returns the number of entries of the set bits.

    Args:
        bits: array of bytes, one bit per part of a weight.
        sizes: the entries of each part; 1 for single entries.
    """
    found = np.unpackbits(bits)
    if isinstance(sizes, int):
        return int(np.count_nonzero(found))
    return int(sizes.ravel() @ found[: sizes.size].astype(np.int64))


def _difference(before, now, sizes):
    """Returns the number of entries that differ, and the number active in both, added."""
    differing, first, second = (_entries(bits, sizes) for bits in (before ^ now, before, now))
    return differing, first + second


# Their files.


def _save(path, model, masks):
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.beside(path) as scratch, open(scratch, "wb") as file:
        np.savez(file, *masks.values(), paths=list(masks), seed=model.seed)


def _load(path, model, like):
    """Returns the masks in a file, or None, with a warning, if they belong to another model."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            masks = {str(p): arrays[f"arr_{n}"] for n, p in enumerate(arrays["paths"])}
            same = int(arrays["seed"]) == model.seed and masks.keys() == like.keys()
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile):
        same = False
    if same and all(masks[p].shape == like[p].shape for p in like):
        return masks
    warnings.warn(
        f"The masks in {os.fspath(path)!r} are not the initial masks of this model: changes "
        f"count from step {model.step} on.",
        stacklevel=2,
    )
    return None
