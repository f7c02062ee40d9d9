"""Sparse training for Keras 3 on TensorFlow.

Names are loaded on first use. So `import tf_rigl` is fast, and `tf_rigl.distributions`
needs only NumPy.
"""

import importlib
from typing import TYPE_CHECKING

import wrapt

from tf_rigl._base import old_names

if TYPE_CHECKING:  # For editors and type checkers: at run time names are loaded on first use.
    from tf_rigl import analysis as analysis
    from tf_rigl import block_sparse as block_sparse
    from tf_rigl import callbacks as callbacks
    from tf_rigl import distributions as distributions
    from tf_rigl import export as export
    from tf_rigl import factorized as factorized
    from tf_rigl import lottery as lottery
    from tf_rigl import methods as methods
    from tf_rigl import patterns as patterns
    from tf_rigl import schedules as schedules
    from tf_rigl import wann as wann
    from tf_rigl.accounting import Report as Report
    from tf_rigl.accounting import plan as plan
    from tf_rigl.accounting import report as report
    from tf_rigl.accounting import train_flops as train_flops
    from tf_rigl.compaction.compacting import compact as compact
    from tf_rigl.convert import sparsify as sparsify
    from tf_rigl.convert import strip as strip
    from tf_rigl.convert import tfmot as interop  # noqa: F401
    from tf_rigl.experiments import data as data
    from tf_rigl.experiments import models as models
    from tf_rigl.experiments import plots as plots
    from tf_rigl.export.saved_model import export_saved_model as export_saved_model
    from tf_rigl.export.tflite import export_tflite as export_tflite
    from tf_rigl.training.by_hand import training_step as training_step
    from tf_rigl.training.sparse_model import SparseModel as SparseModel
    from tf_rigl.weights import maskable as maskable
    from tf_rigl.weights.masked_layer import MaskedLayer as MaskedLayer

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
