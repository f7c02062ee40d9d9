"""How masks begin and change: one small class for each method."""

from tf_rigl._base import backend  # noqa: F401, first: Keras then knows all our classes
from tf_rigl._base.arguments import unknown_name
from tf_rigl.methods.base import Method
from tf_rigl.methods.edge_popup import EdgePopup
from tf_rigl.methods.magnitude import MagnitudePruning
from tf_rigl.methods.rigl import RigL
from tf_rigl.methods.set import SET
from tf_rigl.methods.snfs import SNFS
from tf_rigl.methods.snip import SNIP
from tf_rigl.methods.static import Static
from tf_rigl.schedules import ConstantSparsity, PolynomialDecay

__all__ = [
    "SET",
    "SNFS",
    "SNIP",
    "ConstantSparsity",
    "EdgePopup",
    "MagnitudePruning",
    "Method",
    "PolynomialDecay",
    "RigL",
    "Static",
    "get",
]

NAMES = {
    "static": Static,
    "snip": SNIP,
    "set": SET,
    "snfs": SNFS,
    "rigl": RigL,
    "magnitude": MagnitudePruning,
    "edge_popup": EdgePopup,
}


def get(identifier) -> Method:
    """Looks up a method.

    Args:
        identifier: "static", "snip", "set", "snfs", "rigl", "magnitude", "edge_popup", or a
            `Method`.

    Returns:
        The method.

    Raises:
        ValueError: if the name is unknown; the message offers the closest ones.

    Example:

    >>> get("static")
    Static()
    """
    if isinstance(identifier, Method):
        return identifier
    if isinstance(identifier, str) and identifier in NAMES:
        return NAMES[identifier]()
    raise unknown_name("method", identifier, NAMES)
