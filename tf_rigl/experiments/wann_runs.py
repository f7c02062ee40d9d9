"""The run of `tf-rigl wann`: a search for a weight-agnostic classifier of images."""

import pathlib

import numpy as np

from tf_rigl import wann
from tf_rigl._base import files
from tf_rigl.experiments import data, pictures
from tf_rigl.wann.searching import WEIGHTS

RESULT, MODEL, PICTURE = "result.json", "model.keras", "network.png"


def run(dataset, population, generations, seed, *, folder, size=None, data_dir=None):
    """Searches, and writes the result, a picture and a model of the best network.

    Each generation is stored in the folder, so the same call goes on where it was cut off.

    Args:
        dataset: str, see `tf_rigl.data.load`.
        population, generations, seed: as for `tf_rigl.wann.search`.
        folder: path.
        size: int, the number of training images, or None: all.
        data_dir: see `tf_rigl.data.load`.

    Returns:
        A dict: "accuracies" on the test images by shared weight, that of the "ensemble" over the
        weights, "connections", "hidden", "history" and the settings.
    """
    folder, loaded = pathlib.Path(folder), data.arrays(dataset, data_dir=data_dir)
    x, y = (array[:size] for array in loaded.train)
    task = wann.Classification(_flat(x), y, classes=loaded.num_classes)
    test = wann.Classification(_flat(loaded.test[0]), loaded.test[1], classes=loaded.num_classes)
    settings = {"dataset": dataset, "population": population, "seed": seed, "size": len(x)}
    begun = {"settings": {**settings, "generations": generations}, "history": []}
    if not (folder / RESULT).exists():  # A search that is refused leaves an earlier one's result.
        files.write_text(folder / RESULT, files.to_json(begun))
    found = wann.search(
        task, population=population, generations=generations, seed=seed, folder=folder
    )
    each, ensemble = test.accuracy(found.best, WEIGHTS)
    weight = WEIGHTS[int(np.argmax(task.accuracy(found.best, WEIGHTS)[0]))]
    with files.beside(folder / MODEL) as scratch:
        found.best.to_keras(weight).save(scratch)
    if (plots := pictures.drawing()) is not None:
        with files.beside(folder / PICTURE) as scratch:
            plots.draw_network(found.best, scratch)
    result = {
        "settings": {**settings, "generations": len(found.history)},  # The folder may hold more.
        "accuracies": dict(zip(map(str, WEIGHTS), map(float, each), strict=True)),
        "ensemble": ensemble,
        "connections": found.best.connections,
        "hidden": found.best.hidden,
        "history": found.history,
    }
    files.write_text(folder / RESULT, files.to_json(result))
    return result


def _flat(images):
    return np.reshape(images, (len(images), -1))


def summary(result) -> str:
    """Returns a few lines about a result."""
    rows = ", ".join(f"{weight}: {value:.4f}" for weight, value in result["accuracies"].items())
    return (
        f"{result['connections']} connections, {result['hidden']} hidden nodes\n"
        f"test accuracy by shared weight: {rows}\nensemble of the weights: {result['ensemble']:.4f}"
    )
