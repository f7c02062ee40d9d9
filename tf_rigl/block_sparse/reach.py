"""How much of a model its block-sparse layers reach, and warnings if that is not what was asked."""

import math
from typing import NamedTuple

import keras

from tf_rigl._base import notices
from tf_rigl._base.keras_internals import nodes_of
from tf_rigl.weights import targets

_LITTLE = 0.5  # Multiplications left above which little of the model is reached.
_SHOWN = 3


class Part(NamedTuple):
    """A weight that may be stored as blocks."""

    path: str
    obstacle: str | None  # Why it is not stored as blocks; None if it is.
    entries: int  # Of the dense weight.
    positions: int  # How often a forward pass of an example uses each entry, about.
    asked: float  # The density asked for.
    kept: float  # The density that its mask has.

    @property
    def cost(self) -> int:
        """The multiplications of the dense weight."""
        return self.entries * self.positions


def positions(layer) -> int:
    """Returns how often a call of a layer uses each entry of its kernel, by its output's shape.

    Axes of free size, and layers that no graph calls, count once.
    """
    if isinstance(layer, keras.layers.Embedding):
        return 0  # Looking up rows is free.
    first = getattr(layer, "data_format", None) == "channels_first"
    shapes = [tuple(output.shape) for node in nodes_of(layer) for output in node.outputs]
    inner = [shape[2:] if first else shape[1:-1] for shape in shapes]
    return max((math.prod(size or 1 for size in shape) for shape in inner), default=1)


def warn(parts):
    """Warns if no weight is reached, if densities are far off, or if little is reached.

    Args:
        parts: list of `Part`.
    """
    if all(part.obstacle is not None for part in parts):
        reasons = ", ".join(f"{part.path} ({part.obstacle})" for part in parts)
        texts = [
            "No layer can store its kernel as blocks, so all layers compute as with "
            f"`compute='masked'`: {reasons}"
        ]
    else:
        texts = [_on_density(parts), _on_rest(parts)]
    for text in filter(None, texts):
        notices.warn(text)


def warn_of_single_blocks(paths):
    """Warns of weights whose columns have one block each, which starts from zeros when it moves."""
    if paths:
        shown = ", ".join(map(repr, paths[:_SHOWN])) + (", ..." if len(paths) > _SHOWN else "")
        notices.warn(
            f"Each column of blocks has a single block in {shown}: where an update moves it, all "
            "outputs of the column begin again from zeros, and units with ReLU may stay dead. Pass "
            "smaller blocks, or a method with `grow_initializer='glorot_normal'`."
        )


def _on_density(parts):
    """Returns a warning if columns of blocks cannot have the density asked for, or None."""
    far = [
        part.path
        for part in parts
        if part.obstacle is None and not part.asked / 2 <= part.kept <= 2 * part.asked
    ]
    densities = {part.path: (part.entries, part.asked, part.kept) for part in parts}
    return targets.off_density(densities, "columns have too few blocks", far)


def _on_rest(parts):
    """Returns a warning if most of the multiplications stay, though few were asked for, or None."""
    total = sum(part.cost for part in parts)
    left = sum(part.cost * (part.kept if part.obstacle is None else 1) for part in parts)
    asked = sum(part.cost * part.asked for part in parts)
    if left <= max(_LITTLE * total, 2 * asked):
        return None
    rest = [part for part in parts if part.obstacle is not None and part.asked < 1]
    if not rest:  # Blocks as large as their kernels: `_on_density` tells.
        return None
    rest = sorted(rest, key=lambda part: -part.cost)
    shown = ", ".join(f"{part.path} ({part.obstacle})" for part in rest[:_SHOWN])
    return (
        f"`compute='sparse'` reaches little of the model: about {left / total:.3g} of its "
        f"multiplications are left, {asked / total:.3g} were asked for. These weights are only "
        f"masked, and multiply their zeros: {shown}{', ...' if len(rest) > _SHOWN else ''}. "
        "`tf_rigl.report` shows all of them."
    )
