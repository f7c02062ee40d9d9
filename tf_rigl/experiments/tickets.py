"""What `tf-rigl tickets` does: tickets of several seeds, and what they are compared with."""

import dataclasses
import functools
import hashlib
import json
import math
import statistics
import time

import keras
import numpy as np
import tensorflow as tf

from tf_rigl._base import files
from tf_rigl._base.arguments import check_integer, unknown_name
from tf_rigl.experiments import data, models
from tf_rigl.lottery import controls as control
from tf_rigl.lottery.search import find_ticket
from tf_rigl.weights import maskable

RESULT, TABLE, PICTURE = "result.json", "table.md", "tickets.png"
OPTIMIZERS = {
    "adam": keras.optimizers.Adam,
    "sgd": functools.partial(keras.optimizers.SGD, momentum=0.9),
}
# What a ticket is compared with: functions of the ticket, the dense model and a seed.
CONTROLS = {
    "reinitialised": control.reinitialised,
    "random": lambda ticket, model, seed: control.random_mask(ticket, seed),
    "shuffled": control.shuffled,
}
DENSITIES = (0.51, 0.21, 0.07, 0.036)  # Those at which tickets are compared.
_AT_ONCE = 2500  # Examples that are evaluated at once.


@dataclasses.dataclass(frozen=True)
class TicketSettings:
    """Everything that decides a training, but for its seed.

    The defaults are those of the paper for LeNet-300-100.

    Attributes:
        dataset: str, see `tf_rigl.data.load`.
        model: str, see `tf_rigl.models.get`. Its kernels are drawn by Glorot's normal
            distribution (those of depthwise convolutions by their own).
        prune_fraction: float in (0, 1), the fraction of the weights left that a round prunes;
            half of it in the output layer, if the scope is "layer".
        scope: "layer" or "global", as in `tf_rigl.lottery.find_ticket`.
        rewind_step: int, a multiple of `every`.
        optimizer: "adam", or "sgd" with momentum 0.9.
        learning_rate: float, constant.
        warm_up: int, steps in which the learning rate rises to that.
        epochs: int, passes over what of the training data is not held out. The last steps
            are made up to a multiple of `every`.
        batch_size: int.
        every: int, steps between evaluations on the held-out and on the test data.

    Reference:

    - [The Lottery Ticket Hypothesis](https://arxiv.org/abs/1803.03635), figure 2.
    """

    dataset: str = "digits"
    model: str = "lenet-300-100"
    prune_fraction: float = 0.2
    scope: str = "layer"
    rewind_step: int = 0
    optimizer: str = "adam"
    learning_rate: float = 1.2e-3
    warm_up: int = 0
    epochs: int = 60
    batch_size: int = 60
    every: int = 100

    def __post_init__(self):
        models.get(self.model)
        for name, least in (("epochs", 1), ("batch_size", 1), ("every", 1), ("warm_up", 0)):
            check_integer(name, getattr(self, name), least)
        for name in ("learning_rate", "prune_fraction"):
            value = getattr(self, name)
            if not 0 < value < (1 if name == "prune_fraction" else math.inf):
                limit = "in (0, 1)" if name == "prune_fraction" else "above 0"
                raise ValueError(
                    f"Argument `{name}` must be a number {limit}. Received: {name}={value!r}"
                )
        for name, allowed in (("optimizer", OPTIMIZERS), ("scope", ("layer", "global"))):
            if getattr(self, name) not in allowed:
                raise unknown_name(name, getattr(self, name), allowed, or_object=False)
        if check_integer("rewind_step", self.rewind_step, 0) % self.every:
            raise ValueError(
                "Argument `rewind_step` must be a multiple of `every`. Received: "
                f"rewind_step={self.rewind_step}, every={self.every}"
            )

    def make_optimizer(self, step):
        """A new optimizer for a training that begins at a step."""
        rate = self.learning_rate
        if self.warm_up > step:
            rate = control.from_step(control.warm_up(rate, self.warm_up), step)
        return OPTIMIZERS[self.optimizer](rate)


