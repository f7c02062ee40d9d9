"""Writes files and folders whole or not at all."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import tempfile


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
    """Yields a temporary path; the file written there is moved to `path` when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = ".weights.h5"  # Keras wants this ending.
    suffix = weights if path.name.endswith(weights) else path.suffix
    handle, scratch = tempfile.mkstemp(prefix=".", suffix=suffix, dir=path.parent)
    os.close(handle)
    try:
        yield pathlib.Path(scratch)
        os.chmod(scratch, 0o644)
        os.replace(scratch, path)
    except BaseException:
        os.unlink(scratch)
        raise


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


def check_folder(folder, marks=("result.json",)) -> pathlib.Path:
    """Raises if results cannot be written to a folder. To be called before training.

    Args:
        folder: str or path. It may be absent, empty, or that of an earlier run.
        marks: names of files or folders; an earlier run has at least one of them.

    Returns:
        The path.
    """
    folder = pathlib.Path(folder).resolve()
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not place.is_dir():
        raise ValueError(f"{str(place)!r} is a file. Received: output folder {str(folder)!r}")
    if not os.access(place, os.W_OK):
        raise ValueError(f"The output folder cannot be written. Received: {str(folder)!r}")
    marked = any(_is_ours(folder / mark) for mark in marks)
    if folder.is_dir() and any(folder.iterdir()) and not marked:
        raise ValueError(
            "The output folder holds something other than an earlier run (it has no "
            f"{' or '.join(marks)} of one), so it is left alone. Received: {str(folder)!r}"
        )
    return folder


def _is_ours(path):
    """Whether an earlier run wrote this file or folder."""
    if path.suffix != ".json" or not path.exists():
        return path.is_dir()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError):
        return False
    return isinstance(content, dict) and bool({"settings", "rows"} & set(content))


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
    scratch = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        scratch.chmod(0o755)
        model.save(scratch / "model.keras")
        (scratch / "result.json").write_text(to_json(result))
        if draw is not None:
            draw(result, scratch / "masks.png")
        if csv is not None:
            (scratch / "sparsity.csv").write_text(csv, encoding="utf-8")
        written = set(os.listdir(scratch))
        if not folder.exists():
            scratch.rename(folder)
            return
        # It may be a current folder, so files are moved one by one; the mark of a run comes last.
        for name in sorted(written, key="result.json".__eq__):
            os.replace(scratch / name, folder / name)
        for name in {"masks.png", "sparsity.csv"} - written:
            (folder / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
