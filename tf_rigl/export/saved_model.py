"""Exports a SavedModel that stores only the nonzero values of its sparse weights."""

import contextlib
import functools
import pathlib
import shutil
import tempfile

import keras
import numpy as np
import tensorflow as tf

from tf_rigl._base import files, keras_internals, registry
from tf_rigl._base.arguments import check_flag
from tf_rigl.export import _compact, _source
from tf_rigl.export.info import ExportInfo

_DTYPES = ("float16", "bfloat16", "float32", "float64")  # The types of weights that can be packed.
_HALF = ("float16", "bfloat16")
_OVERHEAD = 4096  # Bytes that packing a weight must save, because it makes the graph larger.
# For each value of a byte: its eight bits, spread over the eight bytes of an int64.
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_SPREAD = _BITS.view(np.int64).reshape(-1)


def export_saved_model(model, path, *, packed=True, check_data=None, compute="auto") -> ExportInfo:
    """Writes a model as a SavedModel that loads without tf_rigl and Keras.

    Use it like a SavedModel of `keras.Model.export`, with `tf.saved_model.load` or TensorFlow
    Serving: it has the same endpoints, the same names of inputs and outputs, and takes any batch
    size. If writing fails, or if the outputs differ from those of the Keras model, an older
    SavedModel at `path` stays and nothing else is left there.

    Args:
        model: a `tf_rigl.SparseModel`, or any built `keras.Model`.
        path: str or path, the folder to write. An older SavedModel there is replaced.
        packed: bool, whether sparse weights are stored as their nonzero values and one bit
            for each entry. Loading unpacks them once, so the model runs as fast as any
            other SavedModel.
        check_data: a batch on which the outputs are compared (a tuple if the model's `call`
            has several arguments). Defaults to random inputs.
        compute: str, "compact": the model of `tf_rigl.compact`, which computes only blocks that
            are there, or an error that says why there is none; "dense": zeros are computed;
            "auto": compact if a layer gains by it, otherwise dense.

    Returns:
        A `tf_rigl.export.ExportInfo`.

    Raises:
        ValueError: if an argument is invalid, or if the outputs of the SavedModel differ from
            those of `model`.

    Example:

    >>> info = tf_rigl.export_saved_model(sparse, "served")
    >>> loaded = tf.saved_model.load("served")
    >>> loaded.serve(x).shape
    TensorShape([64, 4])
    >>> info.max_abs_error < 1e-5
    True
    """
    place = _check_folder(path)
    packed = check_flag("packed", packed)
    wanted = compute if packed or compute != "auto" else "dense"
    small, entries = _compact.attempted(model, wanted, registry.COMPUTE[:-1])
    if small is None:
        model = _source.ordinary(model)
    given, model = model, small or model
    batch = _inputs(model, check_data)
    with _beside(place) as scratch:
        saved, names = _write(model, scratch, packed, _source.signature(model, check_data))
        error = _check(given, scratch, batch, names)
        size = sum(file.stat().st_size for file in scratch.rglob("*") if file.is_file())
    sizes = [_compact.left_out(each) * each.part.columns.itemsize for each in entries]
    return ExportInfo(str(path), size, size + saved + sum(sizes), error)


def _check_folder(path) -> pathlib.Path:
    """Returns the folder to write, or raises if it holds anything but an older SavedModel."""
    folder = files.check_place(path).resolve()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"Argument `path` must be a folder, not a file. Received: path={path!r}")
    if folder == pathlib.Path.cwd():
        raise ValueError(
            "Argument `path` must not be the current folder: a new one takes its place. "
            f"Received: path={path!r}"
        )
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "saved_model.pb").is_file():
        raise ValueError(
            "Argument `path` must be a new or empty folder, or an older SavedModel. This folder "
            f"holds something else (it has no saved_model.pb). Received: path={path!r}"
        )
    return folder


@contextlib.contextmanager
def _beside(folder):
    """Makes a new folder to write to. At the end it replaces the given folder."""
    holder = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    new, old = holder / "new", holder / "old"
    try:
        new.mkdir()
        yield new
        files.sync_tree(new)
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
        if folder.exists() or not old.exists():  # Otherwise `old` is the only copy.
            shutil.rmtree(holder, ignore_errors=True)


def _inputs(model, check_data) -> list:
    """Returns the arguments of a call on the check batch, as tensors."""
    if check_data is None:
        return keras.tree.map_structure(tf.convert_to_tensor, _source.check_batch(model, size=2))
    specs = _source.signature(model, check_data)
    batch = list(check_data) if len(specs) > 1 else [check_data]
    try:
        batch = _arranged(specs, batch)
        for spec, x in zip(keras.tree.flatten(specs), keras.tree.flatten(batch), strict=True):
            if not tf.TensorShape(spec.shape).is_compatible_with(x.shape):
                raise ValueError(f"an input has shape {x.shape}, but needs {spec.shape}")
            if not tf.size(x):
                raise ValueError("an input has no examples")
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"Argument `check_data` must be a batch of inputs of {model.name!r}. ({error})"
        ) from error
    return batch


def _arranged(specs, data):
    """Returns data as tensors in the structure of specs; one input may stand for a list of one."""
    if isinstance(specs, dict):
        if not isinstance(data, dict) or data.keys() != specs.keys():
            got = list(data) if isinstance(data, dict) else type(data)
            raise ValueError(f"it must be a dict with the keys {list(specs)}, not {got}")
        return {name: _arranged(spec, data[name]) for name, spec in specs.items()}
    if isinstance(specs, (list, tuple)):
        if len(specs) == 1 and not isinstance(data, (list, tuple)):
            data = [data]
        if not isinstance(data, (list, tuple)) or len(data) != len(specs):
            raise ValueError(f"it must be a list of {len(specs)} inputs")
        return [_arranged(spec, each) for spec, each in zip(specs, data, strict=True)]
    return keras.ops.convert_to_tensor(data, dtype=specs.dtype)


