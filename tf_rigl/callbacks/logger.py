"""Logs of the masks during training, for TensorBoard and as CSV."""

import csv as csv_files
import io
import math
import os
import warnings
import zipfile
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_rigl._base import files, workers
from tf_rigl._base.arguments import check_path
from tf_rigl.callbacks import bits, explored
from tf_rigl.callbacks.watcher import Watcher
from tf_rigl.training import loop
from tf_rigl.weights import maskable

ALL = "(all)"  # The name of the row for all weights together.


class Figures(NamedTuple):
    """The figures of a mask at a step: a row of the CSV file."""

    epoch: int
    step: int
    weight: str
    sparsity: float
    changed_since_start: float
    changed_since_update: float
    drop_fraction: float | None
    dead_units: int
    units: int
    explored: float


class SparsityLogger(Watcher):
    """Logs how sparse each weight is, and how its mask changes.

    For each masked weight, by its path, and for all of them together, "(all)":

    - `sparsity`: the share of entries whose mask is 0.
    - `changed_since_start`, `changed_since_update`: the distance of the mask from the mask at
      the start of training, and from the mask before the last update: the symmetric
      difference of the two masks, over the sum of their counts. 0 means the same mask, 1 no
      active entry in common. If the number of active entries is constant, this is the share
      of them that have moved.
    - `drop_fraction`: the share of active entries that an update at this step would drop and
      grow by the method's schedule; 0 from `end_step` on; empty for methods without one.
    - `dead_units`, of `units`: outputs of the kernel (columns of a matrix, channels of a
      convolution, gates of a recurrent cell) all of whose incoming entries are masked.
    - `explored`: the share of entries that were active at least once since training began, the
      in-time exploration rate of RigL-ITOP. It counts the masks after every update. Of
      methods whose masks change at each step (`EdgePopup`, `STE`), it counts those after each
      execution.

    The callback also adds the figures of all weights to the logs of each epoch, as "sparsity",
    "masks_changed" (since the start), "dead_units" and "explored". The progress bar, `History`
    and later callbacks show them.

    A resumed run continues the same files. It drops CSV rows of steps that the model has not
    reached, so a model at step 0 starts the file again. Put the logger before
    `BackupAndRestore` in the list of callbacks: then no row is missing. Two files next to the CSV
    file keep the masks of the start, one bit per entry, or per block that is stored, and when
    others became active, four bytes each. If they are lost, a warning says from which step on
    changes and explored entries count.

    At steps without output the callback only copies the masks after each update, as bits. For
    changes, it counts the updates within one execution of several steps as one. For a model that
    is not built before `fit`, the start is after the first batch; if the method begins dense, the
    start is the dense model.

    Args:
        log_dir: str or path, a folder for TensorBoard (which need not be installed).
        csv: str or path, a CSV file, with the columns named above after "epoch", "step" and
            "weight". The rows of a step are written at once, so readers see whole lines only.
        update_freq: when to write: "epoch", "update" (after each step at which masks change),
            or an integer, the number of steps between two writes.

    Raises:
        ValueError: if `update_freq` is invalid; when training begins, if `csv` is an existing
            file that no `SparsityLogger` has written.

    Example:

    >>> logger = tf_rigl.callbacks.SparsityLogger(log_dir="logs", csv="sparsity.csv")
    >>> history = sparse.fit(x, y, batch_size=1, epochs=4, callbacks=[logger], verbose=0)
    >>> sorted(history.history)
    ['accuracy', 'dead_units', 'explored', 'loss', 'masks_changed', 'sparsity']
    >>> 0 < history.history["masks_changed"][-1] < 0.5
    True

    Reference:

    - [Rigging the Lottery](https://arxiv.org/abs/1911.11134), the analyses of how masks
      change.
    - [Do We Actually Need Dense Over-Parameterization?](https://arxiv.org/abs/2102.02887),
      the rate of exploration.
    """

    def __init__(self, log_dir=None, csv=None, update_freq="epoch"):
        super().__init__("update_freq", update_freq, ("epoch", "update"))
        self.log_dir = None if log_dir is None else check_path("log_dir", log_dir)
        self.csv = None if csv is None else check_path("csv", csv)
        self.update_freq = update_freq
        self._masks = None
        self._writer = None

    def set_model(self, model):
        """Sets the model; the masks of the start are those at its first run of `fit`."""
        if model is not self.model:
            self._masks = None
        super().set_model(model)

    def on_train_begin(self, logs=None):
        """Checks that the CSV file can be continued."""
        self._begun = False
        explored.follow(self.model, self._explore)
        self._writes = workers.is_chief(self.model.distribute_strategy)
        if self.csv is not None:
            _rows(self.csv)

    def on_epoch_begin(self, epoch, logs=None):
        """Starts at the model's present step: a backup may have been restored by now."""
        super().on_epoch_begin(epoch, logs)
        self._epoch = epoch
        if not self._begun:
            self._updates = loop.of(self.model).updates
            if self.model.masked_weights:  # Otherwise the first batch builds the model.
                self._begin()

    def _begin(self):
        self._begun, step = True, self._last_step
        if self._masks is None or step == 0:
            self._masks = _Masks(self.model, step, self._start_file(), self._writes)
        else:
            self._masks.refresh(self.model, step)
        if self._writes and self.csv is not None:
            _cut(self.csv, step)
        if self._writes and self.log_dir is not None:
            self._writer = tf.summary.create_file_writer(str(self.log_dir))

    def _explore(self, step):
        if self._begun:  # Otherwise the first batch builds the model: its masks are the start.
            self._masks.explored.add(self.model, step)

    def on_train_batch_end(self, batch, logs=None):
        """Takes note of an update, and writes figures if they are due."""
        if not self._begun:
            self._begin()
        updated = loop.of(self.model).updates != self._updates
        if updated:
            self._updates = loop.of(self.model).updates
            self._masks.update(self.model)
        if explored.changes_each_step(self.model):
            self._explore(self.model.step)
        if self._is_due() or (updated and self.update_freq == "update"):
            self._write(self._figures())

    def on_epoch_end(self, epoch, logs=None):
        """Adds figures to the logs, and writes them with `update_freq="epoch"`."""
        figures = self._figures()
        total = figures[-1]
        if logs is not None:
            logs["sparsity"] = total.sparsity
            logs["masks_changed"] = total.changed_since_start
            logs["dead_units"] = total.dead_units
            logs["explored"] = total.explored
        if self.update_freq == "epoch":
            self._write(figures)

    def on_train_end(self, logs=None):
        """Closes the TensorBoard file."""
        explored.unfollow(self.model, self._explore)
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _start_file(self):
        """Returns the path of the file that keeps the masks of the start, or None."""
        if self.csv is not None:
            return self.csv.with_name(f"{self.csv.name}.start.npz")
        return None if self.log_dir is None else self.log_dir / "start.npz"

    def _figures(self):
        """Returns a list of `Figures`: one for each weight, the last one for all of them."""
        model = self.model
        step, fraction = model.step, _drop_fraction(model)
        result, sums = [], np.zeros(9, np.int64)
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
    """The masks of a model at its start and at its last update, one bit per entry or block.

    Args:
        model: `tf_rigl.SparseModel`.
        step: int, the step at which the run of `fit` began.
        path: path of the file that keeps the masks of the start, or None.
        writes: bool, whether this process writes that file.
    """

    def __init__(self, model, step, path, writes):
        self._start = {item.path: bits.packed(item) for item in model.masked_weights}
        if model.step > step == 0 and model.method.begins_dense:
            # The first batch built the model, and may have pruned it: the start was dense.
            self._start = {
                item.path: np.packbits(np.ones(item.shape, bool)) for item in model.masked_weights
            }
        self._now = dict(self._start)
        self._changed = {}  # Path -> `bits.difference` of the masks around the last update.
        self._inputs = {
            item.path: maskable.input_axes(item.layer, item.shape) for item in model.masked_weights
        }
        self._sizes = {item.path: item.part_sizes() for item in model.masked_weights}
        if path is not None and step > 0:
            loaded = _load(path, model, self._start)
            self._start = loaded or self._start
            path = loaded and path  # Without the start, nothing can be added to it.
        elif path is not None and writes:
            _save(path, model, self._start)
        if path is not None:
            path = path.with_name(path.name.removesuffix("start.npz") + "explored")
        self.explored = explored.Explored(model, step, self._start, path, writes)

    def refresh(self, model, step):
        """Copies the present masks: the model may have been restored."""
        self.explored.rewind(model, step)
        self._now = {item.path: bits.packed(item) for item in model.masked_weights}

    def update(self, model):
        """Copies the masks after an update, and counts the entries that it changed."""
        for item in model.masked_weights:
            before, now = self._now[item.path], bits.packed(item)
            self._changed[item.path] = bits.difference(before, now, self._sizes[item.path])
            self._now[item.path] = now

    def counts(self, model):
        """Yields the path of each weight with nine numbers.

        They are: entries, active entries; `bits.difference` from the start, two numbers; the same
        for the last update; dead units, units; explored entries.
        """
        for item in model.masked_weights:
            now, sizes = bits.packed(item), self._sizes[item.path]
            units = item.alive(self._inputs[item.path])
            yield (
                item.path,
                math.prod(item.shape),
                bits.entries(now, sizes),
                *bits.difference(self._start[item.path], now, sizes),
                *self._changed.get(item.path, (0, 0)),
                np.count_nonzero(~units),
                units.size,
                self.explored.entries(item.path, sizes),
            )