def tickets(
    settings,
    rounds=15,
    seeds=(0, 1, 2, 3, 4),
    controls=("reinitialised", "random"),
    densities=None,
    *,
    folder,
    data_dir=None,
    command=None,
):
    """Searches for tickets with several seeds, and trains what they are compared with.

    Each training is evaluated every so many steps. Where the loss on the held-out data (a
    twelfth of the training data) is least, it would have been stopped: that step and the
    test accuracy there are what is compared. Every finished training is stored at once, so
    that a command that was cut off goes on where it was, and one with more rounds, seeds
    or controls does only those.

    Args:
        settings: `TicketSettings`.
        rounds: int, as in `tf_rigl.lottery.find_ticket`.
        seeds: iterable of int, for weights, the order of the data, and what is held out.
        controls: iterable of str, from "reinitialised", "random" and "shuffled".
        densities: iterable of float in (0, 1), of `(1 - prune_fraction)^round`: the nearest
            rounds are those whose tickets are compared with controls. Defaults to those of
            0.51, 0.21, 0.07 and 0.036 that so many rounds reach.
        folder: str or path; absent, empty, or that of an earlier command.
        data_dir: see `tf_rigl.data.load`.
        command: str, kept with the rows, to say how they were made.

    Returns:
        A list of dict, the rows of the table.

    Raises:
        ValueError: if an argument is not possible, or the folder holds something else.

    Example:

        rows = tickets(TicketSettings("fashion_mnist", epochs=6), folder="runs/tickets")
    """
    rounds = check_integer("rounds", rounds, 0)
    seeds, controls = list(dict.fromkeys(seeds)), list(dict.fromkeys(controls))
    if not seeds:
        raise ValueError(f"Argument `seeds` must not be empty. Received: seeds={seeds}")
    for name in controls:
        if name not in CONTROLS:
            raise unknown_name("controls", name, CONTROLS, or_object=False)
    compared = []
    if controls:
        if densities is None:
            reached = (1 - settings.prune_fraction) ** (rounds + 0.5)
            densities = [each for each in DENSITIES if each > reached]
        compared = compared_rounds(densities, settings.prune_fraction, rounds)
    folder = files.check_folder(folder, (RESULT,))
    rows = _earlier_rows(folder / RESULT, settings)
    about = {
        "settings": dataclasses.asdict(settings),
        "rounds": rounds,
        "seeds": seeds,
        "controls": controls,
        "command": command,
    }
    images = _arrays(settings.dataset, data_dir)
    _check_rewind_step(settings, len(images["train"][0]))
    files.write_text(folder / RESULT, files.to_json({**about, "rows": rows}))
    progress = _Progress(len(seeds) * (rounds + 1 + len(controls) * len(compared)))
    runs = []
    for seed in seeds:
        runs += _one_seed(settings, images, rounds, seed, controls, compared, folder, progress)
        rows = _rows(runs)
        files.write_text(folder / TABLE, table(rows))
        files.write_text(folder / RESULT, files.to_json({**about, "rows": rows}))
    _draw(rows, folder / PICTURE)
    return rows


def compared_rounds(densities, prune_fraction, rounds) -> list[int]:
    """The rounds after which about such fractions of the weights are left.

    Example:

    >>> compared_rounds([0.51, 0.21, 0.07, 0.036], 0.2, rounds=15)
    [3, 7, 12, 15]
    """
    result = []
    for density in densities:
        if not 0 < density < 1:
            raise ValueError(
                "Argument `densities` must be numbers in (0, 1): fractions of weights that are "
                f"left. Received: {density!r}"
            )
        number = max(1, round(math.log(density) / math.log(1 - prune_fraction)))
        if number > rounds:
            raise ValueError(
                f"Argument `densities` must be such that are reached: {density:g} needs {number} "
                f"rounds. Received: rounds={rounds}"
            )
        result.append(number)
    return sorted(set(result))


def _earlier_rows(path, settings):
    """The rows of an earlier command in the folder; raises if its settings were others."""
    if not path.exists():
        return []
    result, wanted = json.loads(path.read_text(encoding="utf-8")), dataclasses.asdict(settings)
    stored = result.get("settings", {})
    names = [name for name in wanted if stored.get(name) != wanted[name]]
    if names:
        raise ValueError(
            "The output folder holds trainings with other settings: "
            f"{', '.join(f'{n}={stored.get(n)!r}' for n in names)}. Received: {settings}"
        )
    return result.get("rows", [])


