"""Checks of arguments, with messages in the manner of Keras."""

import difflib
import numbers


def unknown_name(argument, received, allowed, *, or_object=True):
    """The error for a string that names nothing, with the closest names.

    Args:
        argument: str, the argument's name.
        received: what came in.
        allowed: iterable of str, the names there are.
        or_object: whether an object may stand in place of a name.

    Returns:
        A `ValueError`, to be raised by the caller.
    """
    allowed = sorted(allowed)
    close = difflib.get_close_matches(str(received).lower(), allowed, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
    names = ", ".join(repr(a) for a in allowed)
    return ValueError(
        f"Argument `{argument}` must be one of {names}{', or an object' if or_object else ''}."
        f"{hint} "
        f"Received: {argument}={received!r}"
    )


def check_sparsity(argument, value):
    """Returns `value` as a float in [0, 1), or raises."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= value < 1:
        raise ValueError(
            f"Argument `{argument}` must be a number in [0, 1): the fraction of zeros. "
            f"Received: {argument}={value!r}"
        )
    return float(value)


def check_integer(argument, value, minimum):
    """Returns `value` as an int of at least `minimum`, or raises."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < minimum:
        raise ValueError(
            f"Argument `{argument}` must be an integer of at least {minimum}. "
            f"Received: {argument}={value!r}"
        )
    return int(value)
