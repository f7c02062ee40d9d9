"""A SavedModel that stores of its sparse weights only what is not zero."""

import contextlib
import pathlib
import shutil
import tempfile

import keras
import numpy as np
import tensorflow as tf

from tf_rigl._base import keras_internals
from tf_rigl.export import _source
from tf_rigl.export.info import ExportInfo

_DTYPES = ("float16", "bfloat16", "float32", "float64")  # Of weights that can be packed.
_HALF = ("float16", "bfloat16")
_OVERHEAD = 4096  # Bytes that packing a weight must save: it makes the graph larger.
# For each byte the eight that hold one of its bits each, as an integer.
_SPREAD = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_SPREAD = _SPREAD.view(np.int64).reshape(-1)


def export_saved_model(model, path, *, packed=True, check_data=None) -> ExportInfo:
    """Writes a model as a SavedModel, which needs neither tf_rigl nor Keras to be loaded.

    It is used like one that `keras.Model.export` has written, by `tf.saved_model.load`
    and by TensorFlow Serving: the same endpoints, the same names of inputs and outputs,
    any batch size. Nothing is left at `path`, and what was there stays, if it cannot be
    written or does not give the outputs of the Keras model.

    Args:
        model: a `tf_rigl.SparseModel`, or any built `keras.Model`.
        path: str or path, the folder to write. An older SavedModel there is replaced.
        packed: bool, whether sparse weights are stored as their non-zero values and a
            bit for each entry. They are restored once, when the SavedModel is loaded,
            so that it runs as fast as any other.
        check_data: inputs as the model takes them (a tuple, where its `call` takes several
            arguments), on which the outputs are compared. Defaults to random ones.

    Returns:
        A `tf_rigl.export.ExportInfo`.

    Raises:
        ValueError: if an argument is not what it must be, or if the outputs of what was
            written are not those of `model`.

    Example:

    >>> info = tf_rigl.export.export_saved_model(sparse, "served/1")
    >>> loaded = tf.saved_model.load("served/1")
    >>> outputs = loaded.serve(x)
    """
    place = _check_folder(path)
    if not isinstance(packed, bool):
        raise ValueError(f"Argument `packed` must be True or False. Received: packed={packed!r}")
    model = _source.ordinary(model)
    batch = _inputs(model, check_data)
    with _beside(place) as scratch:
        saved, names = _write(model, scratch, packed)
        error = _check(model, scratch, batch, names)
        size = sum(file.stat().st_size for file in scratch.rglob("*") if file.is_file())
    return ExportInfo(str(path), size, size + saved, error)


def _check_folder(path) -> pathlib.Path:
    """The folder to write, if it is free or an older SavedModel."""
    folder = _source.check_place(path).resolve()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"Argument `path` must be a folder, not a file. Received: path={path!r}")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "saved_model.pb").is_file():
        raise ValueError(
            "Argument `path` must be a new or empty folder, or an older SavedModel: this one "
            f"holds something else (it has no saved_model.pb). Received: path={path!r}"
        )
    return folder


@contextlib.contextmanager
def _beside(folder):
    """A folder to write to, which then takes the place of another."""
    holder = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    new, old = holder / "new", holder / "old"
    try:
        new.mkdir()
        yield new
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except BaseException:
            if old.exists():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if folder.exists() or not old.exists():  # Else it is the only copy there is.
            shutil.rmtree(holder, ignore_errors=True)


# What is compared.


def _inputs(model, check_data) -> list:
    """The arguments of a call on which outputs are compared, as tensors."""
    if check_data is None:
        return keras.tree.map_structure(tf.convert_to_tensor, _source.check_batch(model, size=2))
    specs = _source.signature(model)
    batch = list(check_data) if len(specs) > 1 else [check_data]
    try:
        batch = keras.tree.map_structure(
            lambda spec, x: keras.ops.convert_to_tensor(x, dtype=spec.dtype), specs, batch
        )
        for spec, x in zip(keras.tree.flatten(specs), keras.tree.flatten(batch), strict=True):
            if not tf.TensorShape(spec.shape).is_compatible_with(x.shape):
                raise ValueError(f"an input of shape {x.shape} in place of {spec.shape}")
            if not tf.size(x):
                raise ValueError("an input without an example")
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"Argument `check_data` must be a batch of inputs of {model.name!r}. ({error})"
        ) from error
    return batch


def _check(model, folder, batch, names) -> float:
    """The largest difference between the outputs of a model and what was written of it."""
    loaded = tf.saved_model.load(str(folder))
    default = loaded.signatures["serving_default"]
    named = dict(zip(names, tf.nest.flatten(batch), strict=True))
    half = any(layer.compute_dtype in _HALF for layer in keras_internals.all_layers(model))
    worst = 0.0
    # A model may draw random numbers or keep a state: at each call it goes on as what was
    # written does, and in the end it is as it was.
    with keras.StatelessScope():
        for call in (lambda: loaded.serve(*batch), lambda: default(**named)):
            expected, outputs = _source.call(model, *batch), call()
            if isinstance(outputs, dict) and not isinstance(expected, dict):
                outputs = [outputs[f"output_{n}"] for n in range(len(outputs))]
            error = _source.check_outputs(
                tf.nest.flatten(expected), tf.nest.flatten(outputs), 1e-2 if half else 1e-5
            )
            worst = max(worst, error)
    return worst


