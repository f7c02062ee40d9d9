"""How masks begin and change: one small class for each method."""

from tf_rigl._arguments import unknown_name
from tf_rigl.methods.base import Method
from tf_rigl.methods.rigl import RigL
from tf_rigl.methods.set import SET
from tf_rigl.methods.static import Static

__all__ = ["SET", "Method", "RigL", "Static", "get"]

NAMES = {"static": Static, "set": SET, "rigl": RigL}


def get(identifier) -> Method:
    """Looks up a method.

    Args:
        identifier: "static", "set", "rigl", or a `Method`.

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
