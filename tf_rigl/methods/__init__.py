"""How masks start and change: one small class for each method.

`tf_rigl._base.registry.METHODS` lists the methods; their classes are loaded from there.
"""

from typing import TYPE_CHECKING

from tf_rigl._base import (
    backend,  # noqa: F401, first: checks that Keras runs on TensorFlow
    registry,
)
from tf_rigl._base.arguments import unknown_name
from tf_rigl.methods.base import Method
from tf_rigl.schedules import ConstantSparsity, PolynomialDecay

if TYPE_CHECKING:  # For editors and type checkers, which do not see what is loaded below.
    from tf_rigl.methods.acdc import ACDC as ACDC
    from tf_rigl.methods.edge_popup import EdgePopup as EdgePopup
    from tf_rigl.methods.granet import GraNet as GraNet
    from tf_rigl.methods.grasp import GraSP as GraSP
    from tf_rigl.methods.magnitude import MagnitudePruning as MagnitudePruning
    from tf_rigl.methods.mest import MEST as MEST
    from tf_rigl.methods.rigl import RigL as RigL
    from tf_rigl.methods.set import SET as SET
    from tf_rigl.methods.snfs import SNFS as SNFS
    from tf_rigl.methods.snip import SNIP as SNIP
    from tf_rigl.methods.srigl import SRigL as SRigL
    from tf_rigl.methods.static import Static as Static
    from tf_rigl.methods.ste import SRSTE as SRSTE
    from tf_rigl.methods.ste import STE as STE

# All classes are loaded at once: Keras must know them to load a saved model.
NAMES = {name: entry.load() for name, entry in registry.METHODS.items()}
_CLASSES = {
    cls.__name__: cls for cls in (*NAMES.values(), ConstantSparsity, Method, PolynomialDecay)
}
globals().update(_CLASSES)

__all__ = [*sorted(_CLASSES), "get"]


def get(identifier) -> Method:
    """Looks up a method.

    Args:
        identifier: str, such as "rigl", "set" or "magnitude" (`docs/extending.md` lists all); or a
            `Method`, which is returned as it is.

    Returns:
        The `Method`. A name gives a new one with default arguments.

    Raises:
        ValueError: if the name is unknown. The message offers the closest ones.

    Example:

    >>> get("static")
    Static()
    """
    if isinstance(identifier, Method):
        return identifier
    if isinstance(identifier, str) and identifier in NAMES:
        return NAMES[identifier]()
    others = registry.other_words(registry.METHODS)
    raise unknown_name("method", identifier, NAMES, others=others)
