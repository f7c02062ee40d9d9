"""The entries that were active at least once since training began.

Their share is the in-time exploration rate of
[RigL-ITOP](https://arxiv.org/abs/2102.02887), R_s.
"""

import math
import os
import struct
import zlib

import keras
import numpy as np

from tf_rigl._base import files, notices
from tf_rigl.callbacks import bits
from tf_rigl.training import loop

# A file: `_MAGIC`, `_HEAD`, then records of `_RECORD` and the places of the new entries.
_MAGIC = b"tf_rigl explored 1\n"
_HEAD = struct.Struct("<IQ")  # A checksum of the masks of the start; the step it counts from.
_RECORD = struct.Struct("<QII")  # Step, number of the weight, number of places.
_PLACE = np.dtype("<u4")


class Explored:
    """The union of all masks of a model since training began, one bit per entry or block.

    A file keeps for each step which entries became active for the first time. So a run that is
    taken up again at an earlier step forgets what it had explored after that step.

    Args:
        model: `tf_rigl.SparseModel`, built.
        step: int, the step at which the run of `fit` begins.
        start: dict of path to the mask of the start, from `bits.packed`.
        path: path of the file, or None.
        writes: bool, whether this process writes the file.
    """

    def __init__(self, model, step, start, path=None, writes=False):
        self._start, self._path, self._writes = start, path, writes
        self._begin(model, step)

    def _begin(self, model, step):
        self._bits = {key: mask.copy() for key, mask in self._start.items()}
        self._last, masks = step, self._start.values()
        check = zlib.crc32(b"".join(mask.tobytes() for mask in masks))
        if self._path is not None and (step == 0 or not self._load(check, step)):
            self._write_head(check, step)
        self.add(model, step)

    def rewind(self, model, step):
        """Forgets what was explored after a step that the model was set back to, if any."""
        if step < self._last and self._path is not None:
            self._begin(model, step)
        self.add(model, step)

    def add(self, model, step):
        """Counts the present masks of the model, those after a step."""
        records, self._last = [], step
        for number, item in enumerate(model.masked_weights):
            now = bits.packed(item)
            new, self._bits[item.path] = now & ~self._bits[item.path], now | self._bits[item.path]
            if self._path is not None and self._writes and new.any():
                places = np.flatnonzero(np.unpackbits(new)).astype(_PLACE)
                records.append(_RECORD.pack(step, number, len(places)) + places.tobytes())
        if records:
            with open(self._path, "ab", buffering=0) as file:
                file.write(b"".join(records))

    def entries(self, path, sizes) -> int:
        """Returns how many entries of a weight were active; `sizes` as for `bits.entries`."""
        return bits.entries(self._bits[path], sizes)

    def share(self, model) -> float:
        """Returns the share of the entries of all masked weights."""
        items = model.masked_weights
        explored = sum(self.entries(item.path, item.part_sizes()) for item in items)
        return explored / max(1, sum(math.prod(item.shape) for item in items))

    # The file.

    def _write_head(self, check, step):
        if self._writes:
            with files.beside(self._path) as scratch:
                scratch.write_bytes(_MAGIC + _HEAD.pack(check, step))

    def _load(self, check, step):
        """Takes from the file what was explored up to a step, or warns.

        Returns:
            Whether the file can be continued.
        """
        try:
            since, found, end = _read(self._path, check, list(self._bits.values()), step)
        except (OSError, ValueError, struct.error):
            since = step
        if since:
            notices.warn(
                f"{os.fspath(self._path)!r} does not hold the entries that were active before "
                f"step {since}: `explored` counts the masks of the start, and from step {since} on."
            )
        if since == step:
            return False
        for mask, places in zip(self._bits.values(), found, strict=True):
            set_ = np.unpackbits(mask)
            set_[places] = 1
            mask[:] = np.packbits(set_)
        if self._writes:
            os.truncate(self._path, end)
        return True


def _read(path, check, masks, last):
    """Reads a file up to a step.

    Args:
        path: path of the file.
        check: int, the checksum of the masks of the start.
        masks: list of these masks.
        last: int, the step.

    Returns:
        The step from which on the file counts; an array of places for each weight; and the
        number of bytes that belong to these steps.

    Raises:
        ValueError: if the file belongs to other masks, or is damaged.
    """
    data, found = path.read_bytes(), [[] for _ in masks]
    place = len(_MAGIC) + _HEAD.size
    written, since = _HEAD.unpack_from(data, len(_MAGIC))
    if not data.startswith(_MAGIC) or written != check or since > last:
        raise ValueError("it belongs to other masks")
    while place + _RECORD.size <= len(data):
        step, number, count = _RECORD.unpack_from(data, place)
        if step > last:
            break
        places = np.frombuffer(data, _PLACE, count, place + _RECORD.size)
        if number >= len(masks) or (count and places.max() >= 8 * masks[number].size):
            raise ValueError("it is damaged")
        found[number].append(places)
        place += _RECORD.size + places.nbytes
    empty = np.zeros(0, _PLACE)
    return since, [np.concatenate([empty, *each]) for each in found], place


def follow(model, add):
    """Has a function called with the step after each update that comes in this run of `fit`."""
    loop.of(model).listeners.append(add)


def unfollow(model, add):
    """Undoes `follow`."""
    listeners = loop.of(model).listeners
    listeners[:] = [each for each in listeners if each != add]


def changes_each_step(model) -> bool:
    """Returns whether masks change at steps that are no updates too."""
    return model.method.trained_state is not None


class Exploration(keras.callbacks.Callback):
    """Counts the explored entries of a built model during one run of `fit`.

    Attributes:
        explored: `Explored`.
    """

    def on_train_begin(self, logs=None):
        """Starts at the present masks."""
        model = self.model
        start = {item.path: bits.packed(item) for item in model.masked_weights}
        self.explored = Explored(model, model.step, start)
        follow(model, lambda step: self.explored.add(model, step))

    def on_train_batch_end(self, batch, logs=None):
        """Counts the masks of methods that change them at each step."""
        if changes_each_step(self.model):
            self.explored.add(self.model, self.model.step)
