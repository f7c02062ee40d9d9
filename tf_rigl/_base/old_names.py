"""Old dotted names of modules: `import tf_rigl.masks` still finds what has moved.

A module that has moved is one object under both names. `STAY` holds the names that users are
meant to write; they stay. The names in `MOVED` warn, and go with version 0.2.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import warnings

STAY = {
    "tf_rigl.data": "tf_rigl.experiments.data",
    "tf_rigl.interop": "tf_rigl.convert.tfmot",
    "tf_rigl.maskable": "tf_rigl.weights.maskable",
    "tf_rigl.models": "tf_rigl.experiments.models",
    "tf_rigl.plots": "tf_rigl.experiments.plots",
}
MOVED = {
    "tf_rigl.block_sparse.tuning": "tf_rigl.accounting.tuning",
    "tf_rigl.cli": "tf_rigl.experiments.cli",
    "tf_rigl.compare": "tf_rigl.experiments.compare",
    "tf_rigl.copies": "tf_rigl.convert.copies",
    "tf_rigl.files": "tf_rigl._base.files",
    "tf_rigl.lottery.early_bird": "tf_rigl.channels.early_bird",
    "tf_rigl.lottery.experiment": "tf_rigl.experiments.tickets",
    "tf_rigl.lottery.removal": "tf_rigl.channels.removal",
    "tf_rigl.lottery.slimming": "tf_rigl.channels.slimming",
    "tf_rigl.masked_layer": "tf_rigl.weights.masked_layer",
    "tf_rigl.masks": "tf_rigl.weights.masks",
    "tf_rigl.optimizers": "tf_rigl.training.slots",
    "tf_rigl.run_store": "tf_rigl.experiments.store",
    "tf_rigl.seal": "tf_rigl.training.integrity",
    "tf_rigl.selection": "tf_rigl.patterns.selection",
    "tf_rigl.settings": "tf_rigl.experiments.settings",
    "tf_rigl.sparse_model": "tf_rigl.training.sparse_model",
    "tf_rigl.sparsified": "tf_rigl.convert.sparsified",
    "tf_rigl.specs": "tf_rigl.experiments.specs",
    "tf_rigl.targets": "tf_rigl.weights.targets",
}
# Module -> name -> the module that has it: names that a room shows, and a higher room makes.
_RUNS = ("InputConnections", "MaskHistory", "build", "run", "summary")
SHOWN = {
    "tf_rigl.block_sparse": {"tune": "tf_rigl.accounting.tuning"},
    "tf_rigl.experiments": dict.fromkeys(_RUNS, "tf_rigl.experiments.runs"),
}


def attribute(module, name):
    """Returns an attribute that a module only shows, for its `__getattr__`.

    It is a name that a higher room makes, or a module that has moved.

    Args:
        module: str, the module's name.
        name: str, the attribute's name.

    Raises:
        AttributeError: if there is none.
    """
    home = SHOWN.get(module, {}).get(name)
    if home is not None:
        return getattr(importlib.import_module(home), name)
    if f"{module}.{name}" in MOVED:
        return importlib.import_module(f"{module}.{name}")
    raise AttributeError(f"module {module!r} has no attribute {name!r}")


class _Loader(importlib.abc.Loader):
    """Loads a module under its old name: the one that the new name has."""

    def __init__(self, new):
        self._new = new
        self._spec = None

    def create_module(self, spec):
        module = importlib.import_module(self._new)
        self._spec = module.__spec__
        return module

    def exec_module(self, module):
        module.__spec__ = self._spec  # The import system has just put the old name's there.

    def get_code(self, name):
        """The code, for `python -m` with the old name."""
        del name
        return importlib.util.find_spec(self._new).loader.get_code(self._new)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds modules under their old names."""

    def find_spec(self, fullname, path=None, target=None):
        del path, target
        new = STAY.get(fullname) or MOVED.get(fullname)
        if new is None:
            return None
        if fullname in MOVED:
            warnings.warn(
                f"`{fullname}` is now `{new}`; the old name goes with version 0.2.",
                DeprecationWarning,
                stacklevel=2,
            )
        return importlib.machinery.ModuleSpec(fullname, _Loader(new))


def install():
    """Lets Python find modules under their old names."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