# What is written.


def _write(model, folder, packed):
    """Writes a SavedModel; returns by how much weights are smaller, and the names of inputs."""
    variables = [v for v in model.weights if packed and _saving(v) > _OVERHEAD]
    while True:
        weights = [_PackedWeight(variable, n) for n, variable in enumerate(variables)]
        archive, names, unfit = _archive(model, weights)
        if not unfit:
            _source.write(archive, folder)
            return int(sum(_saving(variable) for variable in variables)), names
        variables = [variable for variable in variables if id(variable) not in unfit]


def _archive(model, weights):
    """What is to be written, its inputs, and the variables (their ids) that must not be packed.

    Those are the ones that the model writes to when it is called, such as the state of a
    recurrent layer, and those that it reads in a way of its own.
    """
    written = set()

    def serve(*args):  # A name that Keras gives to inputs without one.
        values = [(weight.source, weight.read()) for weight in weights]
        with _Scope(values) as scope:
            outputs = model(*args)
        written.update(scope.written)
        return outputs

    archive = keras.export.ExportArchive()
    serve = archive.add_endpoint("serve", serve, _source.signature(model))
    concrete = serve.get_concrete_function()
    captured = {id(variable) for variable in concrete.variables}
    unfit = {id(w.source) for w in weights if id(w.source.value) in captured} | written

    # Not the model itself: the archive would take all its variables along.
    holder = tf.Module()
    holder.model = model  # Of which it takes lookup tables.
    archive.track(holder)
    if weights:
        archive.track(_Restorer(weights))
    for name in ("values", "bits", "dense"):
        archive.add_variable_collection(f"packed_{name}", [getattr(w, name) for w in weights])
    # The rest under the names that Keras gives them, but not as its own variables: those it
    # would store twice.
    packed = {id(weight.source) for weight in weights}
    rest = [v for v in model.weights if id(v) not in packed]
    for name, part in (
        ("variables", rest),
        ("trainable_variables", [v for v in rest if v.trainable]),
        ("non_trainable_variables", [v for v in rest if not v.trainable]),
    ):
        archive.add_variable_collection(name, [v.value for v in part])
    return archive, keras_internals.argument_names(concrete), unfit


class _Scope(keras.StatelessScope):
    """Gives packed weights other values; all else is read and written as ever."""

    def __init__(self, values):
        super().__init__(values)
        self.packed, self.written = set(self.state_mapping), set()

    def add_update(self, update):
        variable, value = update
        if id(variable) in self.packed:
            self.written.add(id(variable))
            super().add_update(update)
        else:
            keras_internals.assign_directly(variable, value)


class _PackedWeight:
    """A variable that is stored as its non-zero values and a bit for each entry.

    Attributes:
        source: `keras.Variable`.
        values, bits: `tf.Variable`, what is stored.
        dense: `tf.Variable`, which is not stored, but filled when it is loaded.
    """

    def __init__(self, source, number):
        self.source = source
        value = np.asarray(keras.ops.convert_to_numpy(source)).reshape(-1)
        keep = value != 0
        bits = np.packbits(keep, bitorder="little")

        def make(value, name):
            return tf.Variable(value, trainable=False, name=f"packed_{number}_{name}")

        self.values, self.bits = make(value[keep], "values"), make(bits, "bits")
        self.dense = make(value.reshape(source.shape), "dense")
        keras_internals.leave_value_out(self.dense)

    def read(self):
        """The restored value."""
        return self.dense.read_value()

    def restore(self):
        """Fills the dense variable from what is stored."""
        shape = self.source.shape
        # Eight entries at once, a byte each: several times as fast as shifting the bits.
        spread = tf.gather(tf.constant(_SPREAD), tf.cast(self.bits, tf.int32))
        indices = tf.where(tf.reshape(tf.bitcast(spread, tf.uint8), [-1]))
        size = tf.constant([shape.num_elements()], tf.int64)
        self.dense.assign(tf.reshape(tf.scatter_nd(indices, self.values, size), shape))


class _Restorer(tf.saved_model.experimental.TrackableResource):
    """What fills the packed weights: loaders initialise resources once variables are there."""

    def __init__(self, weights):
        super().__init__()
        self.weights = weights

    def _create_resource(self):
        return tf.constant(0)  # Nothing more is needed of it than to be initialised.

    def _initialize(self):
        for weight in self.weights:
            weight.restore()


def _saving(variable) -> int:
    """By how many bytes a variable is smaller packed than dense; 0 if it cannot be packed."""
    if variable.dtype not in _DTYPES:
        return 0
    size = variable.shape.num_elements()
    zeros = size - np.count_nonzero(keras.ops.convert_to_numpy(variable))
    return zeros * tf.as_dtype(variable.dtype).size - (size + 7) // 8
