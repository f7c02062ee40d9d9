"""Runs a row: its way in one new process, then the loading of its files in another.

Processes come from a server that has imported Keras, but not tf_rigl, and made nothing. So each
begins as a new one, without the seconds that importing TensorFlow takes.
"""

import contextlib
import json
import multiprocessing
import os
import pathlib
import tempfile
import time

from benchmarks.sweep import refusals

_CONTEXT = multiprocessing.get_context("forkserver")
_PRELOADED = ["benchmarks.sweep.case"]


def start_server(modules=()):
    """Starts the server; `modules` are names of modules to import there as well."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    _CONTEXT.set_forkserver_preload([*_PRELOADED, *modules])


def run(row, seconds=900) -> dict:
    """Takes a row through its way; a result is there whatever happens to it."""
    from benchmarks.sweep import way

    started = time.time()
    with tempfile.TemporaryDirectory(prefix="sweep-") as name:
        folder = pathlib.Path(name)
        fault = _in_process("benchmarks.sweep.way", (row.module, row.label, name), folder, seconds)
        written = folder / "result.json"
        if not written.is_file():
            result = {"label": row.label, "kind": row.kind, "outcome": "failed", "stages": {}}
            return {**result, "message": fault or "wrote no result"}
        result = json.loads(written.read_text())
        if (folder / "plain.keras").is_file():
            begun = time.time()
            fault = _in_process("benchmarks.sweep.new_process", (row.module, name), folder, seconds)
            stage = _loaded(row, fault)
            result["stages"]["load"] = {**stage, "seconds": round(time.time() - begun, 2)}
    result["outcome"] = way.outcome(result["stages"])
    return {**result, "seconds": round(time.time() - started, 1)}


def _loaded(row, fault):
    """Returns the result of the stage that loads files, given what went wrong, or None."""
    words = refusals.expected(row.label, "load")
    if fault is None and words is None:
        return {"outcome": "passed"}
    if fault and words and words in fault:  # Without the traceback, which has paths.
        return {"outcome": "refused", "message": f"Keras: {fault[fault.index(words) :][:200]}"}
    message = fault or f"is not refused in these words: {words}"
    return {"outcome": "failed", "message": message}


def _in_process(module, arguments, folder, seconds):
    """Runs `main` of a module in a new process; returns what went wrong, or None."""
    log = folder / "log"
    process = _CONTEXT.Process(target=_main, args=(module, arguments, str(log)))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        return f"did not end within {seconds} s"
    if process.exitcode:
        return f"exit code {process.exitcode}: {log.read_text(errors='replace')[-3000:]}"
    return None


def _main(module, arguments, log):
    import importlib

    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    with contextlib.suppress(OSError):
        os.close(file)
    importlib.import_module(module).main(*arguments)
