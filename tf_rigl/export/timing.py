"""Measures the latency of LiteRT files side by side."""

import os

import numpy as np

from tf_rigl._base import timing
from tf_rigl._base.arguments import check_flag, check_integer

_SECONDS = 0.05  # The duration of a turn.


def latency(paths, *, batch_size=1, rounds=15, num_threads=1, xnnpack=True) -> list[float]:
    """Measures the latency of LiteRT files side by side. In each round every file has a turn.

    Compare only results of the same call: the speed of a machine changes from minute to minute.

    Args:
        paths: list of str or path, LiteRT files.
        batch_size: int, for files with a free batch axis.
        rounds: int, the number of turns of each file.
        num_threads: int, the number of LiteRT's threads.
        xnnpack: bool, whether LiteRT may run dense operations with XNNPACK, its default.

    Returns:
        A list of float, the median seconds for one batch, for each file.

    Raises:
        ValueError: if a path is not a file, or a number is not a positive integer.

    Example:

    >>> _ = tf_rigl.export_tflite(sparse, "dense.tflite", packed=False)
    >>> _ = tf_rigl.export_tflite(sparse, "sparse.tflite")
    >>> paths = ["dense.tflite", "sparse.tflite"]
    >>> dense_seconds, sparse_seconds = tf_rigl.export.latency(paths, rounds=3)
    >>> times_faster = dense_seconds / sparse_seconds
    """
    if not isinstance(paths, (list, tuple)):
        raise ValueError(f"Argument `paths` must be a list of files. Received: paths={paths!r}")
    for path in paths:
        if not isinstance(path, (str, os.PathLike)) or not os.path.isfile(path):
            raise ValueError(
                "Argument `paths` must hold LiteRT files, as `tf_rigl.export_tflite` writes them. "
                f"There is no file {str(path)!r}. Received: paths={list(map(str, paths))}"
            )
        with open(path, "rb") as file:
            if file.read(8)[4:] != b"TFL3":
                raise ValueError(
                    f"Argument `paths` must hold LiteRT files. {str(path)!r} is another kind of "
                    f"file. Received: paths={list(map(str, paths))}"
                )
    for name, value in (
        ("batch_size", batch_size),
        ("rounds", rounds),
        ("num_threads", num_threads),
    ):
        check_integer(name, value, 1)
    check_flag("xnnpack", xnnpack)
    runners = {
        number: _runner(path, batch_size, num_threads, xnnpack) for number, path in enumerate(paths)
    }
    # These calls also warm up: they allocate memory that the measured calls use.
    calls = {number: timing.calls_for(run, _SECONDS) for number, run in runners.items()}
    return list(timing.in_turns(runners, rounds, calls, warm_up=0).values())


def _runner(path, batch_size, num_threads, xnnpack):
    """Returns a function that runs a file on random numbers."""
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
