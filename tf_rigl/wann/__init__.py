"""Weight-agnostic networks: a search for graphs that work with any shared weight."""

from tf_rigl._base import backend  # noqa: F401, first: registers our Keras classes
from tf_rigl.wann.control import Control
from tf_rigl.wann.network import Network
from tf_rigl.wann.searching import Result, search
from tf_rigl.wann.tasks import Classification

__all__ = ["Classification", "Control", "Network", "Result", "search"]
