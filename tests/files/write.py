"""Writes the files beside this one: models, a backup and a ticket, and what becomes of them.

Version 0.1.0 wrote the stored files, before the package was rearranged. They must not be
rewritten: `tests/test_old_files.py` proves by them that later versions read what earlier ones
wrote. A version that cannot read them has to be changed, not the files. For new kinds of files
add new cases, and write those alone.

    python tests/files/write.py FOLDER

A first process trains each network for a few steps and saves it. A second one loads it, notes
what it predicts and its masks, trains it on, and notes the masks and weights that it ends with,
all in `FOLDER/expected`.
"""

import argparse
import contextlib
import dataclasses
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable

import keras
import numpy as np

import tf_rigl

BATCH, CLASSES = 8, 3
STEPS_BEFORE, STEPS_AFTER = 5, 6
BACKUP_EPOCHS, BACKUP_BATCHES, BACKUP_FREQUENCY, BACKUP_LAST_STEP = 2, 8, 4, 14
KERAS, WEIGHTS = ".keras", ".weights.h5"

# The classes in `lottery` are known to Keras once it has been used.
dense, lottery, methods = keras.layers.Dense, tf_rigl.lottery, tf_rigl.methods


@keras.saving.register_keras_serializable(package="old_files")
class Subclassed(keras.Model):
    """A model with a `call` of its own, which Keras can copy."""

    def __init__(self, units=8, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.hidden = dense(units, activation="tanh", name="hidden")
        self.norm = keras.layers.BatchNormalization(name="norm")
        self.dropout = keras.layers.Dropout(0.2, seed=1)
        self.head = dense(CLASSES, name="head")

    def call(self, x, training=False):
        x = self.norm(self.hidden(x), training=training)
        return self.head(self.dropout(x, training=training))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable(package="old_files")
class Own(tf_rigl.SparseModel):
    """A subclass of `SparseModel` with masked layers made by hand."""

    def __init__(self, method="rigl", **kwargs):
        super().__init__(method=method, **kwargs)
        self.hidden = tf_rigl.MaskedLayer(dense(8, name="dense_8"), sparsity=0.5, seed=1)
        self.head = tf_rigl.MaskedLayer(dense(CLASSES, name="dense_3"), sparsity=0.5, seed=2)

    def call(self, x):
        return self.head(keras.ops.tanh(self.hidden(x)))


def mlp():
    """Two layers: most cases use it."""
    inputs = keras.Input((12,), name="inputs")
    x = dense(8, activation="tanh", name="hidden")(inputs)
    return keras.Model(inputs, dense(CLASSES, name="head")(x), name="mlp")


def wide():
    """Layers that blocks of 16 inputs, of 4 inputs, and none fit."""
    inputs = keras.Input((16,), name="inputs")
    x = dense(12, activation="tanh", name="first")(inputs)
    x = dense(6, activation="tanh", name="second")(x)
    return keras.Model(inputs, dense(CLASSES, name="head")(x), name="wide")


def conv():
    """A convolution with normalisation.

    It has no bias: its gradient would be rounding errors alone, which Adam makes large.
    """
    inputs = keras.Input((5, 5, 2), name="inputs")
    x = keras.layers.Conv2D(6, 3, use_bias=False, name="conv")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(keras.ops.tanh(x))
    return keras.Model(inputs, dense(CLASSES, name="head")(x), name="conv_net")


def words():
    """An embedding and a recurrent layer."""
    inputs = keras.Input((5,), dtype="int32", name="inputs")
    x = keras.layers.Embedding(9, 6, name="embedding")(inputs)
    x = keras.layers.GRU(4, name="gru")(x)
    return keras.Model(inputs, dense(CLASSES, name="head")(x), name="words")


def nested():
    """A model within a model, called twice, and a layer that is shared."""
    inner_inputs = keras.Input((12,), name="inner_inputs")
    x = dense(6, activation="tanh", name="down")(inner_inputs)
    inner = keras.Model(inner_inputs, dense(12, name="up")(x), name="inner")
    inputs, shared = keras.Input((12,), name="inputs"), dense(12, "tanh", name="shared")
    x = shared(inner(shared(inner(inputs))))
    return keras.Model(inputs, dense(CLASSES, name="head")(x), name="nested")


def projections():
    """Layers of every kind that can store blocks, but attention."""
    inputs = keras.Input((2, 2, 8), name="inputs")
    x = keras.layers.Conv2D(8, 1, activation="tanh", name="conv")(inputs)
    x = keras.layers.Reshape((4, 8), name="sequence")(x)
    x = keras.layers.EinsumDense("abc,cd->abd", (4, 8), bias_axes="d", name="einsum")(x)
    x = dense(8, activation="tanh", name="hidden")(keras.layers.Flatten(name="flat")(x))
    return keras.Model(inputs, dense(CLASSES, name="head")(x), name="projections")


def attention():
    """One layer of attention."""
    inputs = keras.Input((3, 8), name="inputs")
    x = keras.layers.MultiHeadAttention(2, 4, name="attention")(inputs, inputs)
    x = keras.layers.Flatten(name="flat")(x)
    return keras.Model(inputs, dense(CLASSES, name="head")(x), name="attention_net")


def by_hand():
    """A graph of masked layers."""
    inputs = keras.Input((12,), name="inputs")
    hidden, head = dense(8, "tanh", name="hidden"), dense(CLASSES, name="head")
    x = tf_rigl.MaskedLayer(hidden, 0.5, pattern="block_2x1", seed=1)(inputs)
    x = tf_rigl.MaskedLayer(head, sparsity=0.5, seed=2)(x)
    return tf_rigl.SparseModel(inputs, x, method=rigl(), seed=3, name="by_hand")


def own_subclass():
    """A subclass of `SparseModel`, which has been called."""
    model = Own(rigl(), seed=3, name="own")
    model(np.zeros((1, 12), "float32"))
    return model


_OFTEN = {"drop_fraction": 0.5, "update_interval": 2, "end_step": 1000, "decay": "constant"}


def rigl(**kwargs):
    """RigL that moves half of the connections at each second step."""
    return methods.RigL(**{**_OFTEN, **kwargs})


def magnitude(**kwargs):
    """Pruning from the first step on to one that comes after the file."""
    schedule = tf_rigl.schedules.PolynomialDecay(begin_step=1, end_step=9, frequency=2)
    return methods.MagnitudePruning(schedule, **kwargs)


def sgd():
    """SGD with momentum."""
    return keras.optimizers.SGD(0.1, momentum=0.9)


def adam():
    """Adam."""
    return keras.optimizers.Adam(0.02)


def warmed_up():
    """SGD with a learning rate schedule of the library."""
    return keras.optimizers.SGD(lottery.warm_up(0.1, 8), momentum=0.9)


def sparsified(network, method, pattern="unstructured", **kwargs):
    """What makes a sparse model of a network."""
    arguments = {"sparsity": 0.5, "distribution": "uniform_all", "seed": 0, **kwargs}
    return lambda: tf_rigl.sparsify(network(), method(), pattern=pattern, **arguments)


@dataclasses.dataclass(frozen=True)
class Case:
    """A model to be saved.

    Attributes:
        make: function that returns the sparse model, not compiled.
        optimizer: function that returns an optimizer.
        shape: tuple of int, that of an input; of integers where it is `words`.
        steps: int, for how many steps it is trained before it is saved.
        files: tuple of str, what it is saved as.
        arguments: dict, further arguments of `compile`.
    """

    make: Callable
    optimizer: Callable = sgd
    shape: tuple = (12,)
    steps: int = STEPS_BEFORE
    files: tuple = (KERAS,)
    arguments: dict = dataclasses.field(default_factory=lambda: {"run_eagerly": True})

    def model(self):
        """The sparse model, compiled."""
        model = self.make()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(self.optimizer(), loss, **self.arguments)
        return model


BOTH = (KERAS, WEIGHTS)

CASES = {
    # Methods.
    "static": Case(sparsified(mlp, methods.Static)),
    "set": Case(
        sparsified(mlp, lambda: methods.SET(0.5, 2, end_step=1.0, grow_initializer="ones"))
    ),
    "rigl": Case(sparsified(mlp, rigl), files=BOTH),
    "rigl_batches": Case(
        sparsified(mlp, lambda: rigl(update_interval=3, gradient_batches=2)), adam, files=BOTH
    ),
    "rigl_compiled": Case(sparsified(mlp, rigl), adam, arguments={}),
    "snfs": Case(sparsified(mlp, lambda: methods.SNFS(**_OFTEN)), files=BOTH),
    "snip": Case(sparsified(mlp, methods.SNIP), adam),
    "snip_batches": Case(sparsified(mlp, lambda: methods.SNIP(batches=2)), steps=1),
    "snip_global": Case(sparsified(mlp, lambda: methods.SNIP(scope="global", batches=3))),
    "magnitude": Case(sparsified(mlp, magnitude), adam),
    "magnitude_global": Case(sparsified(mlp, lambda: magnitude(scope="global"))),
    "edge_popup": Case(
        sparsified(mlp, lambda: methods.EdgePopup("signed_constant", scale=True)), files=BOTH
    ),
    # Patterns.
    "block_4x1": Case(sparsified(mlp, rigl, "block_4x1"), adam),
    "two_of_four": Case(sparsified(mlp, lambda: methods.SET(**_OFTEN), "2:4")),
    "constant_fan_in": Case(sparsified(mlp, rigl, "constant_fan_in_2x2", exclude=["head"])),
    "litert": Case(sparsified(wide, rigl, "litert"), shape=(16,)),
    # Networks.
    "conv": Case(sparsified(conv, rigl, distribution="erk"), adam, (5, 5, 2)),
    "words": Case(sparsified(words, rigl), shape=(5,)),
    "nested": Case(sparsified(nested, rigl), adam),
    "subclassed": Case(sparsified(Subclassed, rigl), adam, files=BOTH),
    "by_hand": Case(by_hand),
    "own_subclass": Case(own_subclass),
    "warmed_up": Case(sparsified(mlp, rigl), warmed_up),
    # Layers that store their blocks.
    "blocks": Case(
        sparsified(projections, rigl, "block_2x4", compute="sparse"), adam, (2, 2, 8), files=BOTH
    ),
    "blocks_attention": Case(
        sparsified(attention, rigl, "block_2x2", compute="sparse"), shape=(3, 8)
    ),
}


def data(name, steps):
    """Inputs, multiples of a quarter that take little room, and labels, of so many batches."""
    rng = np.random.default_rng([*name.encode()])
    size = (steps * BATCH, *(CASES[name].shape if name in CASES else (12,)))
    if name == "words":
        x = rng.integers(0, 9, size).astype("int32")
    else:
        x = (np.round(4 * rng.normal(size=size)) / 4).astype("float32")
    return x, rng.integers(0, CLASSES, len(x)).astype("int8")


def train(model, x, y, **kwargs):
    """Trains for an epoch, or so many, in order and in silence."""
    return model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, **kwargs)


