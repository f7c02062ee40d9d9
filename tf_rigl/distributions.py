"""Distributions: how sparse each layer is, computed from kernel shapes with NumPy alone.

Each function takes the kernel shapes in model order and the overall sparsity, and returns the
sparsity of each layer. Layer sparsities do not change during training.
`tf_rigl._base.registry.DISTRIBUTIONS` lists their names.

Reference:

- [Rigging the Lottery](https://arxiv.org/abs/1911.11134), section 3, "Sparsity
  distribution"; Erdős–Rényi after [SET](https://arxiv.org/abs/1707.04780).
"""

import math
import numbers
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tf_rigl._base import registry
from tf_rigl._base.arguments import check_sparsity, unknown_key, unknown_name
from tf_rigl._base.rounding import floor_near, floor_product

Shapes = Mapping[str, Sequence[int]]
NAMES = tuple(registry.DISTRIBUTIONS)
_ELSE = "a function, or in `tf_rigl.sparsify` a dict of layer name to sparsity"


def uniform(
    shapes: Shapes,
    sparsity: float,
    *,
    fixed: Mapping[str, float] | None = None,
    first_layer_dense: bool = True,
) -> dict[str, float]:
    """Gives every layer the same sparsity, except the first one, which stays dense.

    Args:
        shapes: mapping of layer name to kernel shape (a sequence of int, at least one axis), in
            model order.
        sparsity: float in [0, 1), the fraction of zeros in each sparse layer.
        fixed: mapping of layer name to sparsity, for layers whose sparsity is given.
        first_layer_dense: bool, whether the first layer stays dense, as in the paper. If `fixed`
            names the first layer, `fixed` decides.

    Returns:
        A dict of layer name to sparsity, a float in [0, 1).

    Raises:
        ValueError: if a sparsity is outside [0, 1), a shape has no axis or an empty one, or
            `fixed` names a layer that is not in `shapes`.

    Example:

    >>> uniform({"a": (784, 300), "b": (300, 10)}, 0.9)
    {'a': 0.0, 'b': 0.9}
    """
    sparsity, fixed = check_arguments(shapes, sparsity, fixed)
    result = {name: fixed.get(name, sparsity) for name in shapes}
    first = next(iter(shapes), None)
    if first_layer_dense and first is not None and first not in fixed:
        result[first] = 0.0
    return result


