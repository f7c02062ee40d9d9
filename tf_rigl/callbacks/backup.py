"""Backups that let a killed run continue as if it had not stopped."""

import numbers
import os
import pathlib
import shutil
import warnings

import h5py
import keras

from tf_rigl._base import files, keras_internals, workers
from tf_rigl._base.arguments import ChecksArguments, check_flag
from tf_rigl.training import integrity, loop
from tf_rigl.training.own_step import optimizers_of


class BackupAndRestore(ChecksArguments, keras.callbacks.Callback):
    """Backs up a run of `fit`, and continues it from the last backup.

    It works like `keras.callbacks.BackupAndRestore`, for runs that may be killed at any moment:

    - A backup is one file, with the epoch and the batch it belongs to. The file is moved to its
      place only when it is complete.
    - With an integer `save_freq`, a run continues in the middle of an epoch: it takes the
      batches of the earlier run from the data set and skips them.
    - Of several processes, the first one writes; all of them read.

    The continued run is the same to the last bit if operations are deterministic
    (`tf.config.experimental.enable_op_determinism`) and a new process gets the same batches in
    the same order in each epoch: no shuffling, or
    `dataset.shuffle(..., seed=0, reshuffle_each_iteration=False)`, or a `keras.utils.PyDataset`
    whose order depends on the number of the epoch, with `shuffle=False` in `fit`. It sees other
    batches than the first run would have if the data continue across epochs (`repeat()`, or a
    generator with `steps_per_epoch`), or are shuffled in another way. As in Keras, a backup
    holds neither the state of other callbacks nor the metrics of the epoch so far. Put
    callbacks that change the learning rate before this one.

    Args:
        backup_dir: str or path, a folder for the backups alone. Several workers must share it.
        save_freq: "epoch", or an integer: the number of batches between two backups.
        double_checkpoint: bool, whether to keep the backup before the last one too. If the
            last one is damaged, the run uses the one before, with a warning.
        delete_checkpoint: bool, whether to delete the backups at the end of the run.

    Raises:
        ValueError: when training begins, if there are backups but none can be used, because
            they are damaged or belong to another model, method or sparsity.

    Example:

    Run the script again after a failure: `fit` then continues from the last backup.

    >>> backup = tf_rigl.callbacks.BackupAndRestore("backup", save_freq=100)
    >>> history = sparse.fit(x, y, batch_size=1, epochs=4, callbacks=[backup], verbose=0)
    """

    def __init__(
        self, backup_dir, save_freq="epoch", double_checkpoint=False, delete_checkpoint=True
    ):
        is_path = isinstance(backup_dir, (str, os.PathLike)) and str(backup_dir)
        if not is_path or "://" in str(backup_dir):
            raise ValueError(
                "Argument `backup_dir` must be the path of a folder in a file system. "
                f"Received: backup_dir={backup_dir!r}"
            )
        is_integer = isinstance(save_freq, numbers.Integral) and not isinstance(save_freq, bool)
        if save_freq != "epoch" and not (is_integer and save_freq >= 1):
            raise ValueError(
                "Argument `save_freq` must be 'epoch' or an integer of at least 1, a number of "
                f"batches. Received: save_freq={save_freq!r}"
            )
        super().__init__()
        self.backup_dir = os.fspath(backup_dir)
        self.save_freq = save_freq
        self.double_checkpoint = check_flag("double_checkpoint", double_checkpoint)
        self.delete_checkpoint = check_flag("delete_checkpoint", delete_checkpoint)
        self._last_batch = self._unsaved = 0
        self._latest = pathlib.Path(backup_dir, "latest.weights.h5")
        self._previous = pathlib.Path(backup_dir, "previous.weights.h5")

    def set_model(self, model):
        """Sets the model, which must be a `tf_rigl.SparseModel`."""
        if not hasattr(model, "masked_weights"):
            raise ValueError(
                "`tf_rigl.callbacks.BackupAndRestore` is for a `tf_rigl.SparseModel`. Use "
                "`keras.callbacks.BackupAndRestore` for other models. Received: "
                f"model={model!r}"
            )
        super().set_model(model)

    def on_train_begin(self, logs=None):
        """Restores the last backup, if there is one."""
        self._due = self._trained = False
        if not self.model.built:
            raise ValueError("The model must be built before `fit`: call it on a batch first.")
        paths = [path for path in (self._latest, self._previous) if path.exists()]
        for path in paths:
            try:
                self._restore(path)
                if path == self._previous and self._latest.exists() and self._writes():
                    self._latest.unlink()  # The next backup would replace the good one by it.
                return
            except (MemoryError, OSError):
                raise  # The machine failed, not the file: the next attempt may read it.
            except Exception as error:  # HDF5 raises errors of many types.
                if path == paths[-1]:
                    raise ValueError(
                        f"The backup {str(path)!r} cannot be used: it is damaged, or belongs to "
                        f"another model. To start again, delete {self.backup_dir!r}. ({error})"
                    ) from error
                warnings.warn(
                    f"The last backup is damaged; `fit` uses the one before. ({error})",
                    stacklevel=2,
                )

    def _restore(self, path):
        model = self.model
        model.build_optimizer()
        integrity.check_file(path, required=True)
        with h5py.File(path) as file:
            epoch, batches = (int(file.attrs[name]) for name in ("epoch", "batches"))
            stored, built = int(file.attrs.get("optimizers", 0)), _built_optimizers(model)
        if stored > built:
            raise ValueError(
                f"It holds the state of {stored} optimizers, of which {built} are built. Before "
                "`fit`, call `build` of each optimizer with the variables that it trains."
            )
        model.load_weights(path)
        keras_internals.set_initial_epoch(model, epoch)
        loop.of(model).length.skip = batches

    def on_epoch_begin(self, epoch, logs=None):
        """Keeps the number of the epoch and its first step, for the next backup."""
        self._epoch = epoch
        self._left_out = loop.of(self.model).length.skip
        self._first_step = self.model.step - self._left_out
        self._last_batch = max(0, self._left_out - 1)

    def on_train_batch_end(self, batch, logs=None):
        """Writes a backup if one is due; after the last batch, `on_epoch_end` writes it."""
        if batch < self._left_out or not self._is_due(batch):
            return
        if batch + 1 == self.params.get("steps"):
            self._due = True
        else:
            self._write(self._epoch, self.model.step - self._first_step)

    def _is_due(self, batch):
        """Counts the batches since the last backup; returns True if a backup is due."""
        if self.save_freq == "epoch":
            return False
        # With several steps per execution, Keras calls this only after the last batch of each.
        self._unsaved += batch - self._last_batch if batch > self._last_batch else batch + 1
        self._last_batch = batch
        if self._unsaved < self.save_freq:
            return False
        self._unsaved = 0
        return True

    def on_epoch_end(self, epoch, logs=None):
        """Writes a backup if one is due."""
        self._trained = True
        self._last_batch = 0
        if self._due or self.save_freq == "epoch":
            self._due = False
            self._write(epoch + 1, 0)

    def _writes(self):
        return workers.is_chief(self.model.distribute_strategy)

    def _write(self, epoch, batches):
        if not self._writes():
            return
        with files.beside(self._latest) as path:
            self.model.save_weights(path)
            with h5py.File(path, "a") as file:
                file.attrs["epoch"], file.attrs["batches"] = epoch, batches
                file.attrs["optimizers"] = _built_optimizers(self.model)
            integrity.close_file(path)  # Again, as the attributes changed the file.
            if self.double_checkpoint and self._latest.exists():
                os.replace(self._latest, self._previous)
        # Deletes incomplete files of a process that was killed while writing.
        for left in self._latest.parent.glob(".*.weights.h5"):
            left.unlink(missing_ok=True)

    def on_train_end(self, logs=None):
        """Deletes the backups with `delete_checkpoint`, if the run has trained at all."""
        ends = self._writes() and self._trained and self.delete_checkpoint
        if ends and os.path.exists(self.backup_dir):
            shutil.rmtree(self.backup_dir)


def _built_optimizers(model):
    """Returns how many optimizers of a model hold a state."""
    return sum(optimizer.built for optimizer in optimizers_of(model))
