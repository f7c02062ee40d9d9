"""Size and speed of compact models in LiteRT and other runtimes, relative to the dense network.

    python -m benchmarks.compact

prints the following, and writes it next to this file as JSON (a part of it only to `--output`):

- LiteRT (batch 1, one thread): file size and latency of networks of dense layers, of 3x3
  convolutions, of 1x1 convolutions, and of ResNet-50, by pattern and quantization, each relative
  to the dense network of the same quantization. All files of a network take turns in one run;
- TensorFlow, and ONNX Runtime and OpenVINO if they are installed (with `onnx` and `tf2onnx`): the
  same compact models in float32, exported by Keras, with the greatest difference of outputs.

Masks are random, because neither size nor time depends on the weights.
"""

import argparse
import functools
import importlib.util
import json
import pathlib
import tempfile
import warnings

import keras
import numpy as np
import tensorflow as tf

import tf_rigl
from benchmarks.block_sparse import HEAD, ends, residual, resnet50
from tf_rigl._base import tables
from tf_rigl._base.timing import in_turns
from tf_rigl.export import latency

QUANTIZATIONS = (None, "dynamic", "int8")


def mlp():
    """Four layers of 1024 units."""
    hidden = [keras.layers.Dense(1024, activation="relu") for _ in range(4)]
    return keras.Sequential([keras.Input((1024,)), *hidden, keras.layers.Dense(10, name=HEAD)])


def pointwise(widths=(128, 128, 256, 256, 512, 512)):
    """1x1 convolutions between depthwise ones, as in MobileNet."""
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(widths[0], 3, activation="relu", name="stem")(inputs)
    for number, width in enumerate(widths):
        strides = 2 if number and width > widths[number - 1] else 1
        x = keras.layers.DepthwiseConv2D(3, strides=strides, padding="same", activation="relu")(x)
        x = keras.layers.Conv2D(width, 1, activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(10, name=HEAD)(x))


# Name: function that makes the dense network, sparsity, patterns.
NETWORKS = {
    "MLP, 4 x 1024 units": (
        mlp,
        0.9,
        ("channels_32x32", "channels_64x64", "channels_4x64", "channels_1x32"),
    ),
    "3x3 convolutions, 128 to 512 channels": (
        functools.partial(residual, 14),
        0.875,
        ("channels_64x64", "channels_32x32", "channels_1x64", "channels_1x32"),
    ),
    "1x1 convolutions, 128 to 512 channels": (
        pointwise,
        0.875,
        ("channels_32x64", "channels_8x64", "channels_1x64"),
    ),
    "ResNet50 at 64x64": (resnet50, 0.8, ("compact",)),
}


def sparse(model, pattern, sparsity):
    """Returns a copy of a model with random masks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Small layers stay dense.
        return tf_rigl.sparsify(
            model,
            "static",
            sparsity,
            distribution="uniform_all",
            pattern=pattern,
            exclude=ends(model),
            seed=0,
            compute="sparse",  # All columns have as many blocks, so one product takes them all.
        )


def exported(model, path, quantization, is_dense, images):
    """Writes a LiteRT file; the exporter checks its outputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It says that dense models have no zeros.
        return tf_rigl.export_tflite(
            model,
            path,
            quantization=quantization,
            representative_dataset=images if quantization == "int8" else None,
            batch_size=1,
            compute="dense" if is_dense else "auto",
        )


def litert_rows(sources, rounds, quantizations=QUANTIZATIONS):
    """Measures each network in LiteRT, over the dense one of the same quantization.

    Args:
        sources: dict of pattern to model, "dense" first.
        rounds: int, see `latency`.
    """
    shape = sources["dense"].input_shape[1:]
    images = np.random.default_rng(0).random((16, *shape), np.float32)
    rows, paths = [], []
    with tempfile.TemporaryDirectory() as folder:
        for quantization in quantizations:
            for pattern, model in sources.items():
                path = pathlib.Path(folder, f"{len(paths)}.tflite")
                try:
                    info = exported(model, path, quantization, pattern == "dense", images)
                except ValueError as error:  # Rounding differs too much in deep random networks.
                    print(f"{pattern}, {quantization}: no file. {error}", flush=True)
                    if pattern == "dense":
                        break
                    continue
                paths.append(path)
                row = {"pattern": pattern, "quantization": quantization or "float32"}
                rows.append({**row, "bytes": info.bytes})
        seconds = latency(paths, rounds=rounds)
    dense = {row["quantization"]: number for number, row in reversed([*enumerate(rows)])}
    for row, value in zip(rows, seconds, strict=True):
        reference = dense[row["quantization"]]
        row["milliseconds"] = 1000 * value
        row["size"] = row["bytes"] / rows[reference]["bytes"]
        row["times_faster"] = seconds[reference] / value
    return rows


