"""Model files of the command line: loads them, and says in one line why it cannot."""

import importlib
import importlib.util
import inspect
import json
import os
import re
import sys
import zipfile

_UNKNOWN = re.compile(r"Could not locate (?:class|function) '([^']+)'")
# What Keras writes before a configuration that it prints whole.
_CONFIG = re.compile(r"\s*(?:Full (?:object )?config|config=\{)")
_LONGEST = 500  # Characters of an error of Keras.


def check_file(path):
    """Raises if there is no such file."""
    if os.path.isdir(path):
        inside = os.path.join(path, "model.keras")
        hint = f" Did you mean {inside!r}?" if os.path.isfile(inside) else ""
        raise ValueError(f"A .keras file is needed, not a folder.{hint} Received: {path!r}")
    if not os.path.isfile(path):
        raise ValueError(f"There is no such file. Received: {path!r}")


def check_imports(names):
    """Raises if there is no such module. Modules inside a package are not looked for yet."""
    for name in names or ():
        if _is_path(name):
            found = os.path.isfile(name)
        else:
            with _current_folder():
                found = name.isascii() and all(map(str.isidentifier, name.split(".")))
                found = found and importlib.util.find_spec(name.split(".")[0]) is not None
        if not found:
            raise ValueError(
                "--import must name a module, or a .py file, that defines classes of the model. "
                f"There is none of this name. Received: {name!r}"
            )


def load(path, imports=()):
    """Loads a model; Keras's safe mode stays on.

    Args:
        path: str, a .keras file.
        imports: list of str, modules and .py files that define classes of the model.

    Raises:
        ValueError: if a module cannot be imported, or Keras cannot load the file.
    """
    import keras

    import tf_rigl.convert.sparsified  # noqa: F401, so that Keras knows our classes

    known = {}
    for name in imports or ():
        known |= _definitions(_imported(name))
    try:
        return keras.models.load_model(path, custom_objects=known)
    except Exception as error:  # A damaged file can make Keras raise anything.
        raise ValueError(f"Keras cannot load {path!r}: {_reason(path, str(error))}") from error


class _current_folder:
    """Lets modules of the current folder be imported, as `python` does but its scripts do not."""

    def __enter__(self):
        self._before = list(sys.path)
        sys.path.insert(0, os.getcwd())

    def __exit__(self, *_):
        sys.path[:] = self._before


def _is_path(name):
    return name.endswith(".py") or os.sep in name


def _imported(name):
    """Imports a module by its name, or by the path of its file."""
    try:
        with _current_folder():
            if not _is_path(name):
                return importlib.import_module(name)
            stem = os.path.splitext(os.path.basename(name))[0]
            spec = importlib.util.spec_from_file_location(stem, name)
            module = importlib.util.module_from_spec(spec)
            sys.modules[stem] = module
            spec.loader.exec_module(module)
            return module
    except Exception as error:  # Any error of the user's module.
        raise ValueError(
            f"--import cannot import {name!r}: {type(error).__name__}: {error}"
        ) from error


def _definitions(module):
    """Returns the classes and functions that a module defines: some may not be registered."""
    return {
        name: value
        for name, value in vars(module).items()
        if (isinstance(value, type) or inspect.isfunction(value))
        and getattr(value, "__module__", None) == module.__name__
    }


def _reason(path, text):
    """Returns the reason of an error of Keras, without the configuration that it prints."""
    unknown = _UNKNOWN.findall(text)
    if unknown:
        where = _module_of(path, unknown[-1])
        defined = f", which the module {where!r} defines" if where else ""
        return (
            f"it holds {unknown[-1]!r}{defined}, and Keras does not know it. Pass the module, or "
            f"the .py file, that defines it: --import {where or 'MODULE'}"
        )
    last = text.rpartition("Exception encountered: ")[2]
    short = _CONFIG.split(last, maxsplit=1)[0].strip() or _CONFIG.split(text, maxsplit=1)[0]
    return short if len(short) <= _LONGEST else f"{short[:_LONGEST]} ..."


def _module_of(path, name):
    """Returns the module that a file names for a class, or None."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = _find(json.loads(archive.read("config.json")), name)
    except (OSError, ValueError, KeyError, RecursionError, zipfile.BadZipFile):
        return None
    return found if isinstance(found, str) and found not in ("", "__main__", "builtins") else None


def _find(config, name):
    """Returns the module of the first object of this class in a configuration, or None."""
    if isinstance(config, dict):
        if config.get("class_name") == name or config.get("config") == name:
            return config.get("module") or str(config.get("registered_name")).partition(">")[0]
        config = list(config.values())
    if not isinstance(config, list):
        return None
    found = (_find(each, name) for each in config)
    return next((module for module in found if module), None)
