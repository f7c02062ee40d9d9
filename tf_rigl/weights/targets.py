"""The target sparsity and the pattern of each weight of a model."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from tf_rigl import distributions
from tf_rigl._base.arguments import check_sparsity, unknown_name
from tf_rigl.patterns.base import Pattern
from tf_rigl.weights import maskable


class Target(NamedTuple):
    """The target of one weight."""

    sparsity: float
    pattern: Pattern


def check_distribution(distribution):
    """Raises if `distribution` is neither a known name, a function nor a mapping."""
    if isinstance(distribution, Mapping):
        for name, value in distribution.items():
            check_sparsity(f"distribution[{name!r}]", value)
    else:
        distributions.get(distribution)


def check_fixed(fixed):
    """Raises if `fixed` is neither None nor a mapping of sparsities."""
    if fixed is None:
        return
    if not isinstance(fixed, Mapping):
        raise ValueError(
            "Argument `fixed` must be a mapping of layer name to sparsity. "
            f"Received: fixed={fixed!r}"
        )
    for name, value in fixed.items():
        check_sparsity(f"fixed[{name!r}]", value)


def check_exclude(exclude):
    """Raises if `exclude` is not a collection of strings."""
    if not isinstance(exclude, (list, tuple, set, frozenset)) or not all(
        isinstance(entry, str) for entry in exclude
    ):
        raise ValueError(
            "Argument `exclude` must be a list or tuple of layer names or regular expressions. "
            f"Received: exclude={exclude!r}"
        )


def resolve(
    found, *, sparsity, distribution, pattern, exclude, fixed=None, scope="layer"
) -> dict[str, Target]:
    """Decides which weights are masked, and how sparse each will be.

    Args:
        found: list of `tf_rigl.maskable.Maskable`, in model order.
        sparsity: float, over all weights that are not excluded.
        distribution: str, function or mapping; see `tf_rigl.sparsify`.
        pattern: `tf_rigl.patterns.Pattern`, fitted to each weight.
        exclude: layer names or regular expressions.
        fixed: mapping of layer name to the sparsity of that layer, or None.
        scope: str, "layer", or "global" if a method's scores decide the sparsities.

    Returns:
        A dict of path to `Target`, for each weight that is not excluded.

    Raises:
        ValueError: if a name matches no layer, if no maskable layer is left, or if the
            sparsity cannot be met.
    """
    if not found:
        raise ValueError(
            "The model has no maskable layer. `tf_rigl.maskable` lists the maskable layers; a "
            "custom layer names its weights with `get_prunable_weights()`."
        )
    kept = _without_excluded(found, exclude)
    if not kept:
        raise ValueError(
            "Argument `exclude` must leave at least one maskable layer. "
            f"Received: exclude={exclude!r}, maskable weights: {[m.path for m in found]}"
        )
    shapes = {m.path: tuple(m.weight.shape) for m in kept}
    fixed = by_path("fixed", kept, fixed or {})
    if isinstance(distribution, Mapping):
        # A layer that the mapping does not name stays dense.
        named = by_path("distribution", kept, distribution)
        targets = dict.fromkeys(shapes, 0.0) | named | fixed
    elif distribution == "uniform":
        # All weights of the first layer: recurrent and attention layers have several.
        first = {m.path: 0.0 for m in kept if m.owner == found[0].owner}
        targets = distributions.uniform(
            shapes, sparsity, fixed=first | fixed, first_layer_dense=False
        )
    elif scope == "global":
        if any(fixed.values()):
            raise ValueError(
                "Argument `fixed` must be 0 (dense) with `scope='global'`, where the scores of "
                f"all weights decide the sparsities. Received: fixed={fixed}"
            )
        targets = dict.fromkeys(shapes, sparsity) | fixed
    else:
        arguments = {"fixed": fixed} if fixed else {}
        targets = distributions.get(distribution)(shapes, sparsity, **arguments)
        if set(targets) != set(shapes):
            raise ValueError(
                "Argument `distribution` must return a sparsity for each of "
                f"{list(shapes)}. Received: {targets!r}"
            )
    asked = any(targets.values()) if isinstance(distribution, Mapping) else sparsity > 0
    fitted = {m.path: fit(pattern, m) for m in kept}
    names = sorted({str(each) for path, each in fitted.items() if targets[path]})
    if scope == "global" and len(names) > 1:
        raise ValueError(
            "Argument `pattern` must be the same in all weights with `scope='global'`, which "
            f"compares the scores of all units. Received: pattern='{pattern}', which becomes "
            f"{names} in these weights"
        )
    zeros = [distributions.zeros(targets[p], fitted[p].units(s)) for p, s in shapes.items()]
    if asked and not any(zeros):
        raise ValueError(
            "The sparsity cannot be met: no layer would get a single zero. Received: "
            f"sparsity={sparsity}, distribution={distribution!r}, pattern='{pattern}', "
            f"maskable weights: {shapes}"
        )
    advice = (
        "Distributions make small layers less sparse: pass `distribution='uniform'` or "
        "'uniform_all', or name the layer in `exclude` (dense) or `fixed`."
    )
    for path, target in targets.items():
        check_sparsity(f"distribution[{path!r}]", target)
        check_allowed(fitted[path], target, path, advice)
    return {path: Target(float(target), fitted[path]) for path, target in targets.items()}


def fit(pattern, found) -> Pattern:
    """Returns a pattern fitted to one `tf_rigl.maskable.Maskable`."""
    shape = tuple(found.weight.shape)
    return pattern.fitted(found.layer, shape, maskable.axes(found.layer, shape))


def check_allowed(pattern, sparsity, path, advice="Raise it."):
    """Raises if a sparsity is below the pattern's minimum; 0 (dense) is always allowed."""
    least = pattern.min_sparsity
    if 0 < sparsity < least - 1e-12:  # Allows rounding errors only: more is an entry too many.
        raise ValueError(
            f"Pattern '{pattern}' needs a sparsity of at least {least:.7g}, or 0 (dense), in each "
            f"weight; the sparsity of {path!r} would be {sparsity:.7g}. {advice}"
        )


