"""One run: build a model, train it, measure it. Used by the command line and the benchmarks."""

import dataclasses
import math
import platform
import time

import keras
import numpy as np
import tensorflow as tf

import tf_rigl
from tf_rigl import callbacks
from tf_rigl.accounting import reporting
from tf_rigl.callbacks.explored import Exploration
from tf_rigl.convert import sparsifying
from tf_rigl.experiments import data, models
from tf_rigl.experiments.settings import Settings

_PICTURES = 6  # The connections of the input are counted at the start and after six epochs.


class MaskHistory(keras.callbacks.Callback):
    """Records at the end of each epoch how much the masks have changed.

    Attributes:
        since_start: list of dict, one for each epoch: the share of each layer's active
            entries, by path, that were inactive at the start of training.
        since_last: the same, for entries that were inactive an epoch earlier.
    """

    def on_train_begin(self, logs=None):
        self.since_start, self.since_last = [], []
        self._first = self._last = self.model.masks

    def on_epoch_end(self, epoch, logs=None):
        masks = self.model.masks
        self.since_start.append(_moved(self._first, masks))
        self.since_last.append(_moved(self._last, masks))
        self._last = masks


class InputConnections(keras.callbacks.Callback):
    """Counts the connections of each entry of the input, at a few epochs.

    The first masked weight must be a matrix with a row for each entry of the input, as in a
    dense layer on a flattened image. For other models, nothing is counted.

    Args:
        input_shape: tuple of int, of one example.
        epochs: int, the number of epochs of the training.

    Attributes:
        result: dict of the input's "shape", the "epochs" of the counts (0 is the start)
            and the "counts" at each of these; None if nothing is counted.
    """

    def __init__(self, input_shape, epochs):
        super().__init__()
        self._shape = tuple(input_shape)
        self._due = {round(i * epochs / _PICTURES) for i in range(_PICTURES + 1)}
        self.result = None

    def on_train_begin(self, logs=None):
        shape = self.model.masked_weights[0].shape if self.model.masked_weights else ()
        if len(shape) == 2 and shape[0] == math.prod(self._shape):
            self.result = {"shape": list(self._shape), "epochs": [], "counts": []}
            self.on_epoch_end(-1)

    def on_epoch_end(self, epoch, logs=None):
        if self.result is not None and epoch + 1 in self._due:
            mask = self.model.masked_weights[0].mask.numpy()
            self.result["epochs"].append(epoch + 1)
            self.result["counts"].append(mask.sum(axis=1).tolist())


def _moved(before, after):
    return {
        path: float(np.count_nonzero(mask & ~before[path]) / max(1, np.count_nonzero(mask)))
        for path, mask in after.items()
    }


def build(settings: Settings, dataset: data.Data) -> keras.Model:
    """Makes a compiled model, sparse unless the method is "dense".

    Args:
        settings: `Settings`.
        dataset: `tf_rigl.data.Data`.

    Returns:
        A `keras.Model`.
    """
    keras.utils.set_random_seed(settings.seed)
    model = models.get(settings.model)(dataset.input_shape, dataset.num_classes)
    steps = settings.epochs * len(dataset.train)
    if settings.method != "dense":
        model = sparsifying.sparsify(
            model,
            method=settings.make_method(steps),
            sparsity=settings.sparsity,
            distribution=settings.distribution,
            pattern=settings.pattern,
            seed=settings.seed,
            compute=settings.compute,
            initialization=settings.initialization,
        )
    rate = keras.optimizers.schedules.CosineDecay(settings.learning_rate, steps)
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def run(settings: Settings, *, data_dir=None, verbose="auto", csv=None):
    """Trains a model and measures it.

    Args:
        settings: `Settings`.
        data_dir: see `tf_rigl.data.load`.
        verbose: as in `keras.Model.fit`.
        csv: path of the file of a `tf_rigl.callbacks.SparsityLogger`, which also prints the
            figures of the masks after each epoch; None for no logger. Dense runs have none.

    Returns:
        The trained `keras.Model` and a dict of JSON values: settings, test accuracy and loss,
        history, parameters, and FLOPs (of the trained network for one example, of a training
        step for one example, and of the whole training). For sparse models also the layers,
        the changes of their masks, the share of their entries that were active at least once
        ("explored"), and the connections of each entry of the input.
    """
    dataset = data.load(
        settings.dataset, settings.batch_size, seed=settings.seed, data_dir=data_dir
    )
    steps = settings.epochs * len(dataset.train)
    model = build(settings, dataset)
    sparse = settings.method != "dense"
    masks = MaskHistory()
    inputs = InputConnections(dataset.input_shape, settings.epochs)
    exploration = Exploration()
    watchers = [masks, inputs, exploration]
    if csv is not None:
        watchers.append(callbacks.SparsityLogger(csv=csv))
    began = time.perf_counter()
    history = model.fit(
        dataset.train,
        validation_data=dataset.test,
        epochs=settings.epochs,
        verbose=verbose,
        shuffle=False,  # The pipeline shuffles already.
        callbacks=watchers if sparse else [],
    )
    seconds = time.perf_counter() - began
    loss, accuracy = model.evaluate(dataset.test, verbose=0)
    result = {
        "settings": dataclasses.asdict(settings),
        "accuracy": accuracy,
        "loss": loss,
        "seconds": seconds,
        "steps": steps,
        "history": {k: [float(v) for v in values] for k, values in history.history.items()},
        **_sizes(model, sparse),
        **_costs(model, settings, steps),
        "versions": {
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "tf_rigl": tf_rigl.__version__,
        },
    }
    if sparse:
        result["masks_moved"] = {
            "since_start": masks.since_start,
            "since_last_epoch": masks.since_last,
        }
        result["explored"] = exploration.explored.share(model)
        if inputs.result is not None:
            result["input_connections"] = inputs.result
    return model, result


