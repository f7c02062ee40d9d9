"""Backups from which a run that was killed goes on as if nothing had happened."""

import os
import pathlib
import shutil
import warnings

import h5py
import keras

from tf_rigl._base import files, keras_internals, workers
from tf_rigl._base.arguments import check_integer
from tf_rigl.training import integrity, loop


class BackupAndRestore(keras.callbacks.Callback):
    """Backs up a run of `fit`, and takes it up again where it was cut off.

    It does what `keras.callbacks.BackupAndRestore` does, for runs that may be killed at any moment:

    - a backup, with the epoch and the batch it belongs to, is one file, moved into its place
      when it is whole;
    - with an integer `save_freq` a run goes on in the middle of an epoch: the batches that
      were trained on before are taken from the data set and left;
    - among several processes, the first one writes; all of them read.

    The run that goes on is the same to the last bit if operations are deterministic
    (`tf.config.experimental.enable_op_determinism`) and the data begin each epoch anew, with the
    same batches in the same order in a new process: no shuffling, or
    `dataset.shuffle(..., seed=0, reshuffle_each_iteration=False)`, or a `keras.utils.PyDataset`
    whose order follows from the number of the epoch, with `shuffle=False` in `fit`. Where data
    run on across epochs (`repeat()` or a generator with `steps_per_epoch`), or are shuffled
    otherwise, it goes on with other batches than it would have seen. The state of other
    callbacks is not part of a backup, as in Keras, nor are the metrics of the epoch so far;
    put callbacks that change the learning rate before this one.

    Args:
        backup_dir: str or path, a folder of its own. Several workers must share it.
        save_freq: "epoch", or an integer: after how many batches there is a backup.
        double_checkpoint: bool, whether the backup before the last one is kept too: it is
            taken, with a warning, where the last one is damaged.
        delete_checkpoint: bool, whether backups go when the run has come to its end.

    Raises:
        ValueError: when training begins, if there are backups and none can be used: they are
            damaged, or those of another model, method or sparsity.

    Example:

    >>> backup = tf_rigl.callbacks.BackupAndRestore("backup", save_freq=1000)
    >>> model.fit(data, epochs=90, callbacks=[backup])  # Again after a failure.
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
        if save_freq != "epoch":
            check_integer("save_freq", save_freq, 1)
        super().__init__()
        self.backup_dir = os.fspath(backup_dir)
        self.save_freq = save_freq
        self.double_checkpoint = double_checkpoint
        self.delete_checkpoint = delete_checkpoint
        self._last_batch = self._unsaved = 0
        self._latest = pathlib.Path(backup_dir, "latest.weights.h5")
        self._previous = pathlib.Path(backup_dir, "previous.weights.h5")

    def set_model(self, model):
        """Takes the model that `fit` trains."""
        if not hasattr(model, "masked_weights"):
            raise ValueError(
                "`tf_rigl.callbacks.BackupAndRestore` is for a `tf_rigl.SparseModel`; Keras has "
                f"one for others. Received: model={model!r}"
            )
        super().set_model(model)

    def on_train_begin(self, logs=None):
        """Restores the last backup, if there is one."""
        self._due = self._trained = False
        if not self.model.built:
            raise ValueError("The model has to be built before `fit`, by a call for example.")
        paths = [path for path in (self._latest, self._previous) if path.exists()]
        for path in paths:
            try:
                self._restore(path)
                if path == self._previous and self._latest.exists() and self._writes():
                    self._latest.unlink()  # Else the next backup would take the good one's place.
                return
            except (MemoryError, OSError):
                raise  # Of the machine, not of the file: the next attempt may read it.
            except Exception as error:  # HDF5 raises all kinds.
                if path == paths[-1]:
                    raise ValueError(
                        f"The backup {str(path)!r} cannot be used: it is damaged, or not of this "
                        f"model. To begin anew, delete {self.backup_dir!r}. ({error})"
                    ) from error
                warnings.warn(
                    f"The last backup is damaged, the one before is used. ({error})", stacklevel=2
                )

    def _restore(self, path):
        model = self.model
        if not model.optimizer.built:
            with model.distribute_strategy.scope():
                model.optimizer.build(model.trainable_variables)
        integrity.check_file(path, required=True)
        with h5py.File(path) as file:
            epoch, batches = (int(file.attrs[name]) for name in ("epoch", "batches"))
        model.load_weights(path)
        keras_internals.set_initial_epoch(model, epoch)
        loop.of(model).length.skip = batches

    def on_epoch_begin(self, epoch, logs=None):
        """Keeps the number of the epoch for the next backup, and where it began."""
        self._epoch = epoch
        self._left_out = loop.of(self.model).length.skip
        self._first_step = self.model.step - self._left_out
        self._last_batch = max(0, self._left_out - 1)

    def on_train_batch_end(self, batch, logs=None):
        """Writes a backup where one is due; after the last batch when the epoch has ended."""
        if batch < self._left_out or not self._is_due(batch):
            return
        if batch + 1 == self.params.get("steps"):
            self._due = True
        else:
            self._write(self._epoch, self.model.step - self._first_step)

    def _is_due(self, batch):
        """Counts the batches since the last backup; returns whether there are enough."""
        if self.save_freq == "epoch":
            return False
        # With several steps per execution Keras tells of the last batch of each alone.
        self._unsaved += batch - self._last_batch if batch > self._last_batch else batch + 1
        self._last_batch = batch
        if self._unsaved < self.save_freq:
            return False
        self._unsaved = 0
        return True

    def on_epoch_end(self, epoch, logs=None):
        """Writes a backup where one is due."""
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
            integrity.close_file(path)  # Anew: it has been changed.
            if self.double_checkpoint and self._latest.exists():
                os.replace(self._latest, self._previous)
        # A process that was killed at it leaves a part.
        for left in self._latest.parent.glob(".*.weights.h5"):
            left.unlink(missing_ok=True)

    def on_train_end(self, logs=None):
        """Deletes the backups, if they are to go and the run was not over before it began."""
        ends = self._writes() and self._trained and self.delete_checkpoint
        if ends and os.path.exists(self.backup_dir):
            shutil.rmtree(self.backup_dir)
