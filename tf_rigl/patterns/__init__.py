"""Which entries of a weight live and die together.

A pattern turns scores of a weight's shape and a count into a mask. Methods and the
training step know nothing else of it.
"""

import functools
import re

from tf_rigl._base import backend  # noqa: F401, first: Keras then knows all our classes
from tf_rigl._base.arguments import unknown_name
from tf_rigl.patterns.base import Pattern
from tf_rigl.patterns.block import Block
from tf_rigl.patterns.litert import LiteRT
from tf_rigl.patterns.nm import NM
from tf_rigl.patterns.unstructured import Unstructured

__all__ = ["NM", "Block", "LiteRT", "Pattern", "Unstructured", "get"]

# Expression -> the class, which is called with the numbers in the name.
_NAMES = {
    r"unstructured": Unstructured,
    r"litert": LiteRT,
    r"block_(\d+)x(\d+)": Block,
    r"constant_fan_in_(\d+)x(\d+)": functools.partial(Block, constant_fan_in=True),
    r"(\d+):(\d+)": NM,
}
_EXAMPLES = (
    "unstructured",
    "litert",
    "block_4x1",
    "block_16x1",
    "constant_fan_in_32x32",
    "2:4",
)


def get(identifier) -> Pattern:
    """Looks up a pattern.

    Args:
        identifier: "unstructured"; "block_16x1" or other blocks of rows by columns;
            "constant_fan_in_32x32", such blocks of which each column keeps as many; "2:4"
            or other n:m; "litert"; or a `Pattern`.

    Returns:
        The pattern.

    Raises:
        ValueError: if the name is unknown; the message offers the closest ones.

    Example:

    >>> get("block_16x1")
    Block(rows=16, cols=1, score='sum')
    """
    if isinstance(identifier, Pattern):
        return identifier
    for expression, cls in _NAMES.items() if isinstance(identifier, str) else ():
        found = re.fullmatch(expression, identifier)
        if found:
            return cls(*map(int, found.groups()))
    raise ValueError(
        f"{unknown_name('pattern', identifier, _EXAMPLES)} (Any sizes will do: "
        "'block_ROWSxCOLUMNS', such as 'block_64x64'.)"
    )
