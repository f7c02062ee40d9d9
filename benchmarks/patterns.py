"""The accuracy that patterns cost, and the latency and size that they save.

    python benchmarks/patterns.py

trains an MLP of three 1024-unit layers on Fashion-MNIST with three seeds, dense and by RigL with
each pattern. It exports every model to LiteRT in float32 and int8, classifies the 10,000 test
images with Keras and with LiteRT, and measures latency, all models taking turns. Writes a table,
its rows as JSON and a picture. Finished trainings are stored and not repeated.
"""

import argparse
import dataclasses
import pathlib
import statistics
import tempfile
import warnings

import keras
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from matplotlib.figure import Figure

import tf_rigl
from tf_rigl import data
from tf_rigl._base import files, tables
from tf_rigl.experiments import runs
from tf_rigl.experiments.settings import Settings
from tf_rigl.export import latency

BASE = Settings(dataset="fashion_mnist", model="mlp-1024", batch_size=128, epochs=10)
SEEDS = 3
# Label: settings that differ from those above.
VARIANTS = {
    "dense": {"method": "dense"},
    "unstructured, 0.9": {},
    "block 4x1, 0.9": {"pattern": "block_4x1"},
    "block 16x1, 0.9": {"pattern": "block_16x1"},
    "2:4, 0.5": {"pattern": "2:4", "sparsity": 0.5, "distribution": "uniform_all"},
}
QUANTIZATIONS = {"float32": None, "int8": "int8"}


def all_settings(label):
    """Returns the settings of each seed."""
    changes = VARIANTS[label]
    return [dataclasses.replace(BASE, **changes, seed=seed) for seed in range(SEEDS)]


def train(folder):
    """Does the trainings that are not stored."""
    for label in VARIANTS:
        for settings in all_settings(label):
            place = folder / settings.name
            if (place / "result.json").exists():
                continue
            print(f"{label}, seed {settings.seed}", flush=True)
            model, result = runs.run(settings, verbose=2)
            files.write_run(place, model, result)


def classify(path, images):
    """Returns the classes that a LiteRT file predicts."""
    interpreter = Interpreter(model_path=str(path), num_threads=1)
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(source["index"], [500, *images.shape[1:]])
    interpreter.allocate_tensors()
    found = []
    for begin in range(0, len(images), 500):
        interpreter.set_tensor(source["index"], images[begin : begin + 500])
        interpreter.invoke()
        found.append(np.argmax(interpreter.get_tensor(target["index"]), axis=1))
    return np.concatenate(found)


def measure(folder):
    """Measures all variants; returns a row for each."""
    dataset = data.load(BASE.dataset, BASE.batch_size)
    test = list(dataset.test.as_numpy_iterator())
    images, labels = (np.concatenate(part) for part in zip(*test, strict=True))
    some = next(iter(dataset.train.unbatch().batch(500)))[0].numpy()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for label in VARIANTS:
            row = {"label": label, "accuracy": {}, "agreement": {}, "bytes": {}, "paths": {}}
            for settings in all_settings(label):
                model = keras.models.load_model(folder / settings.name / "model.keras")
                classes = np.argmax(model.predict(images, batch_size=500, verbose=0), axis=1)
                row["accuracy"].setdefault("keras", []).append(float(np.mean(classes == labels)))
                for name, quantization in QUANTIZATIONS.items():
                    path = pathlib.Path(scratch, f"{settings.name}-{name}.tflite")
                    tf_rigl.export_tflite(
                        model,
                        path,
                        quantization=quantization,
                        representative_dataset=some if quantization == "int8" else None,
                    )
                    ours = classify(path, images)
                    row["accuracy"].setdefault(name, []).append(float(np.mean(ours == labels)))
                    row["agreement"].setdefault(name, []).append(int(np.sum(ours == classes)))
                    row["bytes"].setdefault(name, path.stat().st_size)
                    row["paths"].setdefault(name, str(path))
            print(label, row["accuracy"], row["agreement"], flush=True)
            rows.append(row)
        for name in QUANTIZATIONS:
            seconds = latency([row["paths"][name] for row in rows])
            for row, value in zip(rows, seconds, strict=True):
                row.setdefault("milliseconds", {})[name] = 1000 * value
    for row in rows:
        del row["paths"]
    return rows


def table(rows):
    """Returns the rows as a Markdown table."""
    header = ["", "Keras, %", "float32 LiteRT: same class as Keras, of 10,000", "int8 LiteRT, %"]
    header += ["float32: time", "size", "int8: time", "size"]
    lines, dense = [], rows[0]
    for row in rows:
        cells = [
            row["label"],
            tables.mean_and_spread(row["accuracy"]["keras"], scale=100),
            ", ".join(f"{n:,}" for n in row["agreement"]["float32"]),
            tables.mean_and_spread(row["accuracy"]["int8"], scale=100),
        ]
        for name in QUANTIZATIONS:
            faster = dense["milliseconds"]["float32"] / row["milliseconds"][name]
            cells += [
                f"{row['milliseconds'][name]:.3f} ms ({faster:.1f} times faster)",
                f"{row['bytes'][name] / dense['bytes']['float32']:.3f}",
            ]
        lines.append(cells)
    return "\n".join(tables.markdown(header, lines))


def draw(rows, path):
    """Draws accuracy against latency."""
    figure = Figure(figsize=(8.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, marker in zip(QUANTIZATIONS, "os", strict=True):
        for color, row in enumerate(rows):
            values = [100 * value for value in row["accuracy"][name]]
            axes.errorbar(
                row["milliseconds"][name],
                statistics.mean(values),
                yerr=statistics.stdev(values),
                fmt=marker,
                color=f"C{color}",
                capsize=3,
                label=f"{row['label']} ({name})",
            )
    axes.set(
        xscale="log",
        xlabel="LiteRT latency, ms (one image, one thread)",
        ylabel="test accuracy, %",
        title="Fashion-MNIST, MLP of 3 x 1024 units, RigL, three seeds",
    )
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="runs/patterns", type=pathlib.Path)
    parser.add_argument("--train-only", action="store_true", help="only train")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*(has no zeros|stored dense).*")
    train(options.output)
    if options.train_only:
        return
    rows = measure(options.output)
    print(table(rows))
    (options.output / "patterns.json").write_text(files.to_json({"rows": rows}))
    (options.output / "patterns.md").write_text(table(rows) + "\n")
    draw(rows, options.output / "patterns.png")


if __name__ == "__main__":
    main()
