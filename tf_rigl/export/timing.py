"""How long LiteRT takes for one batch, several files side by side."""

import os
import statistics
import time

import numpy as np

from tf_rigl._base.arguments import check_integer

_SECONDS = 0.05  # That a round of one file should take.


def latency(paths, *, batch_size=1, rounds=15, num_threads=1, xnnpack=True) -> list[float]:
    """Measures LiteRT files side by side: in each round every file has its turn.

    Compare figures of one call with each other only: machines differ from one minute to
    the next.

    Args:
        paths: list of str or path, LiteRT files.
        batch_size: int, of files with a free batch axis.
        rounds: int, how many turns each file has.
        num_threads: int, for LiteRT.
        xnnpack: bool, whether LiteRT may use XNNPACK, as it does by itself, for what is
            dense.

    Returns:
        For each file the median over its turns of the seconds for one batch.

    Raises:
        ValueError: if a path is not that of a file, or a number is not a positive integer.

    Example:

    >>> dense, sparse = latency(["dense.tflite", "sparse.tflite"])
    """
    if isinstance(paths, (str, os.PathLike)):
        raise ValueError(f"Argument `paths` must be a list of files. Received: paths={paths!r}")
    for path in paths:
        if not os.path.isfile(path):
            raise ValueError(f"Argument `paths` must hold LiteRT files. Received: {str(path)!r}")
    for name, value in (
        ("batch_size", batch_size),
        ("rounds", rounds),
        ("num_threads", num_threads),
    ):
        check_integer(name, value, 1)
    runners = [_runner(path, batch_size, num_threads, xnnpack) for path in paths]
    repeats = []
    for run in runners:
        run()  # The first call allocates what the others use.
        began = time.perf_counter()
        run()
        repeats.append(max(1, int(_SECONDS / (time.perf_counter() - began))))
    times = [[] for _ in runners]
    for number in range(rounds):
        # Another one goes first each time: the first of a round finds other caches.
        start = number % len(runners)
        for index in [*range(start, len(runners)), *range(start)]:
            began = time.perf_counter()
            for _ in range(repeats[index]):
                runners[index]()
            times[index].append((time.perf_counter() - began) / repeats[index])
    return [statistics.median(turns) for turns in times]


def _runner(path, batch_size, num_threads, xnnpack):
    """A function that runs a file on random numbers."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kinds = OpResolverType
    interpreter = Interpreter(
        model_path=str(path),
        num_threads=num_threads,
        experimental_op_resolver_type=(
            kinds.AUTO if xnnpack else kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        ),
    )
    for detail in interpreter.get_input_details():
        shape = detail["shape_signature"]
        if len(shape) and shape[0] == -1:
            interpreter.resize_tensor_input(detail["index"], [batch_size, *detail["shape"][1:]])
    interpreter.allocate_tensors()
    rng = np.random.default_rng(0)
    for detail in interpreter.get_input_details():
        value = rng.standard_normal(detail["shape"]) * np.issubdtype(detail["dtype"], np.floating)
        interpreter.set_tensor(detail["index"], value.astype(detail["dtype"]))
    return interpreter.invoke
