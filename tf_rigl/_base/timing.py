"""One timer for all comparisons: functions take turns, and the median of each counts."""

import statistics
import time


def in_turns(functions, rounds, calls=1, wait=None, warm_up=1):
    """Times several functions side by side.

    In each round every function has its turn, so other work of the machine slows all of them.
    Compare figures of one call only with each other.

    Args:
        functions: dict of name to function without arguments.
        rounds: int, the number of turns of each function.
        calls: int, or dict of name to int: the number of calls in a turn.
        wait: function of the last result of a turn; the turn ends when it returns. For
            results that a device still computes. None: the turn ends with the last call.
        warm_up: int, the number of calls before the first round. They trace, compile and
            allocate, and are not timed.

    Returns:
        A dict of name to the median of the seconds for one call.

    Example:

    >>> seconds = in_turns({"sort": lambda: sorted(range(9)), "sum": lambda: sum(range(9))}, 5)
    >>> seconds["sort"] > 0
    True
    """
    counts = calls if isinstance(calls, dict) else dict.fromkeys(functions, calls)
    if warm_up:
        for function in functions.values():
            _seconds(function, warm_up, wait)
    times = {name: [] for name in functions}
    names = list(functions)
    for number in range(rounds):
        # The first of a round finds other caches than the rest, so each goes first in turn.
        start = number % max(1, len(names))
        for name in names[start:] + names[:start]:
            spent = _seconds(functions[name], counts[name], wait)
            times[name].append(spent / counts[name])
    return {name: statistics.median(values) for name, values in times.items()}


def calls_for(function, seconds):
    """How many calls of a function take about so many seconds; at least 1.

    The function is called twice: the first call warms it up.
    """
    function()
    return max(1, int(seconds / max(_seconds(function, 1), 1e-9)))


def _seconds(function, calls, wait=None):
    """The seconds that so many calls take."""
    began = time.perf_counter()
    for _ in range(calls):
        result = function()
    if wait is not None:
        wait(result)
    return time.perf_counter() - began