def _check(model, folder, batch, names) -> float:
    """Returns the largest difference between the outputs of a model and of its SavedModel."""
    loaded = tf.saved_model.load(str(folder))
    default = loaded.signatures["serving_default"]
    named = dict(zip(names, tf.nest.flatten(batch), strict=True))
    half = any(layer.compute_dtype in _HALF for layer in keras_internals.all_layers(model))
    worst = 0.0
    # A model may draw random numbers or keep a state. Within this scope its state advances from
    # call to call, as that of the SavedModel does; afterwards it is unchanged.
    infer = functools.partial(model, training=False)
    with keras.StatelessScope():
        for call in (lambda: loaded.serve(*batch), lambda: default(**named)):
            expected, outputs = _source.call(infer, *batch), call()
            if isinstance(outputs, dict) and not isinstance(expected, dict):
                outputs = [outputs[f"output_{n}"] for n in range(len(outputs))]
            error = _source.check_outputs(
                tf.nest.flatten(expected), tf.nest.flatten(outputs), 1e-2 if half else 1e-5
            )
            worst = max(worst, error)
    return worst


def _write(model, folder, packed, specs):
    """Writes a SavedModel; returns the bytes that packing saves, and the names of the inputs."""
    variables = [v for v in model.weights if packed and _saving(v) > _OVERHEAD]
    while True:
        weights = [_PackedWeight(variable, n) for n, variable in enumerate(variables)]
        archive, names, unfit = _archive(model, weights, specs)
        if not unfit:
            _source.write(archive, folder)
            return int(sum(_saving(variable) for variable in variables)), names
        variables = [variable for variable in variables if id(variable) not in unfit]


def _archive(model, weights, specs):
    """Makes the archive to write.

    Returns:
        The `keras.export.ExportArchive`; the names of its inputs; the ids of variables that
        must not be packed. The model assigns to those when it is called, such as the state of
        a recurrent layer, or reads them in another way than packing supports.
    """
    written = set()

    def serve(*args):  # Keras uses the name "args" for inputs without a name.
        values = [(weight.source, weight.read()) for weight in weights]
        with _Scope(values) as scope:
            outputs = model(*args, training=False)  # By default some layers augment images.
        written.update(scope.written)
        return outputs

    archive = keras.export.ExportArchive()
    serve = archive.add_endpoint("serve", serve, specs)
    concrete = serve.get_concrete_function()
    captured = {id(variable) for variable in concrete.variables}
    unfit = {id(w.source) for w in weights if id(w.source.value) in captured} | written

    # Track a holder in place of the model: the archive would store all variables of a model.
    # From the holder it stores the model's lookup tables only.
    holder = tf.Module()
    holder.model = model
    archive.track(holder)
    if weights:
        archive.track(_Restorer(weights))
    for name in ("values", "bits", "dense"):
        archive.add_variable_collection(f"packed_{name}", [getattr(w, name) for w in weights])
    # The other variables go under Keras's names, as `tf.Variable`s: `keras.Variable`s would be
    # stored twice.
    packed = {id(weight.source) for weight in weights}
    others = [v for v in model.weights if id(v) not in packed]
    for name, part in (
        ("variables", others),
        ("trainable_variables", [v for v in others if v.trainable]),
        ("non_trainable_variables", [v for v in others if not v.trainable]),
    ):
        archive.add_variable_collection(name, [v.value for v in part])
    return archive, keras_internals.argument_names(concrete), unfit


class _Scope(keras.StatelessScope):
    """Replaces the values of packed weights. Other variables are read and written as usual."""

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
    """A variable that is stored as its nonzero values and one bit for each entry.

    Attributes:
        source: `keras.Variable`.
        values, bits: `tf.Variable`, the stored parts.
        dense: `tf.Variable`, the whole weight. It is not stored; loading fills it.
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
        """Returns the unpacked value."""
        return self.dense.read_value()

    def restore(self):
        """Fills the dense variable from the stored values and bits."""
        shape = self.source.shape
        # A table look-up per byte of bits is several times faster than shifting the bits.
        spread = tf.gather(tf.constant(_SPREAD), tf.cast(self.bits, tf.int32))
        indices = tf.where(tf.reshape(tf.bitcast(spread, tf.uint8), [-1]))
        size = tf.constant([shape.num_elements()], tf.int64)
        self.dense.assign(tf.reshape(tf.scatter_nd(indices, self.values, size), shape))


class _Restorer(tf.saved_model.experimental.TrackableResource):
    """A resource that unpacks the weights: loaders initialise resources after the variables."""

    def __init__(self, weights):
        super().__init__()
        self.weights = weights

    def _create_resource(self):
        return tf.constant(0)  # A dummy handle: only the initialisation matters.

    def _initialize(self):
        for weight in self.weights:
            weight.restore()


def _saving(variable) -> int:
    """Returns the bytes that packing a variable saves; 0 if it cannot be packed."""
    if variable.dtype not in _DTYPES:
        return 0
    size = variable.shape.num_elements()
    zeros = size - np.count_nonzero(keras.ops.convert_to_numpy(variable))
    return zeros * tf.as_dtype(variable.dtype).size - (size + 7) // 8
