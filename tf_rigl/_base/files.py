"""Writes files and folders whole or not at all."""

import contextlib
import json
import os
import pathlib
import re
import secrets
import shutil
import stat

from tf_rigl._base.arguments import check_path


def to_json(result) -> str:
    """Returns a result as JSON, with each list of numbers on one line.

    Example:

    >>> print(to_json({"counts": [1, 2]}), end="")
    {
     "counts": [1, 2]
    }
    """
    text = json.dumps(result, indent=1)
    # JSON strings contain no line breaks, so this finds only lists.
    lists = re.compile(r"\[\n[-+\d.,\seE]*\]")
    return lists.sub(lambda found: f"[{' '.join(found[0][1:-1].split())}]", text) + "\n"


@contextlib.contextmanager
def beside(path):
    """Yields a temporary path; the file written there is moved to `path` when it is complete.

    A new file has the mode that the umask asks for; one that replaces another keeps its mode. If
    `path` is a symbolic link, the file that it points to is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    place = pathlib.Path(os.path.realpath(path)) if path.is_symlink() else path
    weights = ".weights.h5"  # Keras wants this ending.
    scratch = _new_file(place.parent, weights if path.name.endswith(weights) else path.suffix)
    try:
        mode = stat.S_IMODE((place if place.exists() else scratch).stat().st_mode)
        yield scratch
        os.chmod(scratch, mode)
        _sync(scratch)  # Or a crash of the machine could leave an empty file in its place.
        os.replace(scratch, place)
        _sync(place.parent)
    except BaseException:
        os.unlink(scratch)
        raise


def _new_file(folder, suffix):
    """Makes an empty file with a new name, whose mode follows the umask."""
    while True:
        path = folder / f".{secrets.token_hex(8)}{suffix}"
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            return path


def sync_tree(folder):
    """Waits until a folder is on disk, with all that is in it."""
    for path in (*pathlib.Path(folder).rglob("*"), folder):
        _sync(path)


def _sync(path):
    """Waits until a file, or the list of a folder's files, is on disk."""
    with contextlib.suppress(OSError):  # Some systems and file systems cannot.
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def beside_local(path, wanted=True):
    """Like `beside`; yields the path itself if it is not local, or if `wanted` is False."""
    if not wanted or "://" in str(path):
        yield path
        return
    with beside(pathlib.Path(path)) as scratch:
        yield scratch


def write_text(path, text):
    """Writes a text file, whole or not at all."""
    with beside(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def check_place(path) -> pathlib.Path:
    """Checks a path to write to, and returns it as a `pathlib.Path`.

    Raises:
        ValueError: if `path` is not a path, or its folder does not exist or is not writable.
    """
    path = check_path("path", path)
    if not path.parent.is_dir():
        raise ValueError(f"The folder of `path` does not exist. Received: path={str(path)!r}")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"The folder of `path` cannot be written. Received: path={str(path)!r}")
    return path


# Name of a file -> keys that it has in a folder of `write_run`.
RUN = {"result.json": ("settings", "accuracy")}


def check_folder(folder, marks=RUN) -> pathlib.Path:
    """Raises if results cannot be written to a folder. To be called before training.

    Args:
        folder: str or path. It may be absent, empty, or that of an earlier run.
        marks: dict of names of files, and of folders of such files, to the keys that they hold.
            An earlier run has at least one of them.

    Returns:
        The path.
    """
    folder = check_path("folder", folder).resolve()
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not place.is_dir():
        raise ValueError(f"{str(place)!r} is a file. Received: output folder {str(folder)!r}")
    if not os.access(place, os.W_OK):
        raise ValueError(f"The output folder cannot be written. Received: {str(folder)!r}")
    if not folder.is_dir() or any(_is_ours(folder / name, keys) for name, keys in marks.items()):
        return folder
    if any(path.name not in marks or not _is_empty(path) for path in folder.iterdir()):
        raise ValueError(
            "The output folder holds something other than an earlier run (it has no "
            f"{' or '.join(marks)} of one), so it is left alone. Pass another folder. "
            f"Received: {str(folder)!r}"
        )
    return folder


def _is_ours(path, keys):
    """Whether an earlier run wrote this file, or a file in this folder."""
    if path.is_dir():
        return any(_is_ours(inner, keys) for inner in path.glob("*.json") if inner.is_file())
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError):
        return False
    return isinstance(content, dict) and set(keys) <= set(content)


def _is_empty(path):
    """Whether a folder holds nothing but claims: no run has finished there yet."""
    names = [inner.name for inner in path.iterdir()] if path.is_dir() else ["a file"]
    return all(name.startswith(".") or name.endswith(".running") for name in names)


def write_run(folder, model, result, draw=None, csv=None):
    """Writes a run folder whole or not at all.

    Args:
        folder: str or path; an earlier run there is replaced.
        model: the trained `keras.Model`, written as `model.keras`.
        result: dict, written as `result.json`.
        draw: function of `(result, path)` that writes a picture, or None.
        csv: str, the text that `tf_rigl.callbacks.SparsityLogger` has written, or None.
    """
    folder = check_folder(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = folder.parent / f".{folder.name}-{secrets.token_hex(8)}"
    scratch.mkdir()
    try:
        model.save(scratch / "model.keras")
        (scratch / "result.json").write_text(to_json(result))
        if draw is not None:
            draw(result, scratch / "masks.png")
        if csv is not None:
            (scratch / "sparsity.csv").write_text(csv, encoding="utf-8")
        written = set(os.listdir(scratch))
        if not folder.exists():
            sync_tree(scratch)
            scratch.rename(folder)
            return
        # It may be a current folder, so files are copied one by one; the mark of a run comes last.
        for name in sorted(written, key="result.json".__eq__):
            with beside(folder / name) as place:
                shutil.copyfile(scratch / name, place)
        for name in {"masks.png", "sparsity.csv"} - written:
            (folder / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
