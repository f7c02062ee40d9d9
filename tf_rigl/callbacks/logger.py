"""Figures of the masks while training, for TensorBoard and as CSV."""

import csv as csv_files
import io
import os
import pathlib
import warnings
import zipfile
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_rigl._base import files, workers
from tf_rigl.callbacks.watcher import Watcher
from tf_rigl.training import loop
from tf_rigl.weights import maskable

ALL = "(all)"  # The name of the row over all weights.


class Figures(NamedTuple):
    """What is known of a mask at a step: a row of the CSV file."""

    epoch: int
    step: int
    weight: str
    sparsity: float
    changed_since_start: float
    changed_since_update: float
    drop_fraction: float | None
    dead_units: int
    units: int


class SparsityLogger(Watcher):
    """Writes down how sparse each layer is, and how its mask moves.

    For every masked weight, by its path, and for all of them together, "(all)":

    - `sparsity`: the share of entries whose mask is 0.
    - `changed_since_start`, `changed_since_update`: how much of the mask is another than at
      the start of training, and than before the last update: the entries active at one of
      the two moments alone, over those active at the one plus those active at the other. 0
      is the same mask, 1 one that has no active entry in common. Where the number of active
      entries stays the same, that is the share of them that have moved.
    - `drop_fraction`: the share of active entries that an update at this step drops and grows
      by the method's schedule; 0 from `end_step` on; empty for methods without one.
    - `dead_units`, of `units`: outputs of the kernel (columns of a matrix, channels of a
      convolution, gates of a recurrent cell) all of whose incoming entries are masked.

    The figures of all weights are also added to the logs of each epoch as "sparsity",
    "masks_changed" (since the start) and "dead_units": the progress bar, `History` and
    callbacks that come after this one show them.

    A run that is taken up again goes on in the same files. CSV rows of steps that the model
    has not reached (yet) are dropped, so a model that begins at step 0 begins the file anew;
    before `BackupAndRestore` in the list of callbacks, no row is missed. The masks of the
    start are kept in a file beside it, one bit for an entry.

    Nothing is computed at steps at which nothing is written, but that the masks are copied
    after each update, as bits. Updates within one execution of several steps count as one. A
    model that is not built before `fit` starts, for this, when its first batch has been seen;
    as dense, where methods begin dense.

    Args:
        log_dir: str or path, a folder for TensorBoard (which need not be installed).
        csv: str or path, a CSV file, with the columns named above after "epoch", "step" and
            "weight". Each time is written at once, so readers see whole lines only.
        update_freq: "epoch", "update" (after each step at which masks change), or an integer,
            a number of steps: when to write.

    Raises:
        ValueError: if an argument is none of these; when training begins, if `csv` is a file
            of something else.

    Example:

    >>> logger = tf_rigl.callbacks.SparsityLogger(log_dir="logs", csv="sparsity.csv")
    >>> model.fit(data, epochs=90, callbacks=[logger])

    Reference:

    - [Rigging the Lottery](https://arxiv.org/abs/1911.11134), the analyses of how masks
      change.
    """

    def __init__(self, log_dir=None, csv=None, update_freq="epoch"):
        super().__init__("update_freq", update_freq, ("epoch", "update"))
        self.log_dir = None if log_dir is None else pathlib.Path(log_dir)
        self.csv = None if csv is None else pathlib.Path(csv)
        self.update_freq = update_freq
        self._masks = None
        self._writer = None

    def set_model(self, model):
        """Takes the model that `fit` trains; the start is that of its first run."""
        if model is not self.model:
            self._masks = None
        super().set_model(model)

    def on_train_begin(self, logs=None):
        """Looks whether the files can be written."""
        self._begun = False
        self._writes = workers.is_chief(self.model.distribute_strategy)
        if self.csv is not None:
            _rows(self.csv)

    def on_epoch_begin(self, epoch, logs=None):
        """Begins where the model is now: it may have been restored since `fit` began."""
        super().on_epoch_begin(epoch, logs)
        self._epoch = epoch
        if not self._begun:
            self._updates = loop.of(self.model).updates
            if self.model.masked_weights:  # Else it is built when its first batch comes.
                self._begin()

    def _begin(self):
        self._begun, step = True, self._looked
        if self._masks is None or step == 0:
            self._masks = _Masks(self.model, step, self._start_file(), self._writes)
        else:
            self._masks.refresh(self.model)
        if self._writes and self.csv is not None:
            _cut(self.csv, step)
        if self._writes and self.log_dir is not None:
            self._writer = tf.summary.create_file_writer(str(self.log_dir))

    def on_train_batch_end(self, batch, logs=None):
        """Writes, if it is time."""
        if not self._begun:
            self._begin()
        updated = loop.of(self.model).updates != self._updates
        if updated:
            self._updates = loop.of(self.model).updates
            self._masks.update(self.model)
        if self._is_due() or (updated and self.update_freq == "update"):
            self._write(self._figures())

    def on_epoch_end(self, epoch, logs=None):
        """Adds figures to the logs, and writes, if it is time."""
        figures = self._figures()
        total = figures[-1]
        if logs is not None:
            logs["sparsity"] = total.sparsity
            logs["masks_changed"] = total.changed_since_start
            logs["dead_units"] = total.dead_units
        if self.update_freq == "epoch":
            self._write(figures)

    def on_train_end(self, logs=None):
        """Closes what is open."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _start_file(self):
        """Where the masks of the start are kept."""
        if self.csv is not None:
            return self.csv.with_name(f"{self.csv.name}.start.npz")
        return None if self.log_dir is None else self.log_dir / "start.npz"

    def _figures(self):
        """The figures of each weight, and of all of them."""
        model = self.model
        step, fraction = model.step, _drop_fraction(model)
        result, sums = [], np.zeros(8, np.int64)
        for path, *counts in self._masks.counts(model):
            sums += counts
            result.append(_row(self._epoch, step, path, fraction, counts))
        return [*result, _row(self._epoch, step, ALL, fraction, sums.tolist())]

    def _write(self, figures):
        if not self._writes:
            return
        if self.csv is not None:
            _append(self.csv, figures)
        if self._writer is not None:
            with self._writer.as_default():
                for each in figures:
                    _summarise(each)
            self._writer.flush()


class _Masks:
    """The masks of a model at its start and at its last update, one bit for an entry.

    Args:
        model: the model.
        step: int, that at which the run of `fit` began.
        path: path of a file that keeps those of the start, or None.
        writes: bool, whether this process is the one to write it.
    """

    def __init__(self, model, step, path, writes):
        self._start = {item.path: _packed(item) for item in model.masked_weights}
        if model.step > step == 0 and model.method.begins_dense:
            # It was built by its first batch, which may have pruned it.
            self._start = {
                item.path: np.packbits(np.ones(item.shape, bool)) for item in model.masked_weights
            }
        self._now = dict(self._start)
        self._changed = {}  # Path -> entries that the last update has changed, of how many.
        self._inputs = {item.path: _input_axes(item) for item in model.masked_weights}
        if path is not None and step > 0:
            self._start = _load(path, model, self._start) or self._start
        elif path is not None and writes:
            _save(path, model, self._start)

    def refresh(self, model):
        """Takes the masks as they are: the model may have been restored."""
        self._now = {item.path: _packed(item) for item in model.masked_weights}

    def update(self, model):
        """Takes up what an update has made of the masks."""
        for item in model.masked_weights:
            before, now = self._now[item.path], _packed(item)
            self._changed[item.path] = _difference(before, now)
            self._now[item.path] = now

    def counts(self, model):
        """For each weight its path, and eight numbers: entries, those active; entries that differ
        from the start, out of how many; the same for the last update; dead units, units.
        """
        for item in model.masked_weights:
            mask = item.mask.numpy()
            units = mask.any(axis=self._inputs[item.path])
            yield (
                item.path,
                mask.size,
                np.count_nonzero(mask),
                *_difference(self._start[item.path], np.packbits(mask)),
                *self._changed.get(item.path, (0, 0)),
                np.count_nonzero(~units),
                units.size,
            )


def _packed(item):
    return np.packbits(item.mask.numpy())


def _difference(before, now):
    """How many bits are set in one of two arrays alone, and how many in both together."""
    differing, first, second = (
        int(np.count_nonzero(np.unpackbits(bits))) for bits in (before ^ now, before, now)
    )
    return differing, first + second


def _input_axes(item):
    """The axes of a weight along which the entries lie that lead to one output."""
    layer, rank = item.layer, len(item.shape)
    if isinstance(layer, keras.layers.EinsumDense):
        _, kernel, output = maskable.einsum_labels(layer)
        return tuple(axis for axis, label in enumerate(kernel) if label not in output)
    axes = maskable.axes(layer, item.shape)
    outputs = {axis % rank for axis in axes[1]} if axes else {rank - 1} if rank > 1 else set()
    return tuple(axis for axis in range(rank) if axis not in outputs)


def _drop_fraction(model):
    """The drop fraction that the method's schedule gives at the model's step, or None."""
    method, length = model.method, loop.of(model).length
    if not hasattr(method, "fraction") or not hasattr(method, "last_step"):
        return None
    end = method.last_step(length.first_step, length.steps)
    if model.step >= end:
        return 0.0
    first = length.first_step if method.needs_length else 0
    return float(method.fraction(model.step - first, end - first))


def _row(epoch, step, path, fraction, counts):
    entries, active, *changes, dead, units = counts
    since_start, since_update = (
        part / of if of else 0.0 for part, of in (changes[:2], changes[2:])
    )
    sparsity = 1 - active / entries if entries else 0.0
    return Figures(epoch, step, path, sparsity, since_start, since_update, fraction, dead, units)


# TensorBoard.


def _summarise(figures):
    """Writes scalars as `tf.summary.scalar` does, which needs TensorBoard to be installed."""
    data = tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
    metadata = tf.compat.v1.SummaryMetadata(plugin_data=data, data_class="DATA_CLASS_SCALAR")
    for name in Figures._fields[3:]:
        value = getattr(figures, name)
        if value is not None and name != "units":
            value = tf.constant(value, tf.float32)
            tag = f"{name}/{figures.weight}"
            tf.summary.write(tag, value, step=figures.step, metadata=metadata)


# CSV.


def _rows(path):
    """The whole lines of a CSV file as lists, without the header; raises if it has another."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    header = ",".join(Figures._fields) + "\n"
    if not text.startswith(header) and not header.startswith(text):
        raise ValueError(
            "Argument `csv` must be a new file, or one that a `SparsityLogger` has written. "
            f"Received: csv={str(path)!r}"
        )
    whole = text[len(header) : text.rfind("\n") + 1]
    return list(csv_files.reader(io.StringIO(whole)))


def _lines(rows):
    buffer = io.StringIO()
    csv_files.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def _cut(path, step):
    """Leaves the header of a CSV file, and rows up to a step, of an earlier part of the run."""
    kept = [row for row in _rows(path) if int(row[1]) <= step] if step else []
    files.write_text(path, _lines([Figures._fields, *kept]))


def _append(path, figures):
    """Adds rows with one write."""
    rows = [
        [f"{value:.6g}" if isinstance(value, float) else value for value in each]
        for each in figures
    ]
    with open(path, "ab", buffering=0) as file:
        file.write(_lines(rows).encode())


# The masks of the start.


def _save(path, model, masks):
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.beside(path) as scratch, open(scratch, "wb") as file:
        np.savez(file, *masks.values(), paths=list(masks), seed=model.seed)


def _load(path, model, like):
    """The masks in a file, or None if they are not those of this model."""
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
        f"The masks in {os.fspath(path)!r} are not those with which this model began: changes "
        f"count from step {model.step} on.",
        stacklevel=2,
    )
    return None
