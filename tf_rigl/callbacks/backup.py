"""Backups from which a run that was killed goes on as if nothing had happened."""

import os
import pathlib
import warnings

import h5py
import keras

from tf_rigl import _workers, files, seal


class BackupAndRestore(keras.callbacks.BackupAndRestore):
    """Backs up a run of `fit`, and takes it up again where it was cut off.

    It is `keras.callbacks.BackupAndRestore` for runs that may be killed at any moment:

    - a backup, with the epoch and the batch it belongs to, is one file, moved into its place
      when it is whole;
    - with an integer `save_freq` a run goes on in the middle of an epoch: the batches that
      were trained on before are taken from the data set and left;
    - among several processes, the first one writes; all of them read.

    The run that goes on is the same to the last bit if operations are deterministic
    (`tf.config.experimental.enable_op_determinism`) and the data give the same batches in the
    same order in that epoch: without shuffling, or shuffled by the number of the epoch
    (`keras.utils.PyDataset.on_epoch_end` is not called for epochs that are not run). The
    state of other callbacks is not part of a backup, as in Keras; nor are the metrics of the
    epoch so far.

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
        backup_dir = os.fspath(backup_dir)
        super().__init__(backup_dir, save_freq, double_checkpoint, delete_checkpoint)
        self._latest = pathlib.Path(backup_dir, "latest.weights.h5")
        self._previous = pathlib.Path(backup_dir, "previous.weights.h5")

    def on_train_begin(self, logs=None):
        """Restores the last backup, if there is one."""
        paths = [path for path in (self._latest, self._previous) if path.exists()]
        for path in paths:
            try:
                self._restore(path)
                return
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
        if not model.built:
            raise ValueError("The model has to be built before `fit`, by a call for example.")
        if not model.optimizer.built:
            with model.distribute_strategy.scope():
                model.optimizer.build(model.trainable_variables)
        seal.check_file(path, required=True)
        with h5py.File(path) as file:
            epoch, batches = (int(file.attrs[name]) for name in ("epoch", "batches"))
        model.load_weights(path)
        if batches >= (self.params.get("steps") or batches + 1):
            epoch, batches = epoch + 1, 0
        model._initial_epoch = epoch
        model._run.skip = batches

    def on_epoch_begin(self, epoch, logs=None):
        """Keeps the number of the epoch for the next backup."""
        self._current_epoch, self._batches = epoch, 0

    def on_train_batch_end(self, batch, logs=None):
        """Writes a backup where one is due."""
        self._batches = batch + 1
        if not self.model._run.skip:
            super().on_train_batch_end(batch, logs)

    def on_epoch_end(self, epoch, logs=None):
        """Writes a backup where one is due."""
        self._batches = 0
        super().on_epoch_end(epoch, logs)

    def _save_model(self):
        if not _workers.is_chief(self.model.distribute_strategy):
            return
        with files.beside(self._latest) as path:
            self.model.save_weights(path)
            with h5py.File(path, "a") as file:
                file.attrs["epoch"], file.attrs["batches"] = self._current_epoch, self._batches
            seal.close_file(path)  # Anew: it has been changed.
            if self.double_checkpoint and self._latest.exists():
                os.replace(self._latest, self._previous)
        # A process that was killed at it leaves a part.
        for left in self._latest.parent.glob(".*.weights.h5"):
            left.unlink(missing_ok=True)

    def on_train_end(self, logs=None):
        """Deletes the backups, if they are to go."""
        if _workers.is_chief(self.model.distribute_strategy):
            super().on_train_end(logs)