def _drop_fraction(model):
    """Returns the drop fraction of the method's schedule at the model's step, or None."""
    method, length = model.method, loop.of(model).length
    if not hasattr(method, "fraction") or not hasattr(method, "last_step"):
        return None
    end = method.last_step(length.first_step, length.steps)
    if model.step >= end:
        return 0.0
    first = length.first_step if method.needs_length else 0
    return float(method.fraction(model.step - first, end - first))


def _row(epoch, step, path, fraction, counts):
    entries, active, *changes, dead, units, seen = counts
    since_start, since_update = (
        part / of if of else 0.0 for part, of in (changes[:2], changes[2:])
    )
    sparsity = 1 - active / entries if entries else 0.0
    changes = since_start, since_update
    share = seen / entries if entries else 0.0
    return Figures(epoch, step, path, sparsity, *changes, fraction, dead, units, share)


# TensorBoard.


def _summarise(figures):
    """Writes scalars as `tf.summary.scalar` does, but without TensorBoard installed."""
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
    """Returns the complete rows of a CSV file as lists; raises if its header is another one.

    Files of version 0.1.0 have no column "explored": it is empty in their rows.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    header, old = (",".join(names) + "\n" for names in (Figures._fields, Figures._fields[:-1]))
    header = old if text.startswith(old) else header
    if not text.startswith(header) and not header.startswith(text):
        raise ValueError(
            "Argument `csv` must be a new file, or a file that a `SparsityLogger` has written. "
            f"Received: csv={str(path)!r}"
        )
    whole = text[len(header) : text.rfind("\n") + 1]
    rows = csv_files.reader(io.StringIO(whole))
    return [[*row, *[""] * (len(Figures._fields) - len(row))] for row in rows]


def _lines(rows):
    buffer = io.StringIO()
    csv_files.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def _cut(path, step):
    """Writes the header of a CSV file, and keeps its rows up to a step."""
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
