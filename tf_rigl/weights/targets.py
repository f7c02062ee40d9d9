"""The target sparsity and the pattern of each weight of a model."""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from tf_rigl import distributions
from tf_rigl._base import notices
from tf_rigl._base.arguments import check_sparsity, unknown_key
from tf_rigl.patterns.base import Pattern
from tf_rigl.weights import maskable
from tf_rigl.weights.sparse_weight import units_kept

_FAR = 1.25  # Kept entries, over those asked for, above which the density is far off.
_LITTLE = 0.6  # The share of the sparsity asked for below which that is worth a warning.


class Target(NamedTuple):
    """The target of one weight."""

    sparsity: float
    pattern: Pattern

    def kept(self, shape) -> float:
        """Returns the density that a weight of this shape gets: whole units are kept."""
        return units_kept(self.pattern, self.sparsity, shape) / self.pattern.units(shape)


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
        A dict of path to `Target`, for each weight that is neither excluded nor frozen. Frozen
        weights that `fixed` or a mapping names are in it too.

    Raises:
        ValueError: if a name matches no layer, if no maskable layer is left, or if the
            sparsity cannot be met.
    """
    if not found:
        raise ValueError(
            "The model has no maskable layer. `tf_rigl.maskable` lists the maskable layers; a "
            "custom layer names its weights with `get_prunable_weights()`. Kernels with LoRA or of "
            "integers cannot be masked: make the model sparse, train and strip it first."
        )
    kept = _without_excluded(found, exclude)
    if not kept:
        raise ValueError(
            "Argument `exclude` must leave at least one maskable layer. "
            f"Received: exclude={exclude!r}, maskable weights: {[m.path for m in found]}"
        )
    fixed = by_path("fixed", kept, fixed or {})
    is_mapping = isinstance(distribution, Mapping)
    named = by_path("distribution", kept, distribution) if is_mapping else {}
    kept = _without_frozen(kept, {**named, **fixed})
    shapes = {m.path: tuple(m.weight.shape) for m in kept}
    if is_mapping:
        # A layer that the mapping does not name stays dense.
        targets = dict.fromkeys(shapes, 0.0) | named | fixed
    else:
        first = [m.path for m in kept if m.unit == found[0].unit]
        targets = _distributed(shapes, sparsity, distribution, fixed, scope, first)
    asked = any(targets.values()) if is_mapping else sparsity > 0
    fitted = {m.path: fit(pattern, m) for m in kept}
    names = sorted({str(each) for path, each in fitted.items() if targets[path]})
    if scope == "global" and len(names) > 1:
        raise ValueError(
            "Argument `pattern` must be the same in all weights with `scope='global'`, which "
            f"compares the scores of all units. Received: pattern='{pattern}', which becomes "
            f"{names} in these weights"
        )
    units = {path: fitted[path].units(shape) for path, shape in shapes.items()}
    if scope == "global":
        targets = _rounded_together(targets, units)
    zeros = [distributions.zeros(targets[path], units[path]) for path in shapes]
    covered = _covered(shapes, targets, fitted, units)
    if asked and not any(zeros):
        raise ValueError(
            f"The sparsity cannot be met: no layer would get a single zero.{covered} Received: "
            f"sparsity={sparsity}, distribution={distribution!r}, pattern='{pattern}', "
            f"maskable weights: {shapes}"
        )
    if covered:
        notices.warn(f"These weights stay dense.{covered}")
    advice = (
        "Distributions make small layers less sparse: pass `distribution='uniform'` or "
        "'uniform_all', or name the layer in `exclude` (dense) or `fixed`."
    )
    for path, target in targets.items():
        check_sparsity(f"distribution[{path!r}]", target)
        check_allowed(fitted[path], target, path, advice)
    return {path: Target(float(target), fitted[path]) for path, target in targets.items()}


def starts(found, resolved, initial, *, sparsity, distribution, **recipe) -> dict[str, float]:
    """Decides how sparse each weight is when training begins, if not as sparse as its target.

    Args:
        found, sparsity, distribution, **recipe: as for `resolve`.
        resolved: the result of `resolve`.
        initial: float, the overall sparsity to begin at, or None for the targets.

    Returns:
        A dict of path to sparsity; an empty one if weights begin at their targets.

    Raises:
        ValueError: if the initial sparsity is above the target.
    """
    if initial is None:
        return {}
    entries = {m.path: math.prod(m.weight.shape) for m in found if m.path in resolved}
    zeros = sum(entries[path] * target.sparsity for path, target in resolved.items())
    end = zeros / sum(entries.values())
    if initial > end + 1e-6:
        raise ValueError(
            f"Argument `initial_sparsity` must be at most the target sparsity, {end:.4g}. "
            f"Received: initial_sparsity={initial}"
        )
    if isinstance(distribution, Mapping):
        part = initial / end if end else 0.0
        return {path: part * target.sparsity for path, target in resolved.items()}
    at_first = resolve(found, sparsity=initial, distribution=distribution, **recipe)
    return {path: target.sparsity for path, target in at_first.items()}


def warn_of_rounding(resolved, shapes):
    """Warns if whole units of the patterns keep many more entries than were asked for.

    Args:
        resolved: the result of `resolve`.
        shapes: dict of path to the shape of the weight.
    """
    if all(str(target.pattern) == "unstructured" for target in resolved.values()):
        return
    densities = {
        path: (math.prod(shapes[path]), 1 - target.sparsity, target.kept(shapes[path]))
        for path, target in resolved.items()
    }
    if text := off_density(densities, "blocks are large for these layers"):
        notices.warn(text)


def warn_of_first_layer(resolved, shapes, recipe):
    """Warns if the dense first layer of "uniform" has so many weights that little is left.

    Args:
        resolved, shapes: as for `warn_of_rounding`.
        recipe: dict of the arguments of `resolve`.
    """
    asked = recipe["sparsity"]
    if recipe["distribution"] != "uniform" or recipe.get("fixed"):
        return
    entries = {path: math.prod(shapes[path]) for path in resolved}
    zeros = sum(entries[path] * target.sparsity for path, target in resolved.items())
    reached = zeros / sum(entries.values())
    if reached < _LITTLE * asked:
        notices.warn(
            f"The sparsity is {reached:.3g} in place of {asked:g}: with `distribution='uniform'` "
            "the first layer stays dense, and here it has most of the weights. Pass 'erk' or "
            "'uniform_all' to have it sparse too."
        )


def off_density(densities, reason, far=()):
    """Returns a warning if the density is far from the requested one, or None.

    Args:
        densities: dict of path to the weight's entries, the density asked for, and the one kept.
        reason: str, why they differ.
        far: paths that are worth a warning by themselves.
    """
    asked = sum(entries * asked for entries, asked, _ in densities.values())
    kept = sum(entries * kept for entries, _, kept in densities.values())
    if not far and kept <= _FAR * asked:
        return None
    far = far or [path for path, (_, asked, kept) in densities.items() if kept > _FAR * asked]
    listed = ", ".join(f"{p} {densities[p][2]:.3g} for {densities[p][1]:.3g}" for p in far)
    return (
        f"The density differs from the requested one, because {reason}: {listed}. All weights "
        f"together keep {kept / asked:.3g} times the requested number of entries. Smaller blocks "
        "come closer."
    )


def _distributed(shapes, sparsity, distribution, fixed, scope, first):
    """Returns the sparsity of each weight by a distribution, a dict by path.

    Args:
        shapes: dict of path to shape, in model order.
        sparsity, distribution, scope: as in `resolve`.
        fixed: dict of path to sparsity.
        first: paths of the weights of the first layer: recurrent and attention layers have several.
    """
    if distribution == "uniform":
        fixed = dict.fromkeys(first, 0.0) | fixed
        return distributions.uniform(shapes, sparsity, fixed=fixed, first_layer_dense=False)
    if scope == "global":
        if any(fixed.values()):
            raise ValueError(
                "Argument `fixed` must be 0 (dense) with `scope='global'`, where the scores of "
                f"all weights decide the sparsities. Received: fixed={fixed}"
            )
        return dict.fromkeys(shapes, sparsity) | fixed
    arguments = {"fixed": fixed} if fixed else {}
    targets = distributions.get(distribution)(shapes, sparsity, **arguments)
    if not isinstance(targets, Mapping) or set(targets) != set(shapes):
        raise ValueError(
            "Argument `distribution` must return a sparsity for each of "
            f"{list(shapes)}. Received: {targets!r}"
        )
    return targets


def _rounded_together(targets, units):
    """Returns sparsities that leave the number of units that the overall sparsity leaves.

    Args:
        targets: dict of path to sparsity.
        units: dict of path to the number of units of the weight.
    """
    zeros = distributions.zeros_together(list(targets.values()), [units[p] for p in targets])
    return {
        path: target if number == distributions.zeros(target, units[path]) else number / units[path]
        for (path, target), number in zip(targets.items(), zeros, strict=True)
    }


def _covered(shapes, targets, fitted, units):
    """Returns a sentence, after a space, on weights that one unit of the pattern covers.

    Args:
        shapes, targets, fitted, units: dicts by path.

    Returns:
        A str; "" if there are no such weights.
    """
    found = [p for p, s in shapes.items() if targets[p] and units[p] == fitted[p].step(s)]
    found = [path for path in found if str(fitted[path]) != "unstructured"]
    if not found:
        return ""
    listed = ", ".join(f"{path!r} of shape {shapes[path]}" for path in found)
    return (
        f" The pattern '{fitted[found[0]]}' is too large for {listed}: a single block covers all "
        "inputs. Pass smaller blocks, or name these layers in `exclude`."
    )


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
    """Returns the names that match a weight: of its layers, their paths, and attributes."""
    layers = maskable.layers
    paths = ["/".join(layers[: n + 1]) for n in range(len(layers))]
    return [*layers, *paths, *maskable.attributes, maskable.path]


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


def _without_frozen(kept, asked):
    """Returns the weights that are trained, and the frozen ones that were asked for by name."""
    trained = [m for m in kept if not m.is_frozen or m.path in asked]
    if not trained:
        raise ValueError(
            "Argument `model` must have a maskable weight that is not frozen: weights with "
            "`trainable=False` are left as they are. Unfreeze the layers, or name them in `fixed`. "
            f"Received: a model whose maskable weights are all frozen: {[m.path for m in kept]}"
        )
    return trained


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
            raise unknown_key(argument, mapping, name, names)
        for path in hits:
            targets[path] = check_sparsity(f"{argument}[{name!r}]", value)
    return targets