def predict(model, x):
    """What a model predicts for the first batch."""
    return keras.ops.convert_to_numpy(model(x[:BATCH], training=False))


def backed_up_model(seed=0):
    """The model of the backup: with dropout, statistics, slots, and gradients that are kept.

    Its schedule follows from the length of the whole run.
    """
    keras.utils.set_random_seed(seed)
    layers = [
        keras.Input((12,), name="inputs"),
        dense(8, activation="tanh", name="hidden"),
        keras.layers.BatchNormalization(name="norm"),
        keras.layers.Dropout(0.2, name="dropout"),
        dense(CLASSES, name="head"),
    ]
    method = methods.RigL(0.5, update_interval=3, end_step=0.9, gradient_batches=3)
    make = sparsified(lambda: keras.Sequential(layers, name="backed_up"), lambda: method)
    return Case(make, adam).model()


def backup(folder):
    """The callback that writes the backup and goes on from it."""
    return tf_rigl.callbacks.BackupAndRestore(folder, save_freq=BACKUP_FREQUENCY)


def ticket_model(seed=0):
    """The dense network of the ticket."""
    keras.utils.set_random_seed(seed)
    return mlp()


def compile_dense(model):
    """Compiles what trains a ticket."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(sgd(), loss, run_eagerly=True)


def _masks(prefix, model):
    return {f"{prefix}/{path}": mask for path, mask in model.masks.items()}


def _weights(model):
    return {f"weight/{n}": value for n, value in enumerate(model.get_weights())}


def _state(prefix, model):
    return {f"{prefix}_step": np.int64(model.step), **_masks(f"{prefix}_mask", model)}


class _Cut(Exception):
    pass


class _CutAtStep(keras.callbacks.Callback):
    """Ends a run as a crash does."""

    def on_train_batch_end(self, batch, logs=None):
        if self.model.step == BACKUP_LAST_STEP:
            raise _Cut


def write(folder):
    """Writes all files, but what is expected of them."""
    for name, case in CASES.items():
        keras.backend.clear_session()
        keras.utils.set_random_seed(1)
        model = case.model()
        x, y = data(name, case.steps + STEPS_AFTER)
        train(model, x[: case.steps * BATCH], y[: case.steps * BATCH])
        for ending in case.files:
            if ending == KERAS:
                model.save(folder / f"{name}{ending}")
            else:
                model.save_weights(folder / f"{name}{ending}")

    x, y = data("backup", BACKUP_BATCHES)
    callbacks = [backup(folder / "backup"), _CutAtStep()]
    with contextlib.suppress(_Cut):
        train(backed_up_model(), x, y, epochs=BACKUP_EPOCHS, callbacks=callbacks)

    x, y = data("ticket", STEPS_BEFORE)

    def fit(model):
        compile_dense(model)
        return train(model, x, y)

    dense_model = ticket_model()
    lottery.find_ticket(dense_model, fit, rounds=2, rewind_step=2)[-1].save(folder / "ticket.npz")
    lottery.low_precision(ticket_model(), "int8").save(folder / "rounded.keras")


def note(folder):
    """Loads all files in another process, and writes what becomes of the models in them."""
    expected = folder / "expected"
    expected.mkdir()
    for name, case in CASES.items():
        keras.backend.clear_session()
        x, y = (array[case.steps * BATCH :] for array in data(name, case.steps + STEPS_AFTER))
        model = keras.models.load_model(folder / f"{name}{KERAS}")
        noted = {"x": x, "y": y, "predictions": predict(model, x), **_state("first", model)}
        train(model, x, y)
        np.savez_compressed(
            expected / f"{name}.npz", **noted, **_state("last", model), **_weights(model)
        )

    keras.backend.clear_session()
    x, y = data("backup", BACKUP_BATCHES)
    model = backed_up_model(seed=2)
    with tempfile.TemporaryDirectory() as scratch:
        copy = shutil.copytree(folder / "backup", pathlib.Path(scratch, "backup"))
        train(model, x, y, epochs=BACKUP_EPOCHS, callbacks=[backup(copy)])
    np.savez_compressed(
        expected / "backup.npz", x=x, y=y, **_state("last", model), **_weights(model)
    )

    keras.backend.clear_session()
    x, y = data("ticket", STEPS_AFTER)
    ticket = lottery.Ticket.load(folder / "ticket.npz")
    model = ticket.model(ticket_model(seed=2))
    noted = {"x": x, "y": y, "predictions": predict(model, x), **_state("first", model)}
    noted["trained"] = predict(ticket.model(ticket_model(seed=2), trained=True), x)
    noted["loss"] = np.array(ticket.history["loss"])
    compile_dense(model)
    train(model, x, y)
    np.savez_compressed(
        expected / "ticket.npz", **noted, **_state("last", model), **_weights(model)
    )

    x, _ = data("rounded", 1)
    model = keras.models.load_model(folder / "rounded.keras")
    np.savez_compressed(expected / "rounded.npz", x=x, predictions=predict(model, x))


def main():
    """Writes the files into an empty folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path, help="where to write; not where this is")
    parser.add_argument("--note", action="store_true", help="what the second process does")
    arguments = parser.parse_args()
    if arguments.note:
        note(arguments.folder)
        return
    arguments.folder.mkdir(parents=True)
    write(arguments.folder)
    subprocess.run([sys.executable, __file__, arguments.folder, "--note"], check=True)


if __name__ == "__main__":
    main()
