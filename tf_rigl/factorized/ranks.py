"""The ranks of factorized layers, by a scale or by the number of parameters that is wanted."""

from tf_rigl._base.arguments import check_integer, check_number


def rank_of(scale, inputs, outputs) -> int:
    """Returns `max(1, round(scale * min(inputs, outputs)))`, at most the smaller of both."""
    least = min(inputs, outputs)
    return min(least, max(1, round(scale * least)))


def chosen(rank, scale, inputs, outputs) -> int:
    """Returns the rank of a layer whose kernel is a matrix of this size.

    Raises:
        ValueError: if `rank` is larger than both allow.
    """
    if rank is None:
        return rank_of(scale, inputs, outputs)
    if rank > min(inputs, outputs):
        raise ValueError(
            f"Argument `rank` must be at most {min(inputs, outputs)}, the smaller number of "
            f"inputs ({inputs}) and outputs ({outputs}) of the kernel. Received: rank={rank}"
        )
    return rank


def check(rank, scale):
    """Checks the arguments of a layer: exactly one of both is given."""
    if (rank is None) == (scale is None):
        raise ValueError(
            "Exactly one of the arguments `rank` and `scale` must be given. "
            f"Received: rank={rank!r}, scale={scale!r}"
        )
    if rank is not None:
        check_integer("rank", rank, 1)
    else:
        check_scale(scale)


def check_scale(scale) -> float:
    """Returns a scale if it is in (0, 1]."""
    check_number("scale", scale, at_least=0, at_most=1)
    if scale == 0:
        raise ValueError(f"Argument `scale` must be above 0. Received: scale={scale!r}")
    return scale


def parameters_at(scale, sizes) -> int:
    """Returns the parameters of all factors at a scale.

    Args:
        scale: float.
        sizes: list of (matrices, inputs, outputs), one for each layer.
    """
    return sum(n * rank_of(scale, p, q) * (p + q) for n, p, q in sizes)


def scale_for(parameters, sizes) -> float:
    """Returns the largest scale, to a millionth, at which factors have so few parameters.

    Args:
        parameters: float in (0, 1), the fraction of the kernels' parameters.
        sizes: as for `parameters_at`.

    Raises:
        ValueError: if ranks of 1 have more already.
    """
    check_number("parameters", parameters, at_least=0, below=1)
    whole = sum(n * p * q for n, p, q in sizes)
    low, high = 0.0, 1.0
    least = parameters_at(0.0, sizes) / whole
    if least > parameters:
        raise ValueError(
            f"Argument `parameters` must be at least {least:.4g} for this model, the fraction "
            f"that all ranks of 1 take. Received: parameters={parameters!r}"
        )
    while high - low > 1e-6:
        middle = (low + high) / 2
        if parameters_at(middle, sizes) <= parameters * whole:
            low = middle
        else:
            high = middle
    return low
