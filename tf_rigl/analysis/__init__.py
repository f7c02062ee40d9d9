"""The landscape of the loss: paths between sparse solutions."""

from tf_rigl._base import backend  # noqa: F401, first: registers our Keras classes
from tf_rigl.analysis.paths import Path, bezier, interpolate

__all__ = ["Path", "bezier", "interpolate"]
