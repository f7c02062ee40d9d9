"""Exports a trained model to files that are small and, if the runtime allows, fast."""

from tf_rigl._base import backend  # noqa: F401, first: registers all our classes
from tf_rigl.export.advice import Advice, LayerAdvice, advise
from tf_rigl.export.info import ExportInfo
from tf_rigl.export.saved_model import export_saved_model
from tf_rigl.export.tflite import export_tflite
from tf_rigl.export.timing import latency

__all__ = [
    "Advice",
    "ExportInfo",
    "LayerAdvice",
    "advise",
    "export_saved_model",
    "export_tflite",
    "latency",
]
