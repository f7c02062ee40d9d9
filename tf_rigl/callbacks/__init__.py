"""Callbacks for sparse training: backups, figures while it runs, checks of the masks."""

from tf_rigl._base import backend  # noqa: F401, first: Keras then knows all our classes
from tf_rigl.callbacks.backup import BackupAndRestore
from tf_rigl.callbacks.logger import SparsityLogger
from tf_rigl.callbacks.monitor import SparsityError, SparsityMonitor

__all__ = ["BackupAndRestore", "SparsityError", "SparsityLogger", "SparsityMonitor"]
