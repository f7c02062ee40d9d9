"""When masks are updated, and how much of them.

Plain arithmetic on Python numbers: the step counter lives on the host, so counts are
exact on every device.

Reference:

- [Rigging the Lottery](https://arxiv.org/abs/1911.11134), section 3 "Update
  schedule" and appendix G (other decays).
"""

import math
from collections.abc import Callable

from tf_rigl._arguments import unknown_name

Decay = Callable[[int, int], float]


def cosine(step: int, end_step: int) -> float:
    """Half a cosine wave, from 1 at step 0 to 0 at `end_step`.

    Args:
        step: int, batches seen so far.
        end_step: int, the step at which updates end.

    Returns:
        The factor on the drop fraction, a float in [0, 1].

    Example:

    >>> round(cosine(50, 100), 3)
    0.5
    """
    return 0.5 * (1 + math.cos(step * math.pi / end_step))


def constant(step: int, end_step: int) -> float:
    """Always 1. Arguments and result are those of `cosine`."""
    del step, end_step
    return 1.0


def linear(step: int, end_step: int) -> float:
    """A straight line from 1 to 0. Arguments and result are those of `cosine`."""
    return 1 - step / end_step


def inverse_power(step: int, end_step: int) -> float:
    """The cube of the straight line. Arguments and result are those of `cosine`."""
    return (1 - step / end_step) ** 3


DECAYS = {
    "cosine": cosine,
    "constant": constant,
    "linear": linear,
    "inverse_power": inverse_power,
}


def get_decay(identifier) -> Decay:
    """Looks up a decay.

    Args:
        identifier: "cosine", "constant", "linear", "inverse_power", or a function of
            `(step, end_step)` that returns the factor on the drop fraction, a float
            in [0, 1].

    Returns:
        The function.

    Raises:
        ValueError: if the name is unknown; the message offers the closest ones.

    Example:

    >>> get_decay("linear")(25, 100)
    0.75
    """
    if callable(identifier):
        return identifier
    if isinstance(identifier, str) and identifier in DECAYS:
        return DECAYS[identifier]
    raise unknown_name("decay", identifier, DECAYS)


def is_update_step(step: int, start_step: int, end_step: int, update_interval: int) -> bool:
    """Whether masks change at `step`, counted in batches from 0.

    Args:
        step: int, batches seen before this one.
        start_step: int, the first step at which masks may change.
        end_step: int, the first step at which they may not any more.
        update_interval: int, steps between changes.

    Returns:
        True when `start_step <= step < end_step` and `step` is a multiple of
        `update_interval`.

    Example:

    >>> [t for t in range(500) if is_update_step(t, 100, 400, 100)]
    [100, 200, 300]
    """
    return start_step <= step < end_step and step % update_interval == 0
