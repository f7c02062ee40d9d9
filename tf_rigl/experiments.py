"""The runs that the command line, the notebooks and the benchmarks share."""

import dataclasses
import difflib
import inspect
import json
import math
import numbers
import os
import pathlib
import platform
import re
import shutil
import tempfile
import time
import urllib.parse

import keras
import numpy as np
import tensorflow as tf

import tf_rigl
from tf_rigl import convert, data, distributions, methods, models, schedules
from tf_rigl._arguments import check_integer, check_sparsity, unknown_name

METHODS = ("dense", *methods.NAMES)
OF_METHODS = ("drop_fraction", "update_interval")  # Settings that only some methods take.
_PICTURES = 6  # Epochs at which the connections of the input are counted, but for the start.


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
            step in 50); for "magnitude" the steps between prunings.
        options: dict of further arguments of the method, of values that JSON knows, such
            as `{"scope": "global"}`. For "magnitude" also those of its schedule.
        seed: int, for weights, masks, and the order of the examples.

    Raises:
        ValueError: if a value is out of range, or the method has no such option.

    Example:

    >>> Settings(method="set", options={"decay": "linear"}, seed=1).name
    'digits-lenet-300-100-set-0.9-erk-decay=linear-seed1'
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
    options: dict = dataclasses.field(default_factory=dict, hash=False)
    seed: int = 0

    def __post_init__(self):
        if self.method not in METHODS:
            raise unknown_name("method", self.method, METHODS, or_object=False)
        for name in ("dataset", "model", "distribution"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(
                    f"Argument `{name}` must be a name. Received: {name}={getattr(self, name)!r}"
                )
        models.get(self.model)
        distributions.get(self.distribution)
        for name in ("epochs", "batch_size"):
            check_integer(name, getattr(self, name), 1)
        check_integer("seed", self.seed, 0)
        # Numbers that are equal must give the same name.
        object.__setattr__(self, "sparsity", check_sparsity("sparsity", self.sparsity))
        for name in ("learning_rate", "drop_fraction"):
            object.__setattr__(self, name, _positive(name, getattr(self, name)))
        object.__setattr__(self, "options", self._checked_options())
        if self.method != "dense":
            self.make_method(steps=5_000)  # Of the usual interval: the true one is not known here.

    def _checked_options(self):
        """A copy of the options, after a look at their names and values."""
        try:
            options = json.loads(json.dumps(self.options, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(
                "Argument `options` must be a dict of values that JSON knows. "
                f"Received: options={self.options!r}"
            ) from error
        if not isinstance(options, dict):
            raise ValueError(
                f"Argument `options` must be a dict. Received: options={self.options!r}"
            )
        allowed = sorted(set(method_arguments(self.method)) - set(OF_METHODS))
        for key in options:
            if key not in allowed:
                close = difflib.get_close_matches(key, allowed, n=1, cutoff=0.5)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                names = ", ".join(map(repr, allowed)) or "none"
                raise ValueError(
                    f"The options of method {self.method!r} are: {names}.{hint} "
                    f"Received: {key}={options[key]!r}"
                )
        return options

    @property
    def name(self) -> str:
        """A folder name that tells what the run was: what is not as usual is in it."""
        parts = [urllib.parse.quote(self.dataset, safe=""), self.model, self.method]
        if self.method != "dense":
            parts += [f"{self.sparsity:g}", self.distribution]
        for field in dataclasses.fields(self)[5:]:
            value = getattr(self, field.name)
            if field.name == "options":
                parts += [f"{key}={_in_a_name(value[key])}" for key in sorted(value)]
            elif value != field.default or field.name == "seed":
                parts.append(f"{field.name.replace('_', '')}{value}")
        return "-".join(parts)

    def make_method(self, steps) -> methods.Method:
        """The method object for a run of so many steps."""
        cls = methods.NAMES[self.method]
        interval = self.update_interval
        if interval is None:
            interval = min(100, max(1, steps // 50))
        ours = {"drop_fraction": self.drop_fraction, "update_interval": interval}
        taken = _constructor_arguments(cls)
        arguments = {key: ours[key] for key in OF_METHODS if key in taken}
        arguments |= {key: value for key, value in self.options.items() if key in taken}
        if "schedule" in taken:
            check_integer("update_interval", interval, 1)
            others = {key: value for key, value in self.options.items() if key not in taken}
            arguments["schedule"] = schedules.PolynomialDecay(frequency=interval, **others)
        return cls(**arguments)


def method_arguments(method) -> list[str]:
    """What a method's name can be qualified with in `Settings`.

    Args:
        method: str, "dense" or a name that `tf_rigl.methods.get` knows.

    Returns:
        Names of arguments, in order: those of the constructor. In place of a schedule,
        which is an object, stand the arguments that make one.

    Example:

    >>> method_arguments("static")
    []
    """
    if method == "dense":
        return []
    names = _constructor_arguments(methods.NAMES[method])
    if "schedule" in names:
        names.remove("schedule")
        # Its frequency is the update interval, and where it ends is the sparsity.
        own = _constructor_arguments(schedules.PolynomialDecay)
        names += ["update_interval", *(n for n in own if n not in ("frequency", "final_sparsity"))]
    return names


def _constructor_arguments(cls):
    """Names of a constructor's arguments; where it takes `**kwargs`, its base's as well."""
    names = []
    for base in cls.__mro__[:-1]:
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
        variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        names += [p.name for p in parameters if p.kind not in variable and p.name not in names]
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    return names


def _positive(name, value):
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < value < math.inf:
        raise ValueError(f"Argument `{name}` must be a positive number. Received: {name}={value!r}")
    return float(value)


def _in_a_name(value):
    """A JSON value as part of a file name, another one for each value."""
    text = json.dumps(value, separators=(",", ":"), sort_keys=True)
    if isinstance(value, str):
        try:
            json.loads(value)  # What would read as a number, say, keeps its quotes.
        except ValueError:
            text = value
    return urllib.parse.quote(text, safe="[]{},:+")


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


class InputConnections(keras.callbacks.Callback):
    """Counts now and then how many connections each entry of the input has.

    It does so where the first masked weight is a matrix with a row for each entry of
    the input, as in a dense layer on a flattened image, and nothing elsewhere.

    Args:
        input_shape: tuple of int, of one example.
        epochs: int, how many there will be.

    Attributes:
        result: dict of the input's "shape", the "epochs" after which was counted (0 is
            the start) and, for each of these, the "counts"; None where there is nothing
            to count.
    """

    def __init__(self, input_shape, epochs):
        super().__init__()
        self._shape = tuple(input_shape)
        self._due = {round(i * epochs / _PICTURES) for i in range(_PICTURES + 1)}
        self.result = None

    def on_train_begin(self, logs=None):
        shape = self.model.masked_weights[0].weight.shape if self.model.masked_weights else ()
        if len(shape) == 2 and shape[0] == math.prod(self._shape):
            self.result = {"shape": list(self._shape), "epochs": [], "counts": []}
            self._count(0)

    def on_epoch_end(self, epoch, logs=None):
        if self.result is not None and epoch + 1 in self._due:
            self._count(epoch + 1)

    def _count(self, epoch):
        mask = self.model.masked_weights[0].mask.numpy()
        self.result["epochs"].append(epoch)
        self.result["counts"].append(mask.sum(axis=1).tolist())


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
        accuracy and loss, history, parameters, FLOPs (of the trained network for one
        example, of a training step for one example, and of the whole training), and for
        sparse models the layers, how their masks moved, and where in the input the
        connections of the first layer are.
    """
    dataset = data.load(
        settings.dataset, settings.batch_size, seed=settings.seed, data_dir=data_dir
    )
    model = build(settings, dataset)
    sparse = settings.method != "dense"
    masks = MaskHistory()
    inputs = InputConnections(dataset.input_shape, settings.epochs)
    began = time.perf_counter()
    history = model.fit(
        dataset.train,
        validation_data=dataset.test,
        epochs=settings.epochs,
        verbose=verbose,
        shuffle=False,  # The pipeline shuffles already.
        callbacks=[masks, inputs] if sparse else [],
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
        **_costs(model, settings, settings.epochs * len(dataset.train)),
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
        if inputs.result is not None:
            result["input_connections"] = inputs.result
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


def _costs(model, settings, steps):
    """What the network and its training cost, in FLOPs and bytes."""
    from tf_rigl import accounting

    report = accounting.report(model)
    method = "dense" if settings.method == "dense" else model.method
    per_example = float(accounting.train_flops(report, method, steps=steps))
    keys = ("flops", "dense_flops", "bytes", "dense_bytes", "params", "dense_params")
    return {
        "report": {key: int(getattr(report, key)) for key in keys},
        "train_flops": per_example,
        "train_flops_total": per_example * steps * settings.batch_size,
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
    if "report" in result:
        report = result["report"]
        forward = report["flops"] / report["dense_flops"]
        training = result["train_flops"] / (3 * report["dense_flops"])
        lines.append(f"  FLOPs           {forward:.3f} of dense, {training:.3f} in training")
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


def to_json(result) -> str:
    """A result as JSON, lists of numbers on one line.

    Example:

    >>> print(to_json({"counts": [1, 2]}), end="")
    {
     "counts": [1, 2]
    }
    """
    text = json.dumps(result, indent=1)
    # A line break cannot be within a JSON string, so this finds nothing but lists.
    lists = re.compile(r"\[\n[-+\d.,\seE]*\]")
    return lists.sub(lambda found: f"[{' '.join(found[0][1:-1].split())}]", text) + "\n"


def check_folder(folder, marks=("result.json",)) -> pathlib.Path:
    """Raises if a run cannot be written to a folder, before it is trained.

    Args:
        folder: str or path. It may be absent, empty, or that of an earlier run.
        marks: file names, of which an earlier run has at least one.

    Returns:
        The path.
    """
    folder = pathlib.Path(folder).resolve()
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not place.is_dir():
        raise ValueError(f"{str(place)!r} is a file. Received: output folder {str(folder)!r}")
    if not os.access(place, os.W_OK):
        raise ValueError(f"The output folder cannot be written. Received: {str(folder)!r}")
    marked = any((folder / mark).exists() for mark in marks)
    if folder.is_dir() and any(folder.iterdir()) and not marked:
        raise ValueError(
            "The output folder holds something other than an earlier run (it has no "
            f"{' or '.join(marks)}), so it is left alone. Received: {str(folder)!r}"
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
        (scratch / "result.json").write_text(to_json(result))
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