def uniform_all(
    shapes: Shapes, sparsity: float, *, fixed: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Gives every layer the same sparsity, including the first one.

    Arguments, result and errors are those of `uniform`.

    Example:

    >>> uniform_all({"a": (784, 300), "b": (300, 10)}, 0.9)
    {'a': 0.9, 'b': 0.9}
    """
    return uniform(shapes, sparsity, fixed=fixed, first_layer_dense=False)


def erdos_renyi(
    shapes: Shapes, sparsity: float, *, fixed: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Sets densities by the number of channels (Erdős–Rényi).

    `density = factor * (n_in + n_out) / (n_in * n_out)`

    `n_in` and `n_out` are the sizes of the kernel's last two axes. One factor for all layers
    meets the overall sparsity. Layers with few channels become denser; the number of weights
    grows with the number of channels, not with its square. A layer whose density would exceed
    1 is dense, and the other layers become sparser instead.

    Args:
        shapes: mapping of layer name to kernel shape (a sequence of int, at least two axes), in
            model order.
        sparsity: float in [0, 1), the fraction of zeros over all layers not in `fixed`.
        fixed: mapping of layer name to sparsity, for layers whose sparsity is given. They do
            not count towards the overall sparsity.

    Returns:
        A dict of layer name to sparsity, a float in [0, 1).

    Raises:
        ValueError: as for `uniform`; if a shape has fewer than two axes; or if the overall
            sparsity cannot be met.

    Example:

    >>> s = erdos_renyi({"a": (100, 100), "b": (100, 300)}, 0.8)
    >>> {name: round(value, 3) for name, value in s.items()}
    {'a': 0.733, 'b': 0.822}

    Reference:

    - [SET](https://arxiv.org/abs/1707.04780), equation 1.
    """
    check_shapes(shapes, least=2)
    return balanced(shapes, sparsity, fixed, lambda shape: sum(shape[-2:]) / math.prod(shape[-2:]))


def erdos_renyi_kernel(
    shapes: Shapes, sparsity: float, *, fixed: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Sets densities by the number of channels and the kernel size (ERK).

    `density = factor * sum(shape) / prod(shape)`

    For the kernel of a 2-D convolution that is
    `factor * (w + h + n_in + n_out) / (w * h * n_in * n_out)`; for a matrix it is
    `erdos_renyi`. The factor is the same in all layers, as there.

    Args:
        shapes: mapping of layer name to kernel shape (a sequence of int, at least one axis), in
            model order.
        sparsity: float in [0, 1), the fraction of zeros over all layers not in `fixed`.
        fixed: mapping of layer name to sparsity, for layers whose sparsity is given. They do
            not count towards the overall sparsity.

    Returns:
        A dict of layer name to sparsity, a float in [0, 1).

    Raises:
        ValueError: as for `uniform`; or if the overall sparsity cannot be met.

    Example:

    >>> s = erdos_renyi_kernel({"a": (784, 300), "b": (300, 100), "c": (100, 10)}, 0.9)
    >>> {name: round(value, 3) for name, value in s.items()}
    {'a': 0.92, 'b': 0.77, 'c': 0.0}

    Reference:

    - [Rigging the Lottery](https://arxiv.org/abs/1911.11134), section 3, "Sparsity
      distribution".
    """
    return balanced(shapes, sparsity, fixed, lambda shape: sum(shape) / math.prod(shape))


def zeros(sparsity, entries):
    """Returns the number of zeros of a layer, `floor(sparsity * entries)`.

    A product that should be a whole number, but is a little less because of rounding, counts as
    that whole number.

    Args:
        sparsity: float or array, the fraction of zeros.
        entries: int or array, the number of entries (or blocks).

    Returns:
        The number of zeros, a float or an array of floats, by NumPy's broadcasting.

    Example:

    >>> int(zeros(0.29, 100)), 0.29 * 100
    (29, 28.999999999999996)
    """
    return floor_product(sparsity, entries)


def zeros_together(sparsities, entries) -> list[int]:
    """Returns the zeros of layers that share one number: `floor(sum(sparsity * entries))`.

    Rounding each layer by itself would keep up to one entry more in each. Here only the total is
    rounded: layers whose product was cut the most get one zero more. A layer never gets zeros
    alone.

    Args:
        sparsities: list of float, the fraction of zeros in each layer.
        entries: list of int, the number of entries (or blocks) of each layer.

    Example:

    >>> zeros_together([0.5, 0.5, 0.5], [3, 3, 3]), [int(zeros(0.5, 3))] * 3
    ([2, 1, 1], [1, 1, 1])
    """
    products = np.multiply(sparsities, entries)
    each = zeros(sparsities, entries).astype(int)
    missing = int(floor_near(products.sum(), np.sum(entries))) - each.sum()
    for place in np.argsort(each - products, kind="stable"):
        if missing > 0 and each[place] < min(products[place], entries[place] - 1):
            each[place], missing = each[place] + 1, missing - 1
    return each.tolist()


def get(identifier) -> Callable[..., dict[str, float]]:
    """Looks up a distribution.

    Args:
        identifier: str, "uniform", "uniform_all", "erdos_renyi" or "erk"; or a function with
            the signature of `erdos_renyi`.

    Returns:
        The function.

    Raises:
        ValueError: if the name is unknown. The message offers the closest ones.

    Example:

    >>> get("erk").__name__
    'erdos_renyi_kernel'
    """
    if callable(identifier) and not isinstance(identifier, type):
        return identifier
    if isinstance(identifier, str) and identifier in registry.DISTRIBUTIONS:
        return registry.DISTRIBUTIONS[identifier].load()
    others = registry.other_words(registry.DISTRIBUTIONS)
    raise unknown_name(
        "distribution", identifier, registry.DISTRIBUTIONS, or_object=_ELSE, others=others
    )


def check_arguments(shapes, sparsity, fixed):
    """Checks the arguments of a distribution. Every named one calls this first, or `balanced`.

    Args:
        shapes, sparsity, fixed: as in `uniform`.

    Returns:
        `sparsity` as a float, and `fixed` as a new dict of layer name to float.

    Raises:
        ValueError: as for `uniform`.

    Example:

    >>> check_arguments({"a": (784, 300)}, 0.9, {"a": 0})
    (0.9, {'a': 0.0})
    """
    sparsity = check_sparsity("sparsity", sparsity)
    check_shapes(shapes, least=1)
    if not isinstance(fixed, (Mapping, type(None))):
        raise ValueError(
            "Argument `fixed` must be a mapping of layer name to sparsity. "
            f"Received: fixed={fixed!r}"
        )
    fixed = dict(fixed or {})
    for name, value in fixed.items():
        if name not in shapes:
            raise unknown_key("fixed", fixed, name, shapes)
        fixed[name] = check_sparsity(f"fixed[{name!r}]", value)
    return sparsity, fixed


def check_shapes(shapes, least):
    """Raises if `shapes` is not a mapping to shapes of at least `least` axes."""
    if not isinstance(shapes, Mapping):
        raise ValueError(
            "Argument `shapes` must be a mapping of layer name to kernel shape. "
            f"Received: shapes={shapes!r}"
        )
    for name, shape in shapes.items():
        try:
            sizes = tuple(shape)
        except TypeError:
            sizes = (None,)
        if not all(isinstance(n, numbers.Integral) and n > 0 for n in sizes):
            raise ValueError(
                "Argument `shapes` must give every axis a size of at least 1, an integer. "
                f"Received: shapes[{name!r}]={shape!r}"
            )
        if len(sizes) < least:
            axes = "one axis" if least == 1 else "two axes"
            raise ValueError(
                f"Argument `shapes` must give every kernel at least {axes}. "
                f"Received: shapes[{name!r}]={sizes}"
            )


def balanced(shapes, sparsity, fixed, raw_density):
    """Scales raw densities by one factor that meets the overall sparsity.

    Not a distribution itself, but what `erdos_renyi` and `erdos_renyi_kernel` have in common.

    Args:
        shapes, sparsity, fixed: as in `erdos_renyi`.
        raw_density: function of a shape (a tuple of int) that returns a positive number;
            densities are proportional to it.

    Returns:
        A dict of layer name to sparsity, a float in [0, 1).

    Raises:
        ValueError: as for `erdos_renyi_kernel`.

    Example:

    >>> balanced({"a": (10, 10), "b": (10, 10)}, 0.5, None, lambda shape: 1.0)
    {'a': 0.5, 'b': 0.5}
    """
    sparsity, fixed = check_arguments(shapes, sparsity, fixed)
    names = [name for name in shapes if name not in fixed]
    raw = np.array([raw_density(tuple(shapes[name])) for name in names], np.float64)
    size = np.array([math.prod(shapes[name]) for name in names], np.float64)
    removed = zeros(sparsity, size)
    result = {name: fixed.get(name, 0.0) for name in shapes}
    if not removed.any():
        return result

    dense = np.zeros(len(names), bool)
    while not dense.all():
        budget = (size - removed)[~dense].sum() - removed[dense].sum()
        factor = budget / (raw * size)[~dense].sum()
        if factor < 0:
            break
        largest = raw[~dense].max()
        if factor * largest <= 1:
            density = np.where(dense, 1.0, factor * raw)
            return result | {n: float(1 - d) for n, d in zip(names, density, strict=True)}
        # All layers with the largest raw density become dense together.
        dense |= raw == largest
    raise ValueError(
        "The overall sparsity cannot be met: every layer would have to be dense. "
        f"Received: sparsity={sparsity}, fixed={fixed}, shapes={dict(shapes)}"
    )
