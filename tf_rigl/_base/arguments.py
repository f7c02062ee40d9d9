"""Checks of arguments. Messages say what must hold, then what was received, as in Keras."""

import difflib
import inspect
import math
import numbers
import os
import pathlib

import numpy as np

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def unknown_name(argument, received, allowed, *, or_object=True, others=None):
    """The error for an unknown name. Its message offers the closest known names.

    Args:
        argument: str, the argument's name.
        received: the value that was passed.
        allowed: iterable of str, the known names.
        or_object: bool, whether the argument also takes an object; or str, what else it takes.
        others: dict of other words that users write, in lower case, to the known name that
            each means; or None.

    Returns:
        A `ValueError`; the caller raises it.

    Example:

    >>> known = ["magnitude", "rigl"]
    >>> raise unknown_name("method", "gradual", known, others={"gradual": "magnitude"})
    ... # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: Argument `method` must be one of ... Did you mean 'magnitude'? Received: ...
    """
    allowed = sorted(allowed)
    names = ", ".join(repr(a) for a in allowed)
    object_too = ", or an object" if or_object is True else f", or {or_object}" if or_object else ""
    return ValueError(
        f"Argument `{argument}` must be one of {names}{object_too}."
        f"{_hint(argument, received, allowed, or_object, others or {})} "
        f"Received: {argument}={received!r}"
    )


def _hint(argument, received, allowed, or_object, others):
    """Returns a sentence that says what was meant, after a space; "" if that is unknown."""
    if isinstance(received, type) and or_object:
        return f" A class is not an object: pass `{argument}={received.__name__}(...)`."
    if not isinstance(received, str):
        return ""
    word = received.strip().lower()
    if word in allowed or word in others:
        close = [others.get(word, word)]
    else:
        close = difflib.get_close_matches(word, allowed, n=3, cutoff=0.5)
        # Any word has half of the letters of a short one.
        closer = difflib.get_close_matches(word, allowed, n=3, cutoff=0.6)
        close = [each for each in close if len(each) > 3 or each in closer]
        if not close:
            close = [others[each] for each in difflib.get_close_matches(word, others, cutoff=0.7)]
            close = list(dict.fromkeys(close))
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


def unknown_key(argument, received, key, allowed, what="layers"):
    """The error for a mapping with a key that is no known name.

    Args:
        argument: str, the argument's name.
        received: the mapping that was passed.
        key: the unknown key.
        allowed: iterable of str, the known names.
        what: str, what has these names.

    Returns:
        A `ValueError`; the caller raises it.

    Example:

    >>> raise unknown_key("fixed", {"hiden": 0.5}, "hiden", ["hidden", "head"])
    ... # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: Argument `fixed` must have names of layers as keys, and 'hiden' is none of ...
    """
    allowed = sorted(allowed)
    return ValueError(
        f"Argument `{argument}` must have names of {what} as keys, and {key!r} is none of them."
        f"{_hint(argument, key, allowed, False, {})} The names are {', '.join(map(repr, allowed))}."
        f" Received: {argument}={dict(received)!r}"
    )


def check_number(
    argument,
    value,
    *,
    above=None,
    at_least=None,
    below=None,
    at_most=None,
    finite=True,
    what="",
):
    """Checks a number against its bounds.

    Args:
        argument: str, the argument's name.
        value: the number to check: int, float or any other real number, but not a bool.
        above: number that the value must exceed (an open end), or None.
        at_least: number that the value must reach (a closed end), or None.
        below: number that the value must stay under (an open end), or None.
        at_most: number that the value must not exceed (a closed end), or None.
        finite: bool, whether infinity is refused. NaN always is.
        what: str, the meaning of the number, for the message.

    Returns:
        The value as a float.

    Raises:
        ValueError: if the value is not a number, or is out of bounds.

    Example:

    >>> check_number("momentum", 0.9, at_least=0, below=1)
    0.9
    >>> check_number("density", 2, above=0, at_most=1, what="the fraction of blocks kept")
    ... # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: Argument `density` must be a number in (0, 1]: the fraction of blocks kept...
    """
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            result = float(value)
        except OverflowError:  # An integer beyond the range of floats.
            result = math.nan
        if (
            not math.isnan(result)
            and (not finite or math.isfinite(result))
            and (above is None or result > above)
            and (at_least is None or result >= at_least)
            and (below is None or result < below)
            and (at_most is None or result <= at_most)
        ):
            return result
    bounds = _bounds(above, at_least, below, at_most)
    raise ValueError(
        f"Argument `{argument}` must be {bounds}{': ' if what else ''}{what}. "
        f"Received: {argument}={value!r}"
    )


