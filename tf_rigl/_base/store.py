"""A folder of finished results, so that no work is done twice."""

import contextlib
import json
import pathlib

import filelock

from tf_rigl._base import files


def read_json(path):
    """Reads a result that `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path, result):
    """Writes a result as JSON, whole or not at all."""
    files.write_text(path, files.to_json(result))


class Store:
    """Finished results in a folder, one file each, found by name.

    A file is written whole or not at all, so work that was cut off continues from the last
    finished result. Several processes can share the work: each claims what it does.

    Args:
        folder: path of the folder; it need not exist.
        ending: str, the ending of the files' names.
        read: function of a path that returns the result; it may raise anything.
        write: function of a path and a result.
        remedy: str, the advice in the message about a damaged file.
    """

    def __init__(
        self,
        folder,
        ending=".json",
        read=read_json,
        write=write_json,
        remedy="Delete it to have it done again.",
    ):
        self.folder = pathlib.Path(folder)
        self._ending, self._read, self._write, self._remedy = ending, read, write, remedy

    def path(self, name):
        """The file of a result."""
        return self.folder / f"{name}{self._ending}"

    def get(self, name, check=None):
        """The result of this name, or None if it is not finished.

        Args:
            name: str.
            check: function of the result that raises an error if the result is not the wanted
                one, or None.

        Raises:
            ValueError: if the file is damaged, or fails the check. The message says to delete
                it.
        """
        path = self.path(name)
        if not path.exists():
            return None
        try:
            result = self._read(path)
            if check is not None:
                check(result)
        except (OSError, MemoryError):
            raise  # The file may be sound.
        except Exception as error:  # A damaged file can raise anything.
            kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
            raise ValueError(
                f"The stored result {str(path)!r} cannot be used: {kind}{error}. {self._remedy}"
            ) from error
        return result

    def add(self, name, result):
        """Stores a result."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write(self.path(name), result)

    @contextlib.contextmanager
    def claim(self, name):
        """Keeps other processes from work of this name; yields whether it is ours to do.

        The claim is a lock on the file `<name>.running`. The system releases the lock when the
        process ends, however it ends; a file without a lock claims nothing.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._claim(name)
        lock = filelock.FileLock(path, mode=0o666)  # Several users may share the folder.
        try:
            lock.acquire(blocking=False)
        except PermissionError:
            path.unlink()  # Another user's process was killed, or an old version left it.
            lock.acquire(blocking=False)
        except filelock.Timeout:
            yield False
            return
        try:
            # Another process may have finished it just before.
            yield not self.path(name).exists()
        finally:
            with contextlib.suppress(OSError):  # Windows deletes no file that is open.
                path.unlink()
            lock.release()

    def is_claimed(self, name) -> bool:
        """Whether a process works on this name at the moment."""
        path = self._claim(name)
        if not path.exists():
            return False
        lock = filelock.FileLock(path)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            return True
        lock.release()
        return False

    def _claim(self, name):
        return self.folder / f"{name}.running"


def read_description(path, wanted):
    """Reads the file that describes the work in a folder, and compares it with other work.

    Args:
        path: path of a JSON file whose "settings" describe the work.
        wanted: dict, the settings of the work to be done.

    Returns:
        What the file holds, a dict; an empty one if there is no file.

    Raises:
        ValueError: if the settings differ; the message names each difference.
    """
    if not path.exists():
        return {}
    try:
        found = read_json(path)
        stored = dict(found["settings"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"The file {str(path)!r} cannot be used ({type(error).__name__}: {error}). "
            "Choose another folder, or delete this one."
        ) from error
    different = _differences(stored, json.loads(json.dumps(wanted)))
    if different:
        raise ValueError(
            f"Argument `folder` holds other work: it differs in {', '.join(different)}. "
            f"Received: folder={str(path.parent)!r}"
        )
    return found


def _differences(there, here, inside=""):
    """Says where two dicts of settings differ: `epochs (60 there, 3 here)`."""
    result = []
    for name in dict.fromkeys([*here, *there]):
        one, other = there.get(name), here.get(name)
        label = f"{inside}[{name!r}]" if inside else name
        if one == other:
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            result += _differences(one, other, label)[:1]  # The first says enough.
        elif _is_checksum(one) and _is_checksum(other):
            result.append(label)
        else:
            result.append(f"{label} ({one!r} there, {other!r} here)")
    return result


def _is_checksum(value):
    return isinstance(value, str) and len(value) == 64