def _steps(settings, examples):
    """How many steps a training has: whole epochs, made up to a multiple of `every`."""
    in_epoch = max(1, examples // settings.batch_size)
    return -(-settings.epochs * in_epoch // settings.every) * settings.every


def _held_out(examples):
    return max(1, examples // 12)


def _check_rewind_step(settings, examples):
    steps = _steps(settings, examples - _held_out(examples))
    if settings.rewind_step >= steps:
        raise ValueError(
            f"Argument `rewind_step` must be less than the {steps} steps of a training. "
            f"Received: rewind_step={settings.rewind_step}"
        )


class _Progress:
    """Says after each training how long the rest will take."""

    def __init__(self, total):
        self.left, self.total, self.trained = total, total, 0
        self.began = time.perf_counter()

    def skip(self, count):
        """Counts trainings that are stored already."""
        self.left -= count

    def add(self, name, history):
        """Counts one that is new."""
        self.left, self.trained = self.left - 1, self.trained + 1
        minutes = (time.perf_counter() - self.began) / self.trained * self.left / 60
        accuracy, step = _stopped(history)
        print(
            f"[{self.total - self.left}/{self.total}, {minutes:.0f} min left] {name}: "
            f"{accuracy:.4f} at step {step}",
            flush=True,
        )


def _one_seed(settings, images, rounds, seed, controls, compared, folder, progress):
    """Trains what is not trained yet; returns a list of (kind, round, density, seed, history)."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    model = _dense(settings, images)
    train = functools.partial(_train, settings=settings, images=_split(images, seed), seed=seed)
    before = progress.trained

    def fit(sparse):
        history = train(sparse)
        progress.add(f"ticket of {1 - sparse.sparsity:.1%}, seed {seed}", history)
        return history

    found = find_ticket(
        model,
        fit,
        rounds,
        settings.prune_fraction,
        settings.rewind_step,
        settings.scope,
        rates=_rates(model, settings),
        folder=folder / "tickets" / f"seed{seed}",
        seed=seed,
    )
    progress.skip(rounds + 1 - (progress.trained - before))
    runs = [("ticket", each.round, each.density, seed, each.history) for each in found]
    for number in compared:
        for name in controls:
            path = folder / "runs" / f"{name}-round{number:02}-seed{seed}.json"
            # A round that is searched again may end in another mask.
            mask = _checksum(found[number].masks)
            history = _read(path)
            if history is None or history.pop("mask", mask) != mask:
                changed = CONTROLS[name](found[number], model, seed)
                keras.utils.set_random_seed(seed)
                history = train(changed.model(model))
                files.write_text(path, files.to_json({**history, "mask": mask}))
                progress.add(f"{name} of {changed.density:.1%}, seed {seed}", history)
            else:
                progress.skip(1)
            runs.append((name, number, found[number].density, seed, history))
    return runs


def _checksum(masks):
    digest = hashlib.sha256()
    for mask in masks.values():
        digest.update(np.packbits(mask))
    return digest.hexdigest()


def _read(path):
    """The history of a training that is stored, or None."""
    if not path.exists():
        return None
    try:
        history = json.loads(path.read_text(encoding="utf-8"))
        _stopped(history)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"The stored training {str(path)!r} cannot be used ({type(error).__name__}: {error}). "
            "Delete it to have it done again."
        ) from error
    return history


def _rates(model, settings):
    """The output layer, which is small, is pruned half as fast, as in the paper."""
    if settings.scope == "global":
        return None
    last = maskable.find(model, include_self=False)[-1]
    return {last.path: settings.prune_fraction / 2}


def _dense(settings, images):
    """The dense network, with weights of Glorot's normal distribution."""
    shape, classes = images["train"][0].shape[1:], int(images["train"][1].max()) + 1
    model = models.get(settings.model)(shape, classes)

    def normal(layer):
        config = layer.get_config()
        if "kernel_initializer" in config:
            config["kernel_initializer"] = keras.initializers.GlorotNormal()
        return type(layer).from_config(config)

    return keras.models.clone_model(model, clone_function=normal)


def _arrays(name, data_dir):
    """A data set in memory: a dict of "train" and "test" to images and labels."""
    loaded = data.arrays(name, data_dir=data_dir)
    return {"train": loaded.train, "test": loaded.test}


def _split(images, seed):
    """The same with a twelfth of the training data held out, "val"."""
    x, y = images["train"]
    order = np.random.default_rng(seed).permutation(len(x))
    held_out = _held_out(len(x))
    parts = {"val": order[:held_out], "train": order[held_out:]}
    return {"test": images["test"]} | {name: (x[part], y[part]) for name, part in parts.items()}


def _train(model, settings, images, seed):
    """Trains a network from the step where it is; returns how it went, a dict of lists."""
    x, y = (tf.constant(each) for each in images["train"])
    count = (_steps(settings, len(x)) - model.step) // settings.every
    # Indices are shuffled, not images, which would take longer than the training.
    batches = tf.data.Dataset.range(len(x)).shuffle(len(x), seed=seed).repeat()
    batches = batches.batch(settings.batch_size, drop_remainder=True).skip(model.step)
    batches = batches.map(lambda some: (tf.gather(x, some), tf.gather(y, some))).prefetch(8)
    model.compile(
        settings.make_optimizer(model.step),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=settings.every,
    )
    curve = _Curve({part: images[part] for part in ("val", "test")})
    model.fit(
        batches,
        steps_per_epoch=settings.every,
        epochs=count,
        shuffle=False,
        verbose=0,
        callbacks=[curve],
    )
    return curve.history


class _Curve(keras.callbacks.Callback):
    """Measures loss and accuracy on several data sets."""

    def __init__(self, sets):
        super().__init__()
        self._sets = {
            name: [(tf.constant(x[i : i + _AT_ONCE]), y[i : i + _AT_ONCE])
                   for i in range(0, len(x), _AT_ONCE)]
            for name, (x, y) in sets.items()
        }  # fmt: skip
        self.history = {"step": []}

    def on_train_begin(self, logs=None):
        # A partial has no code, by which TensorFlow would count all models' traces as one's.
        call = functools.partial(self.model, training=False)
        self._predict = tf.function(call, reduce_retracing=True, autograph=False)

    def on_epoch_end(self, epoch, logs=None):
        self.history["step"].append(self.model.step)
        for name, batches in self._sets.items():
            logits = np.concatenate([self._predict(x).numpy() for x, _ in batches])
            labels = np.concatenate([y for _, y in batches])
            logits = logits.astype("float64") - logits.max(axis=1, keepdims=True)
            losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]
            hits = logits.argmax(axis=1) == labels
            self.history.setdefault(f"{name}_loss", []).append(float(losses.mean()))
            self.history.setdefault(f"{name}_accuracy", []).append(float(hits.mean()))


def _stopped(history):
    """Test accuracy and step where the loss on the held-out data is least."""
    losses = np.nan_to_num(np.array(history["val_loss"], float), nan=np.inf)
    best = int(np.argmin(losses))
    return history["test_accuracy"][best], history["step"][best]


def _rows(runs):
    """A row for each kind of network and round, over all seeds."""
    groups = {}
    for kind, number, density, seed, history in runs:
        groups.setdefault((number, kind), []).append((density, seed, history))
    order = ["ticket", *CONTROLS]
    rows = []
    for number, kind in sorted(groups, key=lambda key: (key[0], order.index(key[1]))):
        own = groups[number, kind]
        stopped = [_stopped(history) for _, _, history in own]
        rows.append(
            {
                "kind": kind,
                "round": number,
                "density": statistics.fmean(density for density, _, _ in own),
                "seeds": [seed for _, seed, _ in own],
                "accuracy": _spread([accuracy for accuracy, _ in stopped]),
                "stop_step": _spread([step for _, step in stopped]),
                "last_accuracy": _spread([h["test_accuracy"][-1] for _, _, h in own]),
                "last_loss": _spread([h["test_loss"][-1] for _, _, h in own]),
            }
        )
    return rows


def _spread(values):
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"values": values, "mean": statistics.fmean(values), "std": std}


def table(rows) -> str:
    """The rows as a Markdown table.

    Args:
        rows: list of dict, from `tickets`.
    """
    lines = [
        "| weights left, % | network | test accuracy, % | early-stopping step | "
        "accuracy at the end, % | seeds |",
        "| ---: | :--- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        accuracy, last = (_text(row[key], 100, 2) for key in ("accuracy", "last_accuracy"))
        kind = "dense" if row["round"] == 0 else row["kind"]
        lines.append(
            f"| {100 * row['density']:.1f} | {kind} | {accuracy} | {_text(row['stop_step'], 1, 0)} "
            f"| {last} | {len(row['seeds'])} |"
        )
    note = (
        "Early-stopping step: where the loss on held-out data is least; test accuracy is that of "
        "this step.\nMean ± sample standard deviation over seeds."
    )
    return "\n".join(lines) + f"\n\n{note}\n"


def _text(spread, scale, digits):
    text = f"{scale * spread['mean']:.{digits}f}"
    return text if spread["std"] is None else f"{text} ± {scale * spread['std']:.{digits}f}"


def _draw(rows, path):
    """Draws the rows, where matplotlib is installed."""
    try:
        from tf_rigl.experiments import plots
    except ModuleNotFoundError as error:
        print(f"No picture is drawn ({error}): pip install 'tf_rigl[plots]'", flush=True)
        return
    with files.beside(path) as scratch:
        plots.draw_tickets(rows, scratch)
