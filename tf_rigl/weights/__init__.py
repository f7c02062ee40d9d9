"""Which weights can be masked, how sparse each becomes, and the layers that hold the masks."""

from tf_rigl._base import backend  # noqa: F401, first: it registers our classes with Keras
