"""What a row of the sweep is: a function that makes a `Case`, and the ways to train it."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

BATCH, BATCHES, EPOCHS = 4, 6, 2

# What differs from RigL on single entries at 60%. "compile" and "policy" are Keras's own.
VARIANTS = {
    "": {},
    "set": {"method": "set"},
    "snfs": {"method": "snfs"},
    "magnitude": {"method": "magnitude"},
    "snip": {"method": "snip"},
    "block_4x1": {"pattern": "block_4x1"},
    "2:4": {"pattern": "2:4", "distribution": "uniform_all", "sparsity": 0.5},
    "jit": {"compile": {"jit_compile": True}},
    "executions": {"compile": {"steps_per_execution": 3}},
    "float16": {"policy": "mixed_float16"},
    "sparse compute": {
        "pattern": "block_8x8",
        "compute": "sparse",
        "distribution": "uniform_all",
        "sparsity": 0.5,
    },
}


def by_labels(model, **options):
    """Compiles a classifier whose outputs are logits."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"], **options)


def by_squares(model, **options):
    """Compiles a model that predicts numbers."""
    model.compile(keras.optimizers.Adam(0.01), "mse", **options)


def by_itself(model, **options):
    """Compiles a model that computes its own loss."""
    model.compile(optimizer=keras.optimizers.Adam(0.01), **options)


@dataclasses.dataclass
class Case:
    """A model and how it is trained.

    Attributes:
        model: a built `keras.Model`, whose classes are registered with Keras.
        x: structure of arrays, `BATCH * BATCHES` examples.
        y: structure of arrays, or None.
        compile: function of the sparse model and options of Keras.
        fit: dict, more arguments of `fit`.
        part: str, the attribute of the model that makes predictions, such as "generator".
            "" is the model itself.
        inputs: structure of arrays for that part. Defaults to the first two examples of `x`.
        train: function of the sparse model, a function `fit(**kwargs)`, and the module tf_rigl.
            It trains in place of one `fit`.
        after: function of the stripped model; it raises if what should work does not.
        sparsify: dict, more arguments of `tf_rigl.sparsify`.
        lite: dict, more arguments of `tf_rigl.export_tflite`.
        in_place: bool, whether `sparsify` has to change the model itself.
        unplanned: tuple of str, the figures of the report that training changes.
        moves: bool, whether its training is one under which masks change.
    """

    model: keras.Model
    x: object
    y: object = None
    compile: Callable = by_labels
    fit: dict = dataclasses.field(default_factory=dict)
    part: str = ""
    inputs: object = None
    train: Callable | None = None
    after: Callable | None = None
    sparsify: dict = dataclasses.field(default_factory=dict)
    lite: dict = dataclasses.field(default_factory=dict)
    in_place: bool = False
    unplanned: tuple = ()
    moves: bool = True

    def __post_init__(self):
        if self.inputs is None:
            self.inputs = keras.tree.map_structure(lambda array: array[:2], self.x)


@dataclasses.dataclass(frozen=True)
class Row:
    """One row: the name of a model, the function that makes its `Case`, and a variant."""

    name: str
    kind: str
    module: str
    make: Callable
    variant: str = ""

    @property
    def label(self) -> str:
        """The name of the row in tables and files."""
        return f"{self.name}, {self.variant}" if self.variant else self.name


ROWS = {}


def row(kind, variants=(), name=None):
    """Registers a function that makes a `Case`, as rows of a kind, one for each variant."""

    def register(make):
        module = make.__module__.rsplit(".", 1)[-1]
        title = name or make.__name__.replace("_", " ")
        for variant in ("", *variants):
            entry = Row(title, kind, module, make, variant)
            if entry.label in ROWS:
                raise ValueError(f"There are two rows of the name {entry.label!r}.")
            ROWS[entry.label] = entry
        return make

    return register


def rng():
    """The generator of a row's data."""
    return np.random.default_rng(0)


def floats(*shape, examples=BATCH * BATCHES):
    """Normal numbers."""
    return rng().normal(size=(examples, *shape)).astype("float32")


def integers(limit, *shape, examples=BATCH * BATCHES):
    """Labels or tokens below a limit."""
    return rng().integers(0, limit, (examples, *shape)).astype("int32")


def part_of(model, path):
    """Returns the part of a model under a dotted path of attributes."""
    for attribute in filter(None, path.split(".")):
        model = getattr(model, attribute)
    return model


def predictions(model, case_part, inputs) -> list:
    """Returns what a part of a model predicts, as a list of arrays."""
    outputs = part_of(model, case_part)(keras.tree.map_structure(_tensor, inputs), training=False)
    return [keras.ops.convert_to_numpy(each) for each in keras.tree.flatten(outputs)]


def _tensor(array):
    return tf.convert_to_tensor(array)