def _names(maskable):
    """Returns the names that match a weight: its layers' names and paths, and its own path."""
    layers = maskable.layers
    paths = ["/".join(layers[: n + 1]) for n in range(len(layers))]
    return [*layers, *paths, maskable.path]


def _without_excluded(found, exclude):
    """Returns the maskable weights that no entry of `exclude` matches."""
    excluded = set()
    for entry in exclude:
        hits = {m.path for m in found if entry in _names(m)}
        if not hits:  # The entry is not a name, so it is a regular expression.
            try:
                expression = re.compile(entry)
            except re.error as error:
                raise ValueError(
                    "Argument `exclude` must hold layer names or regular expressions "
                    f"({error}). Received: {entry!r}"
                ) from error
            hits = {m.path for m in found if any(expression.search(n) for n in _names(m))}
        if not hits:
            raise ValueError(
                f"Argument `exclude`: {entry!r} matches no maskable layer. "
                f"Received: exclude={exclude!r}, maskable weights: {[m.path for m in found]}"
            )
        excluded |= hits
    return [m for m in found if m.path not in excluded]


def by_path(argument, kept, mapping):
    """Converts a mapping of layer names to sparsities into one of weight paths.

    Args:
        argument: str, the name of the argument, for messages.
        kept: list of `tf_rigl.maskable.Maskable`.
        mapping: mapping of layer name or path to sparsity.

    Returns:
        A dict of path to sparsity, with the named weights only.
    """
    targets = {}
    for name, value in mapping.items():
        hits = [m.path for m in kept if name in _names(m)]
        if not hits:
            names = {n for m in kept for n in _names(m)}
            raise unknown_name(argument, name, names, or_object=False)
        for path in hits:
            targets[path] = check_sparsity(f"{argument}[{name!r}]", value)
    return targets
