"""Accuracy of dense, static, SET and RigL training on Fashion-MNIST, LeNet-300-100.

    python benchmarks/fashion_mnist.py

trains each method at each sparsity with several seeds, prints a table of mean and
standard deviation of the test accuracy, and writes it beside this file as JSON.
"""

import argparse
import itertools
import json
import pathlib
import statistics
import time

from tf_rigl.experiments import Settings, run


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.95, 0.98])
    parser.add_argument("--methods", nargs="+", default=["static", "set", "rigl"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--output", default=pathlib.Path(__file__).with_suffix(".json"))
    options = parser.parse_args()

    shared = {"dataset": "fashion_mnist", "batch_size": 128, "epochs": options.epochs}
    cells = [("dense", 0.0), *itertools.product(options.methods, options.sparsities)]
    accuracies = {}
    began, total = time.perf_counter(), len(cells) * options.seeds
    for number, (cell, seed) in enumerate(itertools.product(cells, range(options.seeds)), 1):
        method, sparsity = cell
        settings = Settings(method=method, sparsity=sparsity, seed=seed, **shared)
        _, result = run(settings, verbose=0)
        accuracies.setdefault(cell, []).append(result["accuracy"])
        left = (time.perf_counter() - began) / number * (total - number)
        print(
            f"[{number}/{total}, {left / 60:.0f} min left] {settings.name}: "
            f"{result['accuracy']:.4f}",
            flush=True,
        )

    rows = [
        {
            "method": method,
            "sparsity": sparsity,
            "mean": statistics.mean(values),
            "std": statistics.stdev(values) if len(values) > 1 else 0.0,
            "accuracies": values,
        }
        for (method, sparsity), values in accuracies.items()
    ]
    print(f"\n{'method':8} {'sparsity':>8}  test accuracy, mean and std of {options.seeds}")
    for row in rows:
        print(
            f"{row['method']:8} {row['sparsity']:8.2f}  {100 * row['mean']:.2f} ± "
            f"{100 * row['std']:.2f}"
        )
    text = json.dumps({"settings": {**shared, "seeds": options.seeds}, "rows": rows}, indent=1)
    pathlib.Path(options.output).write_text(text + "\n")


if __name__ == "__main__":
    main()