def _sizes(model, sparse):
    """Counts parameters and active parameters, of the model and of each masked layer."""
    items = model.masked_weights if sparse else []
    # A block-sparse layer stores fewer parameters than its kernel has.
    shapes = {id(item.weight): item.shape for item in items}
    parameters = sum(math.prod(shapes.get(id(w), w.shape)) for w in model.trainable_weights)
    layers = []
    for item in items:
        entries, active = math.prod(item.shape), item.present()
        layers.append(
            {
                "path": item.path,
                "shape": list(item.shape),
                "target_sparsity": item.target_sparsity,
                "sparsity": 1 - active / entries,
                "parameters": entries,
                "active": active,
            }
        )
    zeros = sum(layer["parameters"] - layer["active"] for layer in layers)
    return {
        "sparsity": model.sparsity if sparse else 0.0,
        "parameters": parameters,
        "active_parameters": parameters - zeros,
        "layers": layers,
    }


def _costs(model, settings, steps):
    """Returns FLOPs and bytes of the network, and FLOPs of its training."""
    report = reporting.report(model)
    method = "dense" if settings.method == "dense" else model.method
    per_example = float(reporting.train_flops(report, method, steps=steps))
    keys = ("flops", "dense_flops", "bytes", "dense_bytes", "params", "dense_params")
    return {
        "report": {key: int(getattr(report, key)) for key in keys},
        "train_flops": per_example,
        "train_flops_total": per_example * steps * settings.batch_size,
    }


def summary(result) -> str:
    """Returns a result as text."""
    settings = result["settings"]
    title = f"{settings['method']} on {settings['dataset']}, {settings['model']}"
    report = result["report"]
    forward = report["flops"] / report["dense_flops"]
    training = result["train_flops"] / (3 * report["dense_flops"])
    lines = [
        f"{title}, {settings['epochs']} epochs ({result['steps']} steps), seed {settings['seed']}",
        f"  test accuracy   {result['accuracy']:.4f}",
        f"  parameters      {result['active_parameters']:,} of {result['parameters']:,} active",
        f"  FLOPs           {forward:.3f} of dense, {training:.3f} in training",
    ]
    if result["layers"]:
        lines.append(f"  sparsity        {result['sparsity']:.4f} ({settings['distribution']})")
        if "explored" in result:
            lines.append(f"  explored        {result['explored']:.4f} of the entries")
        width = max(len(layer["path"]) for layer in result["layers"])
        moved = result["masks_moved"]["since_start"][-1]
        for layer in result["layers"]:
            lines.append(
                f"    {layer['path']:<{width}}  sparsity {layer['sparsity']:.4f}  "
                f"active {layer['active']:>9,} of {layer['parameters']:>9,}  "
                f"moved {moved[layer['path']]:.0%}"
            )
    return "\n".join(lines)
