"""Callbacks for sparse training: backups, logs of the masks, checks of the masks."""

from tf_rigl._base import backend  # noqa: F401, first: it registers our classes with Keras
from tf_rigl.callbacks.backup import BackupAndRestore
from tf_rigl.callbacks.logger import SparsityLogger
from tf_rigl.callbacks.monitor import SparsityError, SparsityMonitor

__all__ = ["BackupAndRestore", "SparsityError", "SparsityLogger", "SparsityMonitor"]
