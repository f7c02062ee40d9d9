"""Sparse training for Keras 3 on TensorFlow.

Names are loaded on first use. So `import tf_rigl` is fast, and `tf_rigl.distributions`
needs only NumPy.
"""

import importlib

import wrapt

from tf_rigl._base import old_names

__version__ = "0.1.0"

_HOME = {
    "MaskedLayer": "weights.masked_layer",
    "Report": "accounting",
    "SparseModel": "training.sparse_model",
    "compact": "compaction.compacting",
    "export_saved_model": "export.saved_model",
    "export_tflite": "export.tflite",
    "plan": "accounting",
    "report": "accounting",
    "sparsify": "convert",
    "strip": "convert",
    "train_flops": "accounting",
    "training_step": "training.by_hand",
}
_MODULES = (
    "analysis",
    "block_sparse",
    "callbacks",
    "data",
    "distributions",
    "export",
    "factorized",
    "interop",
    "lottery",
    "maskable",
    "methods",
    "models",
    "patterns",
    "schedules",
    "wann",
)
_OPTIONAL = ("plots",)  # Needs matplotlib; `import *` must work without it.
_WITHOUT_KERAS = ("data", "distributions", "schedules")

__all__ = [*_HOME, *_MODULES]

old_names.install()


def __getattr__(name):
    if name in __all__ and name not in _WITHOUT_KERAS:
        importlib.import_module("tf_rigl._base.backend")
    if name in _HOME:
        value = getattr(importlib.import_module(f"tf_rigl.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    module = f"tf_rigl.{name}"
    if name in _MODULES or name in _OPTIONAL or module in old_names.MOVED:
        return importlib.import_module(module)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__, *_OPTIONAL})


@wrapt.when_imported("keras")
def _register(keras):
    """Registers our classes when Keras is imported, so that `load_model` finds them."""
    if keras.backend.backend() == "tensorflow":
        # They import all rooms that have classes in files.
        for room in ("convert", "factorized", "lottery"):
            importlib.import_module(f"tf_rigl.{room}")
