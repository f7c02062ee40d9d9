"""The shape of sparsity: which entries of a weight are kept or dropped together.

A pattern turns scores (a tensor of the weight's shape) and a count into a mask. Methods and the
training step use nothing else of it. `tf_rigl._base.registry.PATTERNS` lists the patterns; their
classes are loaded from there.
"""

from tf_rigl._base import (
    backend,  # noqa: F401, first: checks that Keras runs on TensorFlow
    registry,
)
from tf_rigl._base.arguments import unknown_name
from tf_rigl.patterns.base import Pattern

# All classes are loaded at once: Keras must know them to load a saved model.
_CLASSES = {"Pattern": Pattern, **registry.load_all(registry.PATTERNS)}
globals().update(_CLASSES)

__all__ = [*sorted(_CLASSES), "get"]


def get(identifier) -> Pattern:
    """Looks up a pattern.

    Args:
        identifier: str, "unstructured", "litert", "block_16x1" (blocks of 16 inputs by 1 output;
            any sizes), "constant_fan_in_32x32" (such blocks, the same number in each column),
            or "2:4" (any n:m); or a `Pattern`, which is returned as it is.

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
        return entry.load()(*numbers, **entry.options)
    sized = [repr(name) for name, entry in registry.PATTERNS.items() if entry.examples]
    error = unknown_name("pattern", identifier, registry.example_names(registry.PATTERNS))
    raise ValueError(f"{error} (Any sizes work in {', '.join(sized)}.)")
