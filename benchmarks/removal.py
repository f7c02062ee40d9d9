"""The speed that networks gain when pruned channels are removed.

    python benchmarks/removal.py

removes a fraction of the channels of each layer from several networks, and checks that the
outputs of the smaller network are those of the masked large one. It measures one image in LiteRT
(one thread) and batches of 64 in Keras: all fractions of a network take turns, and the median of
several rounds counts. A network with masked channels, not removed, is the control. Writes ratios
to the dense network as JSON and a table.
"""

import argparse
import functools
import pathlib
import tempfile
import warnings

import keras
import numpy as np

import tf_rigl
from tf_rigl import lottery, models
from tf_rigl._base import files, tables
from tf_rigl._base.timing import in_turns
from tf_rigl.export import latency

NETWORKS = {
    "small_vgg": (models.small_vgg, (28, 28, 1)),
    "resnet_50, 64x64": (models.resnet_50, (64, 64, 3)),
    "small_mobilenet, 96x96": (models.small_mobilenet, (96, 96, 3)),
}
FRACTIONS = (0.3, 0.5, 0.7)
BATCH = 64


def random_masks(model, fraction, seed=0):
    """Makes random masks that prune the same fraction of each layer's channels."""
    rng = np.random.default_rng(seed)
    everything = lottery.channel_masks(model, 0)
    masks = {}
    for path, mask in everything.items():
        order = rng.permutation(mask.size)
        masks[path] = order >= round(fraction * mask.size)
    return masks


def difference(model, small, masks, images):
    """Returns the largest difference of outputs, over the largest output."""
    large = lottery.mask_channels(model, masks)
    one, other = (keras.ops.convert_to_numpy(m(images, training=False)) for m in (large, small))
    return float(np.abs(one - other).max() / np.abs(one).max())


def keras_seconds(built, images, rounds):
    """Returns the median seconds of `predict_on_batch` of each model; all take turns."""
    for model in built:
        model.compile(jit_compile=False)
    functions = {
        number: functools.partial(model.predict_on_batch, images)
        for number, model in enumerate(built)
    }
    return list(in_turns(functions, rounds).values())


def measure(name, rounds):
    """Measures a network; returns rows, the dense one first."""
    make, shape = NETWORKS[name]
    keras.utils.set_random_seed(0)
    model = make(shape, 10)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        # Values as after training, none of them exactly 0 or 1.
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.gamma.assign(rng.uniform(0.5, 1.5, layer.gamma.shape))
            layer.beta.assign(rng.uniform(-0.3, 0.3, layer.beta.shape))
    images = rng.random((BATCH, *shape), "float32")
    rows, built = [{"label": "dense", "fraction": 0.0}], [model]
    for fraction in FRACTIONS:
        masks = random_masks(model, fraction)
        small = lottery.remove_channels(model, masks)
        far = difference(model, small, masks, images[:4])
        if far > 1e-4:
            raise RuntimeError(f"{name}, {fraction}: outputs differ by {far}.")
        rows.append({"label": f"{fraction:.0%} removed", "fraction": fraction, "difference": far})
        built.append(small)
    rows.append({"label": "50% masked, not removed", "fraction": 0.5})
    built.append(lottery.mask_channels(model, random_masks(model, 0.5)))
    with tempfile.TemporaryDirectory() as folder:
        paths = [pathlib.Path(folder, f"{number}.tflite") for number in range(len(built))]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "'.*' is not a `tf_rigl.SparseModel`")
            for path, each in zip(paths, built, strict=True):
                tf_rigl.export_tflite(each, path)
        litert = latency([str(path) for path in paths], rounds=rounds)
        sizes = [path.stat().st_size for path in paths]
    in_keras = keras_seconds(built, images, rounds)
    for row, each, *numbers in zip(rows, built, litert, in_keras, sizes, strict=True):
        row["parameters"] = each.count_params()
        row["flops"] = tf_rigl.report(each).dense_flops
        row["litert_seconds"], row["keras_seconds"], row["bytes"] = numbers
    return rows


def table(results):
    """Returns ratios to dense as a Markdown table."""
    header = ["network", "", "FLOPs", "LiteRT file", "LiteRT: times faster", "Keras: times faster"]
    lines = []
    for name, rows in results.items():
        dense = rows[0]
        for row in rows[1:]:
            sizes = [row[key] / dense[key] for key in ("flops", "bytes")]
            faster = [dense[key] / row[key] for key in ("litert_seconds", "keras_seconds")]
            lines.append([name, row["label"], *(f"{value:.2f}" for value in sizes + faster)])
    return "\n".join(tables.markdown(header, lines, left=(0, 1)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    add = parser.add_argument
    add("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    add("--rounds", type=int, default=25)
    add("--output", type=pathlib.Path, default=pathlib.Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    results = {}
    for name in options.networks:
        results[name] = measure(name, options.rounds)
        print(name, flush=True)
    files.write_text(options.output, files.to_json({"batch": BATCH, "results": results}))
    text = table(results)
    files.write_text(options.output.with_suffix(".md"), text + "\n")
    print(text)


if __name__ == "__main__":
    main()
