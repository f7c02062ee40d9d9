"""The store of a comparison's runs: results of the finished, claims on those under way."""

import contextlib
import json
import math
import os
import pathlib
import time

import numpy as np

from tf_rigl._base import files
from tf_rigl.experiments.settings import Settings

_MOMENT = 10  # Seconds within which a process writes its number into a file that it made.


class Store:
    """The runs of a comparison that are finished, and those that are under way.

    Args:
        folder: path of the folder that holds them.
        runs: iterable of `Settings`, what the comparison needs; some may be equal.

    Attributes:
        wanted: list of `Settings`, each once, all with the first seed first, so that an
            unfinished table has something in each row.

    Raises:
        ValueError: if two different runs would have the same name, or a stored one is
            not what its name says.
    """

    def __init__(self, folder, runs):
        by_name = {}
        for settings in runs:
            if by_name.setdefault(settings.name, settings) != settings:
                raise ValueError(
                    "Two runs differ by less than their names tell. "
                    f"Received: {settings} and {by_name[settings.name]}"
                )
        self.folder = pathlib.Path(folder)
        self.wanted = sorted(by_name.values(), key=lambda settings: settings.seed)
        self._results = {}
        for settings in self.wanted:
            self.get(settings)

    def get(self, settings):
        """The result of a run, or None if it is not finished."""
        path = self._path(settings, "json")
        if path not in self._results and path.exists():
            self._results[path] = _read(path, settings)
        return self._results.get(path)

    def unfinished(self) -> list[Settings]:
        """The runs that are not stored yet."""
        return [settings for settings in self.wanted if self.get(settings) is None]

    def add(self, settings, result):
        """Stores the result of a run."""
        files.write_text(self._path(settings, "json"), files.to_json(result))

    @contextlib.contextmanager
    def claim(self, settings):
        """Keeps other processes from doing a run; yields whether it is ours to do."""
        lock = self._path(settings, "running")
        mine = _create(lock) or (_remove_stale(lock) and _create(lock))
        try:
            yield mine and self.get(settings) is None
        finally:
            if mine:
                lock.unlink(missing_ok=True)

    def claimed(self, settings) -> int | None:
        """The process that has claimed a run, or None."""
        return _owner(self._path(settings, "running"))

    def _path(self, settings, ending):
        return self.folder / f"{settings.name}.{ending}"


def _read(path, settings):
    """A stored result, if it is that of these settings."""
    try:
        result = json.loads(path.read_text())
        stored = Settings(**result["settings"])
        _check_numbers(result, ("accuracy", "train_flops", "steps"))
        _check_numbers(result["report"], ("flops", "dense_flops", "bytes", "dense_bytes"))
        _check_inputs(result.get("input_connections"))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"The stored run {str(path)!r} cannot be used ({type(error).__name__}: {error}). "
            "Delete it to have it done again."
        ) from error
    if stored != settings:
        raise ValueError(
            f"The stored run {str(path)!r} is not what its name says. Move it away to have the "
            f"right one done. Expected: {settings}. Received: {stored}"
        )
    return result


def _check_numbers(result, keys):
    """Raises if something is not a number from 0, or above for what others are divided by."""
    for key in keys:
        value = result[key]
        if type(value) not in (int, float) or not 0 <= float(value) < math.inf:
            raise ValueError(f"{key} must be a number from 0: {value!r}")
        if key.startswith("dense") and value == 0:
            raise ValueError(f"{key} must not be 0")


def _check_inputs(inputs):
    """Raises if what is there of the input's connections is not a list of pictures."""
    if inputs is None:
        return
    counts = np.asarray(inputs["counts"], float)
    images = (len(inputs["epochs"]), math.prod(inputs["shape"]))
    if len(inputs["shape"]) != 3 or counts.shape != images or not (abs(counts) < 2**31).all():
        raise ValueError(f"the counts of {inputs['shape']} inputs have shape {counts.shape}")


def _create(lock):
    """Makes a lock file with our process number, unless there is one."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with lock.open("x") as file:
            file.write(f"{os.getpid()}\n")
    except FileExistsError:
        return False
    return True


def _remove_stale(lock):
    """Removes a lock file whose process lives no more; whether it did."""
    # One process at a time, or two could remove it, the second one when it is no longer
    # the dead process's but the first one's own.
    guard = lock.with_name(f"{lock.name}-check")
    if not _create(guard):
        if not _is_alive(guard):
            guard.unlink(missing_ok=True)
        return False
    try:
        if _is_alive(lock):
            return False
        lock.unlink(missing_ok=True)
        return True
    finally:
        guard.unlink(missing_ok=True)


def _is_alive(lock):
    """Whether the process that made a lock file lives."""
    pid = _owner(lock)
    if pid is None:  # It may be about to write its number.
        with contextlib.suppress(FileNotFoundError):
            return time.time() - lock.stat().st_mtime < _MOMENT
        return False
    if pid <= 0 or pid == os.getpid():  # One of our own number has gone before us.
        return False
    if os.name == "nt":  # There `os.kill` would end it, not ask.
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass  # It is somebody else's.
    return True


def _owner(lock):
    """The process number in a lock file, or None if there is no such file or number."""
    try:
        return int(lock.read_text())
    except (OSError, ValueError):
        return None