def _tensorflow(model, folder):
    model.export(folder, format="tf_saved_model", verbose=False)
    loaded = tf.saved_model.load(folder)
    return lambda x: loaded.serve(tf.constant(x)).numpy()


def _onnx(model, folder):
    import onnxruntime

    path = f"{folder}.onnx"
    model.export(path, format="onnx", verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def _openvino(model, folder):
    import openvino

    path = f"{folder}.xml"
    model.export(path, format="openvino", verbose=False)
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    return lambda x: compiled(x)[0]


# Name: the packages it needs, and a function of a model and a path that returns a function.
RUNTIMES = {
    "TensorFlow": ((), _tensorflow),
    "ONNX Runtime": (("onnxruntime", "onnx", "tf2onnx"), _onnx),
    "OpenVINO": (("openvino",), _openvino),
}


def runtime_rows(sources, rounds):
    """Measures compact models in float32 in each runtime that is installed, over dense ones."""
    models = {
        pattern: model if pattern == "dense" else tf_rigl.compact(model)
        for pattern, model in sources.items()
    }
    shape = sources["dense"].input_shape[1:]
    x = np.random.default_rng(1).random((1, *shape), np.float32)
    expected = {pattern: model(x).numpy() for pattern, model in sources.items()}
    rows = []
    for runtime, (packages, make) in RUNTIMES.items():
        if not all(importlib.util.find_spec(package) for package in packages):
            print(f"{runtime} is not installed.", flush=True)
            continue
        with tempfile.TemporaryDirectory() as folder:
            calls = {}
            for number, (pattern, model) in enumerate(models.items()):
                try:
                    run = make(model, str(pathlib.Path(folder, str(number))))
                except RuntimeError as error:  # OpenVINO fails on some graphs.
                    reason = str(error).strip().splitlines()[0]
                    print(f"{runtime}, {pattern}: no model. {reason}", flush=True)
                    continue
                calls[pattern] = functools.partial(run, x)
            seconds = in_turns(calls, rounds, calls=5)
            for pattern, call in calls.items():
                scale = np.abs(expected[pattern]).max()
                rows.append(
                    {
                        "runtime": runtime,
                        "pattern": pattern,
                        "milliseconds": 1000 * seconds[pattern],
                        "times_faster": seconds["dense"] / seconds[pattern],
                        "difference": float(np.abs(call() - expected[pattern]).max() / scale),
                    }
                )
    return rows


def show(rows, columns):
    """Prints rows as a table; `columns` are the keys of texts, then those of numbers."""
    texts, numbers = columns
    cells = [
        [*(row[key] for key in texts), *(f"{row[key]:.3g}" for key in numbers)] for row in rows
    ]
    header = [key.replace("_", " ") for key in (*texts, *numbers)]
    print("\n".join(tables.text(header, cells, left=(0, 1))), flush=True)


def write(result, path):
    """Writes what is measured so far as JSON; nothing if `path` is None."""
    if path is not None:
        path.write_text(json.dumps(result, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, help="for a part; else beside this file")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="networks with this text in their name")
    parser.add_argument("--float32", action="store_true", help="no quantized files")
    options = parser.parse_args()
    quantizations = QUANTIZATIONS[:1] if options.float32 else QUANTIZATIONS
    is_whole = not options.only and not options.float32
    path = options.output or (pathlib.Path(__file__).with_suffix(".json") if is_whole else None)
    result = {}
    for name, (make, sparsity, patterns) in NETWORKS.items():
        if options.only not in name:
            continue
        model = make()
        sources = {"dense": model, **{p: sparse(model, p, sparsity) for p in patterns}}
        print(f"\n{name}, sparsity {sparsity}, LiteRT:", flush=True)
        litert = litert_rows(sources, options.rounds, quantizations)
        show(litert, (("pattern", "quantization"), ("milliseconds", "times_faster", "size")))
        result[name] = {"sparsity": sparsity, "litert": litert}
        write(result, path)
        print(f"\n{name}, other runtimes, float32:", flush=True)
        others = runtime_rows(sources, options.rounds)
        show(others, (("runtime", "pattern"), ("milliseconds", "times_faster", "difference")))
        result[name]["runtimes"] = others
        write(result, path)
        keras.backend.clear_session()


if __name__ == "__main__":
    main()
