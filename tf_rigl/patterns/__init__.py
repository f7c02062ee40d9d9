"""The shape of sparsity: which entries of a weight are kept or dropped together.

A pattern turns scores (a tensor of the weight's shape) and a count into a mask. Methods and the
training step use nothing else of it. `tf_rigl._base.registry.PATTERNS` lists the patterns; their
classes are loaded from there.
"""

from typing import TYPE_CHECKING

from tf_rigl._base import (
    backend,  # noqa: F401, first: checks that Keras runs on TensorFlow
    registry,
)
from tf_rigl._base.arguments import unknown_name
from tf_rigl.patterns.base import Pattern

if TYPE_CHECKING:  # For editors and type checkers, which do not see what is loaded below.
    from tf_rigl.patterns.block import Block as Block
    from tf_rigl.patterns.compact import Compact as Compact
    from tf_rigl.patterns.fan_in import ConstantFanIn as ConstantFanIn
    from tf_rigl.patterns.litert import LiteRT as LiteRT
    from tf_rigl.patterns.nm import NM as NM
    from tf_rigl.patterns.unstructured import Unstructured as Unstructured

# All classes are loaded at once: Keras must know them to load a saved model.
_CLASSES = {"Pattern": Pattern, **registry.load_all(registry.PATTERNS)}
globals().update(_CLASSES)

__all__ = [*sorted(_CLASSES), "get"]


def get(identifier) -> Pattern:
    """Looks up a pattern.

    Args:
        identifier: str, "unstructured", "litert", "block_16x1" (blocks of 16 inputs by 1 output;
            any sizes), "constant_fan_in_32x32" (such blocks, the same number in each column),
            "channels_1x32" (blocks over all positions of a convolution's kernel), "compact", or
            "2:4" (any n:m); or a `Pattern`, which is returned as it is.

    Returns:
        The `Pattern`.

    Raises:
        ValueError: if the name is unknown, or a number in it is out of range. The message
            offers the closest names.

    Example:

    >>> get("block_16x1")
    Block(rows=16, cols=1, score='sum')
    """
    if isinstance(identifier, Pattern):
        return identifier
    found = registry.find(registry.PATTERNS, identifier) if isinstance(identifier, str) else None
    if found:
        entry, numbers = found
        try:
            return entry.load()(*numbers, **entry.options)
        except ValueError as error:
            raise _wrong_numbers(identifier, entry, numbers, error) from error
    sized = [repr(name) for name, entry in registry.PATTERNS.items() if entry.examples]
    names, others = (
        read(registry.PATTERNS) for read in (registry.example_names, registry.other_words)
    )
    unknown = unknown_name("pattern", identifier, names, others=others)
    raise ValueError(f"{unknown} (Any sizes work in {', '.join(sized)}.)")


def _wrong_numbers(name, entry, numbers, error):
    """The error for a name with a number that is out of range, such as "4:2"."""
    reason = str(error).partition(" Received:")[0].removeprefix("Argument ")
    turned = f"{numbers[1]}:{numbers[0]}"
    meant = entry.name == "NM" and 0 < numbers[1] < numbers[0]
    hint = f" Did you mean {turned!r}, at most {numbers[1]} of every {numbers[0]}?" if meant else ""
    return ValueError(
        f"Argument `pattern` has a number that is out of range: {reason}{hint} "
        f"Received: pattern={name!r}, which is {entry.name}{numbers}"
    )
