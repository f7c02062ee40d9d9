"""Size and speed of exported files, relative to the dense network.

    python benchmarks/export.py

prints the following, and writes it next to this file as JSON:

- LiteRT: file size and latency (batch 1, one thread) of an MLP of 1024-unit layers and of a
  small MobileNet, by pattern, sparsity and quantization, relative to the dense network in
  float32. All files take turns in one run. The speed is also measured without XNNPACK, the
  library that computes dense layers;
- SavedModel: bytes of the variables of a packed one over the fewest possible bytes, and its
  load time and latency over those of an unpacked one.

Masks are random, because neither size nor time depends on the weights.
"""

import argparse
import functools
import json
import pathlib
import tempfile
import warnings

import numpy as np
import tensorflow as tf

import tf_rigl
from tf_rigl import models
from tf_rigl._base import tables
from tf_rigl._base.timing import in_turns
from tf_rigl.export import latency

MODELS = {
    "MLP of 1024-unit layers": (models.mlp_1024, (32, 32, 1)),
    "small MobileNet": (models.small_mobilenet, (96, 96, 3)),
}
SPARSITIES = (0.8, 0.9, 0.95)
PATTERNS = ("unstructured", "block_4x1", "block_16x1")
QUANTIZATIONS = (None, "float16", "dynamic", "int8")


def variants():
    """Yields pattern, sparsity and quantization of each file; the first one is dense."""
    for quantization in QUANTIZATIONS:
        yield None, 0.0, quantization
    for pattern in PATTERNS:
        for sparsity in SPARSITIES:
            yield pattern, sparsity, None
    yield "2:4", 0.5, None
    for quantization in QUANTIZATIONS[1:]:
        for pattern in PATTERNS:
            yield pattern, 0.9, quantization


def sparse(model, pattern, sparsity):
    """Returns a copy of a model with random masks."""
    distribution = "uniform" if pattern == "2:4" else "erk"
    return tf_rigl.sparsify(
        model, "static", sparsity, distribution=distribution, pattern=pattern, seed=0
    )


def litert_rows(make, input_shape, rounds):
    """Measures size and latency of each variant of a model, relative to the dense one."""
    model = make(input_shape, 10)
    images = np.random.default_rng(0).random((64, *input_shape), np.float32)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (pattern, sparsity, quantization) in enumerate(variants()):
            path = pathlib.Path(folder, f"{number}.tflite")
            source = model if pattern is None else sparse(model, pattern, sparsity)
            data = images if quantization == "int8" else None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # It says that dense models have no zeros.
                info = tf_rigl.export_tflite(
                    source,
                    path,
                    quantization=quantization,
                    representative_dataset=data,
                    batch_size=1,
                )
            row = {"pattern": pattern or "dense", "sparsity": sparsity, "path": path}
            rows.append({**row, "quantization": quantization or "float32", "bytes": info.bytes})
        paths = [row.pop("path") for row in rows]
        seconds = latency(paths, rounds=rounds)
        plain = latency(paths, rounds=rounds, xnnpack=False)
    for row, value, without in zip(rows, seconds, plain, strict=True):
        row["times_faster_without_xnnpack"] = plain[0] / without
        row["milliseconds"] = 1000 * value
        row["size"] = row["bytes"] / rows[0]["bytes"]
        row["times_faster"] = seconds[0] / value
    return rows


def saved_model_ratios(make, input_shape, rounds):
    """Measures a packed SavedModel at 0.9, in blocks of 16x1, relative to an unpacked one."""
    model = sparse(make(input_shape, 10), "block_16x1", 0.9)
    masked = [item.weight for item in model.masked_weights if item.is_sparse]
    entries = sum(int(np.prod(w.shape)) for w in masked)
    nonzero = sum(int(np.count_nonzero(w)) for w in masked)
    rest = sum(int(np.prod(w.shape)) for w in tf_rigl.strip(model).weights) - entries
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: str(pathlib.Path(folder, name)) for name in ("packed", "unpacked")}
        for name, path in paths.items():
            tf_rigl.export_saved_model(model, path, packed=name == "packed")
        stored = {
            name: sum(f.stat().st_size for f in pathlib.Path(path).glob("variables/*.data-*"))
            for name, path in paths.items()
        }
        loaded = {name: tf.saved_model.load(path) for name, path in paths.items()}
        loads = {name: functools.partial(tf.saved_model.load, path) for name, path in paths.items()}
        load = in_turns(loads, rounds)
        batch = tf.constant(np.random.default_rng(0).random((1, *input_shape), np.float32))
        calls = {name: functools.partial(each.serve, batch) for name, each in loaded.items()}
        call = in_turns(calls, rounds, calls=50)
    least = 4 * nonzero + entries / 8 + 4 * rest
    return {
        "bytes": stored,
        "over_least": stored["packed"] / least,
        "over_unpacked": stored["packed"] / stored["unpacked"],
        "load_time": load["packed"] / load["unpacked"],
        "latency": call["packed"] / call["unpacked"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default=pathlib.Path(__file__).with_suffix(".json"))
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    result = {"litert": {}, "saved_model": {}}
    for name, (make, input_shape) in MODELS.items():
        rows = result["litert"][name] = litert_rows(make, input_shape, options.rounds)
        print(f"\nLiteRT, {name}, {input_shape}, over dense float32:", flush=True)
        header = ["pattern", "sparsity", "type", "ms", "times faster", "(no XNNPACK)", "size"]
        cells = [
            [
                row["pattern"],
                f"{row['sparsity']:.2f}",
                row["quantization"],
                f"{row['milliseconds']:.3f}",
                f"{row['times_faster']:.2f}",
                f"{row['times_faster_without_xnnpack']:.2f}",
                f"{row['size']:.3f}",
            ]
            for row in rows
        ]
        print("\n".join(tables.text(header, cells, left=(0, 2))), flush=True)
        ratios = result["saved_model"][name] = saved_model_ratios(make, input_shape, options.rounds)
        print(
            f"SavedModel, {name}, block_16x1 at 0.9: variables {ratios['over_least']:.3f} times "
            f"the fewest bytes, {ratios['over_unpacked']:.3f} of unpacked; load time "
            f"{ratios['load_time']:.2f}, latency {ratios['latency']:.2f} of unpacked",
            flush=True,
        )
    pathlib.Path(options.output).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
