"""How sparse each layer is, computed from layer shapes alone (NumPy only).

Every function takes the shapes of the kernels in model order and the overall
sparsity, and returns the sparsity of each layer. Sparsities do not move between
layers during training.

Reference:

- [Rigging the Lottery](https://arxiv.org/abs/1911.11134), section 3, "Sparsity
  distribution"; Erdős–Rényi after [SET](https://arxiv.org/abs/1707.04780).
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tf_rigl._base.arguments import check_sparsity, unknown_name

Shapes = Mapping[str, Sequence[int]]


def uniform(
    shapes: Shapes,
    sparsity: float,
    *,
    fixed: Mapping[str, float] | None = None,
    first_layer_dense: bool = True,
) -> dict[str, float]:
    """The same sparsity in every layer, the first one dense.

    Args:
        shapes: mapping of layer name to Keras kernel shape, in model order.
        sparsity: float in [0, 1), the fraction of zeros in each layer.
        fixed: mapping of layer name to a sparsity to keep as given.
        first_layer_dense: whether the first layer has no zeros (the paper's
            convention). A first layer named in `fixed` keeps what is given there.

    Returns:
        A dict of layer name to sparsity.

    Raises:
        ValueError: if a sparsity is outside [0, 1), a shape has an empty axis, or
            `fixed` names a layer that `shapes` does not have.

    Example:

    >>> uniform({"a": (784, 300), "b": (300, 10)}, 0.9)
    {'a': 0.0, 'b': 0.9}
    """
    sparsity, fixed = _check(shapes, sparsity, fixed)
    result = {name: fixed.get(name, sparsity) for name in shapes}
    first = next(iter(shapes), None)
    if first_layer_dense and first is not None and first not in fixed:
        result[first] = 0.0
    return result


def uniform_all(
    shapes: Shapes, sparsity: float, *, fixed: Mapping[str, float] | None = None
) -> dict[str, float]:
    """The same sparsity in every layer, the first one included.

    Arguments, result and errors are those of `uniform`.

    Example:

    >>> uniform_all({"a": (784, 300), "b": (300, 10)}, 0.9)
    {'a': 0.9, 'b': 0.9}
    """
    return uniform(shapes, sparsity, fixed=fixed, first_layer_dense=False)


def erdos_renyi(
    shapes: Shapes, sparsity: float, *, fixed: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Density proportional to `(n_in + n_out) / (n_in * n_out)`.

    `n_in` and `n_out` are the last two axes of the kernel: layers with few channels
    keep more of their weights, and the number of connections grows with the number
    of neurons, not with their product.

    Args:
        shapes: mapping of layer name to Keras kernel shape, in model order. Every
            shape has at least two axes.
        sparsity: float in [0, 1), the fraction of zeros over all layers not in
            `fixed`.
        fixed: mapping of layer name to a sparsity to keep as given; these layers are
            left out of the balance.

    Returns:
        A dict of layer name to sparsity. Layers that would need a density above 1
        are dense, and the others make up for them.

    Raises:
        ValueError: as for `uniform`, if a shape has fewer than two axes, and if the
            budget cannot be met.

    Example:

    >>> erdos_renyi({"a": (10, 10), "b": (10, 10)}, 0.5)
    {'a': 0.5, 'b': 0.5}
    """
    for name, shape in shapes.items():
        if len(shape) < 2:
            raise ValueError(
                "Argument `shapes` must give every kernel at least two axes. "
                f"Received: shapes[{name!r}]={tuple(shape)}"
            )
    return _balanced(shapes, sparsity, fixed, lambda shape: sum(shape[-2:]) / math.prod(shape[-2:]))


def erdos_renyi_kernel(
    shapes: Shapes, sparsity: float, *, fixed: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Density proportional to `sum(shape) / prod(shape)` over the whole kernel (ERK).

    For a 4-D convolution that is `(w + h + n_in + n_out) / (w * h * n_in * n_out)`;
    for a dense kernel it is Erdős–Rényi.

    Args:
        shapes: mapping of layer name to Keras kernel shape, in model order.
        sparsity: float in [0, 1), the fraction of zeros over all layers not in
            `fixed`.
        fixed: mapping of layer name to a sparsity to keep as given; these layers are
            left out of the balance.

    Returns:
        A dict of layer name to sparsity.

    Raises:
        ValueError: as for `erdos_renyi`.

    Example:

    >>> s = erdos_renyi_kernel({"a": (784, 300), "b": (300, 100), "c": (100, 10)}, 0.9)
    >>> {name: round(value, 3) for name, value in s.items()}
    {'a': 0.922, 'b': 0.775, 'c': 0.074}
    """
    return _balanced(shapes, sparsity, fixed, lambda shape: sum(shape) / math.prod(shape))


def zeros(sparsity, entries):
    """How many zeros a layer has: `floor(sparsity * entries)`.

    Args:
        sparsity: float or array, the fraction of zeros.
        entries: int or array, the number of entries (or blocks).

    Returns:
        The number of zeros, a float or an array of floats. Products that only rounding
        keeps from being whole numbers count as whole.

    Example:

    >>> int(zeros(0.29, 100)), 0.29 * 100
    (29, 28.999999999999996)
    """
    return np.floor(np.multiply(sparsity, entries) + np.multiply(1e-12, entries))


NAMES = {
    "uniform": uniform,
    "uniform_all": uniform_all,
    "erdos_renyi": erdos_renyi,
    "erk": erdos_renyi_kernel,
}


def get(identifier) -> Callable[..., dict[str, float]]:
    """Looks up a distribution.

    Args:
        identifier: "uniform", "uniform_all", "erdos_renyi", "erk", or a function with
            the signature of `erdos_renyi`.

    Returns:
        The function.

    Raises:
        ValueError: if the name is unknown; the message offers the closest ones.

    Example:

    >>> get("erk").__name__
    'erdos_renyi_kernel'
    """
    if callable(identifier):
        return identifier
    if isinstance(identifier, str) and identifier in NAMES:
        return NAMES[identifier]
    raise unknown_name("distribution", identifier, NAMES)


def _check(shapes, sparsity, fixed):
    sparsity = check_sparsity("sparsity", sparsity)
    fixed = {} if fixed is None else dict(fixed)
    for name, value in fixed.items():
        if name not in shapes:
            raise unknown_name("fixed", name, shapes, or_object=False)
        fixed[name] = check_sparsity(f"fixed[{name!r}]", value)
    for name, shape in shapes.items():
        if len(shape) == 0 or any(n is None or n < 1 for n in shape):
            raise ValueError(
                "Argument `shapes` must give every axis a size of at least 1. "
                f"Received: shapes[{name!r}]={tuple(shape)}"
            )
    return sparsity, fixed


def _balanced(shapes, sparsity, fixed, raw_density):
    """Scales raw densities by one factor so that the overall sparsity is met."""
    sparsity, fixed = _check(shapes, sparsity, fixed)
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
        # Whatever shares the largest raw density saturates together.
        dense |= raw == largest
    raise ValueError(
        "The budget cannot be met: every layer would have to be dense. "
        f"Received: sparsity={sparsity}, fixed={fixed}, shapes={dict(shapes)}"
    )