def _bounds(above, at_least, below, at_most):
    """The bounds in words: `a number in (0, 1]`, `a number of at least 1`."""
    low = above if at_least is None else at_least
    high = below if at_most is None else at_most
    if low is not None and high is not None:
        begin, end = "(" if at_least is None else "[", ")" if at_most is None else "]"
        return f"a number in {begin}{low}, {high}{end}"
    if low is not None:
        if at_least is not None:
            return f"a number of at least {low}"
        return "a positive number" if low == 0 else f"a number above {low}"
    if high is not None:
        return f"a number below {high}" if at_most is None else f"a number of at most {high}"
    return "a number"


def check_sparsity(argument, value):
    """Returns `value` as a float in [0, 1), or raises."""
    return check_number(argument, value, at_least=0, below=1, what="the fraction of zeros")


def check_integer(argument, value, minimum):
    """Returns `value` as an int of at least `minimum`, or raises."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < minimum:
        raise ValueError(
            f"Argument `{argument}` must be an integer of at least {minimum}. "
            f"Received: {argument}={value!r}"
        )
    return int(value)


def check_flag(argument, value):
    """Returns `value` as a bool; raises if it is neither True nor False."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(
            f"Argument `{argument}` must be True or False. Received: {argument}={value!r}"
        )
    return bool(value)


def listed(argument, value):
    """Returns the entries of an iterable as a list; raises if it is a str or not iterable."""
    try:
        if isinstance(value, str):
            raise TypeError
        return list(value)
    except TypeError:
        raise ValueError(
            f"Argument `{argument}` must be a list or another iterable. "
            f"Received: {argument}={value!r}"
        ) from None


def check_path(argument, value):
    """Returns `value` as a `pathlib.Path`; raises if it is not a path."""
    if not isinstance(value, (str, os.PathLike)) or not str(value) or "\0" in str(value):
        raise ValueError(f"Argument `{argument}` must be a path. Received: {argument}={value!r}")
    return pathlib.Path(value)


class ChecksArguments:
    """Base class whose constructor names the arguments there are if it gets an unknown one.

    Example:

    >>> class Rate(ChecksArguments):
    ...     def __init__(self, rate=0.1): ...
    >>> Rate(rat=0.5)
    Traceback (most recent call last):
    TypeError: The arguments of `Rate` are 'rate'. Did you mean 'rate'? Received: rat=0.5
    """

    def __new__(cls, *args, **kwargs):
        has_own = cls.__init__ is not object.__init__
        kinds = [p.kind for p in inspect.signature(cls.__init__).parameters.values()]
        # A constructor that takes any arguments checks them itself.
        if not has_own or inspect.Parameter.VAR_KEYWORD not in kinds:
            allowed = constructor_arguments(cls)
            unknown = {name: value for name, value in kwargs.items() if name not in allowed}
            if unknown:
                raise unknown_arguments(cls, unknown)
        if args and not has_own:  # Without `__init__`, Python would ignore them.
            raise TypeError(f"`{cls.__name__}` takes no arguments. Received: {args}")
        return super().__new__(cls)


def constructor_arguments(cls):
    """Returns the names of all arguments of a class's constructor, in the order of a call.

    Where the constructor takes `*args` or `**kwargs`, the arguments of its base class count as
    well: they come before its own keyword-only ones.

    Example:

    >>> class Base:
    ...     def __init__(self, rate=0.1, steps=10): ...
    >>> class Derived(Base):
    ...     def __init__(self, *args, momentum=0.9, **kwargs): ...
    >>> constructor_arguments(Derived)
    ['rate', 'steps', 'momentum']
    """
    before, after = [], []
    for base in cls.__mro__[:-1]:
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
        before += [p.name for p in parameters if p.kind in _POSITIONAL]
        after = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY] + after
        if all(p.kind not in _VARIABLE for p in parameters):
            break
    return list(dict.fromkeys(before + after))


def check_layer_arguments(layer, received):
    """Raises if a layer gets arguments that neither its class nor Keras's classes have.

    Keras's own error does not say which there are.

    Args:
        layer: the `keras.layers.Layer` that is made.
        received: dict, the keyword arguments that its class passes on.
    """
    allowed = (*constructor_arguments(type(layer)), "input_shape", "input_dim")
    unknown = {name: value for name, value in received.items() if name not in allowed}
    if unknown:
        raise unknown_arguments(type(layer), unknown)


def unknown_arguments(cls, received, allowed=None):
    """The error for keyword arguments that a class's constructor does not have.

    Args:
        cls: the class.
        received: dict of the unknown arguments, at least one.
        allowed: iterable of str, the arguments there are; None for all that `cls` says.

    Returns:
        A `TypeError` that names the arguments there are; the caller raises it.
    """
    allowed = list(allowed or constructor_arguments(cls))
    close = difflib.get_close_matches(next(iter(received)), allowed, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    values = ", ".join(f"{name}={value!r}" for name, value in received.items())
    names = f"are {', '.join(map(repr, allowed))}" if allowed else "are none"
    return TypeError(f"The arguments of `{cls.__name__}` {names}.{hint} Received: {values}")
