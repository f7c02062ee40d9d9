"""The runs that the command line, the notebooks and the benchmarks share."""

import dataclasses
import json
import os
import pathlib
import platform
import shutil
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf

import tf_rigl
from tf_rigl import convert, data, methods, models
from tf_rigl._arguments import check_integer, check_sparsity, unknown_name

METHODS = ("dense", *methods.NAMES)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides a run.

    Attributes:
        dataset: str, see `tf_rigl.data.load`.
        model: str, see `tf_rigl.models.get`.
        method: str, "dense", or see `tf_rigl.methods.get`.
        sparsity: float in [0, 1); not used by "dense".
        distribution: str, see `tf_rigl.distributions.get`.
        epochs: int.
        batch_size: int.
        learning_rate: float, that of SGD with momentum 0.9 at the start; it falls to
            zero along half a cosine wave.
        drop_fraction: float in (0, 1].
        update_interval: int, or None for 100 steps, less in runs of under 5,000 (one
            step in 50).
        seed: int, for weights, masks, and the order of the examples.
    """

    dataset: str = "digits"
    model: str = "lenet-300-100"
    method: str = "rigl"
    sparsity: float = 0.9
    distribution: str = "erk"
    epochs: int = 60
    batch_size: int = 64
    learning_rate: float = 0.1
    drop_fraction: float = 0.3
    update_interval: int | None = None
    seed: int = 0

    def __post_init__(self):
        if self.method not in METHODS:
            raise unknown_name("method", self.method, METHODS, or_object=False)
        models.get(self.model)
        check_sparsity("sparsity", self.sparsity)
        for name in ("epochs", "batch_size"):
            check_integer(name, getattr(self, name), 1)
        check_integer("seed", self.seed, 0)
        if not self.learning_rate > 0:
            raise ValueError(
                "Argument `learning_rate` must be positive. "
                f"Received: learning_rate={self.learning_rate}"
            )

    @property
    def name(self) -> str:
        """A folder name that tells what the run was: what is not as usual is in it."""
        parts = [self.dataset, self.model, self.method]
        if self.method != "dense":
            parts += [f"{self.sparsity:g}", self.distribution]
        for field in dataclasses.fields(self)[5:]:
            value = getattr(self, field.name)
            if value != field.default or field.name == "seed":
                parts.append(f"{field.name.replace('_', '')}{value}")
        return "-".join(parts)

    def make_method(self, steps) -> methods.Method:
        """The method object for a run of so many steps."""
        if self.method == "static":
            return methods.Static()
        interval = self.update_interval
        if interval is None:
            interval = min(100, max(1, steps // 50))
        return type(methods.get(self.method))(
            drop_fraction=self.drop_fraction, update_interval=interval
        )


class MaskHistory(keras.callbacks.Callback):
    """Records at the end of each epoch how far the masks have moved.

    Attributes:
        since_start: list of dict, for each epoch the share of each layer's active
            entries, by path, that were not active at the start of training.
        since_last: the same, for those not active an epoch earlier.
    """

    def on_train_begin(self, logs=None):
        self.since_start, self.since_last = [], []
        self._first = self._last = self.model.masks

    def on_epoch_end(self, epoch, logs=None):
        masks = self.model.masks
        self.since_start.append(_moved(self._first, masks))
        self.since_last.append(_moved(self._last, masks))
        self._last = masks


def _moved(before, after):
    return {
        path: float(np.count_nonzero(mask & ~before[path]) / max(1, np.count_nonzero(mask)))
        for path, mask in after.items()
    }


def build(settings: Settings, dataset: data.Data) -> keras.Model:
    """A compiled model, sparse unless the method is "dense".

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
        model = convert.sparsify(
            model,
            method=settings.make_method(steps),
            sparsity=settings.sparsity,
            distribution=settings.distribution,
            seed=settings.seed,
        )
    rate = keras.optimizers.schedules.CosineDecay(settings.learning_rate, steps)
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def run(settings: Settings, *, data_dir=None, verbose="auto"):
    """Trains a model and measures it.

    Args:
        settings: `Settings`.
        data_dir: see `tf_rigl.data.load`.
        verbose: as in `keras.Model.fit`.

    Returns:
        The trained `keras.Model` and a dict that can be written as JSON: settings, test
        accuracy and loss, history, parameters, and for sparse models the layers and how
        their masks moved.
    """
    dataset = data.load(
        settings.dataset, settings.batch_size, seed=settings.seed, data_dir=data_dir
    )
    model = build(settings, dataset)
    sparse = settings.method != "dense"
    masks = MaskHistory()
    began = time.perf_counter()
    history = model.fit(
        dataset.train,
        validation_data=dataset.test,
        epochs=settings.epochs,
        verbose=verbose,
        shuffle=False,  # The pipeline shuffles already.
        callbacks=[masks] if sparse else [],
    )
    seconds = time.perf_counter() - began
    loss, accuracy = model.evaluate(dataset.test, verbose=0)
    result = {
        "settings": dataclasses.asdict(settings),
        "accuracy": accuracy,
        "loss": loss,
        "seconds": seconds,
        "steps": settings.epochs * len(dataset.train),
        "history": {k: [float(v) for v in values] for k, values in history.history.items()},
        **_sizes(model, sparse),
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
    return model, result


def _sizes(model, sparse):
    """Parameters, non-zero ones, and each masked layer's share."""
    items = model.masked_weights if sparse else []
    parameters = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    layers = []
    for item in items:
        entries, active = int(np.prod(item.weight.shape)), int(np.count_nonzero(item.mask))
        layers.append(
            {
                "path": item.path,
                "shape": list(item.weight.shape),
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


def summary(result) -> str:
    """A readable account of a result."""
    settings = result["settings"]
    title = f"{settings['method']} on {settings['dataset']}, {settings['model']}"
    lines = [
        f"{title}, {settings['epochs']} epochs ({result['steps']} steps), seed {settings['seed']}",
        f"  test accuracy   {result['accuracy']:.4f}",
        f"  parameters      {result['active_parameters']:,} of {result['parameters']:,} active",
    ]
    if result["layers"]:
        lines.append(f"  sparsity        {result['sparsity']:.4f} ({settings['distribution']})")
        width = max(len(layer["path"]) for layer in result["layers"])
        moved = result["masks_moved"]["since_start"][-1]
        for layer in result["layers"]:
            lines.append(
                f"    {layer['path']:<{width}}  sparsity {layer['sparsity']:.4f}  "
                f"active {layer['active']:>9,} of {layer['parameters']:>9,}  "
                f"moved {moved[layer['path']]:.0%}"
            )
    return "\n".join(lines)


def check_folder(folder) -> pathlib.Path:
    """Raises if a run cannot be written to a folder, before it is trained.

    Args:
        folder: str or path. It may be absent, empty, or that of an earlier run.

    Returns:
        The path.
    """
    folder = pathlib.Path(folder).resolve()
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not place.is_dir():
        raise ValueError(f"{str(place)!r} is a file. Received: output folder {str(folder)!r}")
    if not os.access(place, os.W_OK):
        raise ValueError(f"The output folder cannot be written. Received: {str(folder)!r}")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "result.json").exists():
        raise ValueError(
            "The output folder holds something other than an earlier run (it has no "
            f"result.json), so it is left alone. Received: {str(folder)!r}"
        )
    return folder


def write(folder, model, result, draw=None):
    """Writes a run folder, beside its place at first, and moves it there when it is whole.

    Args:
        folder: str or path; an earlier run there is replaced.
        model: the trained `keras.Model`, written as `model.keras`.
        result: dict, written as `result.json`.
        draw: function of `(result, path)` that writes a picture, or None.
    """
    folder = check_folder(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        scratch.chmod(0o755)
        model.save(scratch / "model.keras")
        (scratch / "result.json").write_text(json.dumps(result, indent=1) + "\n")
        if draw is not None:
            draw(result, scratch / "masks.png")
        if not folder.exists():
            scratch.rename(folder)
            return
        # It may be somebody's current folder: file by file, what marks it as a run last.
        written = {path.name for path in scratch.iterdir()}
        for name in sorted(written, key="result.json".__eq__):
            os.replace(scratch / name, folder / name)
        for name in {"masks.png"} - written:
            (folder / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
