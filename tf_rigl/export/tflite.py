"""A LiteRT (TFLite) file with sparse weights, checked with the interpreter that runs it."""

import contextlib
import itertools
import os
import re
import sys
import tempfile
import warnings

import keras
import numpy as np
import tensorflow as tf

from tf_rigl._base import files
from tf_rigl._base.arguments import check_integer, unknown_name
from tf_rigl._base.keras_internals import all_layers
from tf_rigl.export import _source
from tf_rigl.export.info import ExportInfo

# What outputs may differ by from the Keras model's, as a part of their largest magnitude.
_TOLERANCE = {None: 1e-4, "float16": 1e-2, "dynamic": 0.2, "int8": 0.3}
# The same from the outputs of the file without sparse weights: there only rounding differs.
_SPARSE_TOLERANCE = {None: 1e-4, "float16": 1e-4, "dynamic": 1e-2, "int8": 0.05}
_LEAST_MAGNITUDE = 1e-2  # Smaller outputs are compared as if they had this one.
_MOST_SAMPLES = 200  # More of a representative data set change the ranges little.
_CHECKED = 8  # Examples of the check batch, where the batch axis is free.


def export_tflite(
    model,
    path,
    *,
    quantization=None,
    representative_dataset=None,
    batch_size=None,
    packed=True,
    check_data=None,
) -> ExportInfo:
    """Writes a LiteRT (TFLite) file, in which weights with zeros are stored sparse.

    What is stored sparse, and what runs faster for it, depends on the layer, the pattern
    and the quantization:

    - `Dense`, `EinsumDense`, attention and recurrent layers in blocks of 4 or 16 inputs
      ("block_4x1", "block_16x1", "litert") with at least 70% zeros run on sparse kernels in
      float32, where 4 divides a layer's inputs. Only these are faster as well as smaller:
      at 90%, 2 to 3 times (layers of 1024 units, batch 1, one thread of x86).
    - All other weights of these layers, of convolutions and of `Embedding` are unpacked when
      the file is loaded: a smaller file, just as fast. So is everything with "float16", where
      XNNPACK is there (without it LiteRT converts float16 weights at every call).
    - With "int8", blocks of 16 run sparse where 16 divides a layer's inputs (on x86 at about
      half the speed of the dense kernels), and convolutions are unpacked. Other dense
      layers, and all with "dynamic", stay dense, and a warning says so: LiteRT refuses
      them sparse, or computes wrong outputs.

    A weight is stored sparse where that saves a tenth of it: from about 40% zeros
    (float32, unstructured) or 15% (blocks).

    Args:
        model: a `tf_rigl.SparseModel`, or any built `keras.Model` with zeros in its weights.
        path: str or path of the file to write; its folder must exist. Any suffix.
        quantization: None (float32), "float16" (weights), "dynamic" (int8 weights, float
            activations) or "int8" (weights and activations; inputs and outputs stay as
            they are in Keras, so callers need not quantize).
        representative_dataset: for "int8" only, and needed there: inputs as for `fit`, from
            which the ranges of activations are taken, at most 200 examples. A
            `tf.data.Dataset` of batches, with or without labels; an array, or a list or
            dict of arrays for several inputs; or, as for TensorFlow's converter, a
            function that yields lists of arrays.
        batch_size: int to fix the batch axis, which some layers need, such as `LSTM`. By
            default it is free, at no cost in speed: it is 1 until
            `resize_tensor_input` (or a call of the signature) changes it.
        packed: bool, whether zeros are taken out. Without, the file is the dense one:
            larger, and on some machines faster with "int8".
        check_data: inputs for the check against the Keras model, as an array or a structure
            of arrays. Defaults to the first examples of `representative_dataset`, or random
            numbers.

    Returns:
        An `ExportInfo`; its `dense_bytes` is the size of the same file before zeros are
        taken out.

    Raises:
        ValueError: if an argument is out of range, TensorFlow's converter refuses the model,
            or the outputs differ from those of the Keras model by more than 1e-4 (float16:
            1e-2, dynamic: 0.2, int8: 0.3) of their largest magnitude. Nothing is written
            then, and an older file stays.

    Example:

    >>> info = tf_rigl.export_tflite(sparse, "model.tflite")
    >>> interpreter = ai_edge_litert.interpreter.Interpreter("model.tflite")
    >>> run = interpreter.get_signature_runner()
    >>> outputs = run(input_0=x)["output_0"]

    Inputs are named as in Keras, or "input_0", "input_1" where they have no name; outputs
    by their keys in a dict, or "output_0", "output_1".

    Reference:

    - [Fast Sparse ConvNets](https://arxiv.org/abs/1911.09723).
    """
    place = _source.check_place(path)
    if place.is_dir():
        raise ValueError(f"Argument `path` must not be a folder. Received: path={str(path)!r}")
    if quantization not in tuple(_TOLERANCE):
        names = [name for name in _TOLERANCE if name]
        raise unknown_name("quantization", quantization, names, or_object=False)
    if (quantization == "int8") != (representative_dataset is not None):
        raise ValueError(
            "Argument `representative_dataset` must be given with quantization='int8', and only "
            f"with it. Received: quantization={quantization!r}, representative_dataset="
            f"{'None' if representative_dataset is None else type(representative_dataset)}"
        )
    if batch_size is not None:
        batch_size = check_integer("batch_size", batch_size, 1)
    model = _source.ordinary(model)
    has_zeros = _source.has_zeros(model)
    loops = [x for x in all_layers(model) if isinstance(x, keras.layers.RNN) and not x.unroll]
    if quantization == "int8" and loops:  # The converter would end the program: no exception.
        raise ValueError(
            "Argument `quantization` cannot be 'int8' for recurrent layers that loop: TensorFlow's "
            "converter crashes. Build them with `unroll=True`, or pass another quantization. "
            f"Received: a model with layer {loops[0].name!r}"
        )
    call = _Call(model, batch_size)
    samples = call.samples("representative_dataset", representative_dataset)
    batches = call.check_batches(call.samples("check_data", check_data) or samples)

    with tempfile.TemporaryDirectory() as folder:
        call.save(folder)
        dense = _convert(folder, quantization, call.batches(samples))
    expected = [call.outputs(batch) for batch in batches]
    outputs = [_run(dense, batch) for batch in batches]
    _check(expected, outputs, _TOLERANCE[quantization])
    content, received = dense, outputs
    if packed:
        content, received = _sparse(dense, batches, outputs, quantization, has_zeros)
    error = _check(expected, received, _TOLERANCE[quantization])
    with files.beside(place) as scratch:
        scratch.write_bytes(content)
    return ExportInfo(str(path), len(content), len(dense), error)


class _Call:
    """A model's call with inputs and outputs by name."""

    def __init__(self, model, batch_size):
        self._model = model
        self._structure = _source.signature(model)
        self._batch_size = batch_size
        specs = keras.tree.flatten(self._structure)
        names = _names(self._structure, specs)
        self.specs = dict(zip(names, specs, strict=True))

    def _outputs(self, inputs):
        arguments = keras.tree.pack_sequence_as(self._structure, list(inputs))
        outputs = self._model(*arguments, training=False)
        if isinstance(outputs, dict) and not any(map(keras.tree.is_nested, outputs.values())):
            return outputs
        return {f"output_{n}": each for n, each in enumerate(keras.tree.flatten(outputs))}

    def outputs(self, batch) -> dict:
        """The outputs of the Keras model."""
        inputs = [keras.ops.convert_to_tensor(x) for x in batch.values()]
        outputs = _source.call(self._outputs, inputs)
        return {name: keras.ops.convert_to_numpy(x) for name, x in outputs.items()}

    def save(self, folder):
        """Writes a SavedModel, which is what TensorFlow converts best."""
        signature = [
            tf.TensorSpec((self._batch_size, *spec.shape[1:]), spec.dtype, name)
            for name, spec in self.specs.items()
        ]
        archive = keras.export.ExportArchive()
        archive.track(self._model)
        archive.add_endpoint("serve", lambda *inputs: self._outputs(inputs), signature)
        _source.write(archive, folder)

    def samples(self, argument, data) -> list:
        """Examples out of whatever holds data, each a dict of arrays with a batch axis of 1."""
        samples = []
        for flat in _flat(argument, data, self._structure):
            samples += self._split(argument, flat)
            if len(samples) >= _MOST_SAMPLES:
                break
        if data is not None and not samples:
            raise ValueError(f"Argument `{argument}` must hold at least one example.")
        return samples[:_MOST_SAMPLES]

    def _split(self, argument, flat):
        """A batch as single examples."""
        arrays = [np.asarray(x) for x in flat]
        shapes = [array.shape for array in arrays]
        wanted = [(None, *spec.shape[1:]) for spec in self.specs.values()]
        fits = len(shapes) == len(wanted) and all(
            len(has) == len(needs) and all(m in (None, n) for n, m in zip(has, needs, strict=True))
            for has, needs in zip(shapes, wanted, strict=True)
        )
        if not fits or len({shape[0] for shape in shapes}) != 1:
            raise ValueError(
                f"Argument `{argument}` must hold batches of the model's inputs, of shapes "
                f"{wanted}. Received one of shapes {shapes}"
            )
        pairs = list(zip(self.specs.items(), arrays, strict=True))
        return [
            {name: array[n : n + 1].astype(spec.dtype) for (name, spec), array in pairs}
            for n in range(min(len(arrays[0]), _MOST_SAMPLES))
        ]

    def batches(self, samples) -> list:
        """Examples in batches of the fixed size, or one by one; the last is filled up."""
        size = self._batch_size or 1
        groups = [samples[n : n + size] for n in range(0, len(samples), size)]
        return [_joined(list(itertools.islice(itertools.cycle(g), size))) for g in groups]

    def check_batches(self, samples) -> list:
        """What the check runs: where the batch axis is free, batches of two sizes."""
        size = self._batch_size or _CHECKED
        if not samples:
            random = keras.tree.flatten(_source.check_batch(self._model, size))
            samples = self._split("check_data", [array[:size] for array in random])
        if self._batch_size:
            return self.batches(samples[: max(size, _CHECKED)])
        return [samples[0], _joined(samples[:_CHECKED])]


def _names(structure, specs):
    """A name for each input, as close to Keras as a signature can have it."""
    keys = [path[-1] for path, _ in keras.tree.flatten_with_path(structure)]
    names = []
    for number, (key, spec) in enumerate(zip(keys, specs, strict=True)):
        name = key if isinstance(key, str) else spec.name or ""
        name = re.sub(r"\W", "_", name)
        # What Keras makes up it numbers through the whole run of a program.
        if re.fullmatch(r"((keras_tensor|input_layer)(_\d+)?)?", name) or name in names:
            name = f"input_{number}"
        names.append(name)
    return names


def _flat(argument, data, structure):
    """The batches in whatever holds data, each as a list of arrays in the model's order."""
    if data is None:
        return
    if callable(data) and not isinstance(data, tf.data.Dataset):
        data = data()
    whole = isinstance(data, (list, tuple, dict)) or hasattr(data, "__array__")
    if not whole and not hasattr(data, "__iter__"):
        raise ValueError(f"Argument `{argument}` must be a batch or batches. Received: {data!r}")
    keys = [path[-1] for path, _ in keras.tree.flatten_with_path(structure)]
    for x in [data] if whole else data:
        # As in Keras, a tuple is inputs and labels; a list is several inputs.
        x = keras.utils.unpack_x_y_sample_weight(x)[0] if isinstance(x, tuple) else x
        if isinstance(x, dict) and all(isinstance(key, str) for key in keys):
            yield [x[key] for key in keys if key in x]
        else:
            yield keras.tree.flatten(x)


def _joined(samples):
    return {name: np.concatenate([sample[name] for sample in samples]) for name in samples[0]}


def _convert(folder, quantization, samples) -> bytes:
    """A LiteRT file without sparse weights."""
    converter = tf.lite.TFLiteConverter.from_saved_model(folder)
    if quantization is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantization == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantization == "int8":
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.representative_dataset = lambda: iter(samples)
    try:
        with _quiet():
            return bytes(converter.convert())
    except Exception as error:  # Its own error, and whatever else its stages raise.
        raise ValueError(_explained(str(error))) from error


def _explained(text):
    """What the converter says, without its traces, and what can be done."""
    operators = sorted(set(re.findall(r"'(tf\.\w+)' op", text)))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line.split("error: ", 1)[1] for line in lines if "error: " in line]
    said = re.sub(r"loc\(.*\): ", "", told[-1] if told else " ".join(lines))[:300]
    if operators:
        said = f"LiteRT has no operator for {', '.join(operators)}. {said}"
    advice = "Replace what is not supported, or export with `tf_rigl.export_saved_model`."
    if "tensor list" in text or "TensorList" in text:
        advice = "Pass `batch_size`: recurrent layers cannot have a free batch axis."
    return f"TensorFlow's converter cannot make a LiteRT file of the model: {said} {advice}"


@contextlib.contextmanager
def _quiet():
    """Drops what native code logs: what goes wrong comes as an exception, with its text."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # It uses an interpreter that is deprecated.
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _run(content, batch) -> dict:
    """The outputs of a LiteRT file for one batch."""
    from ai_edge_litert.interpreter import Interpreter  # Slow, and needed here only.

    try:
        with _quiet():
            return Interpreter(model_content=content, num_threads=1).get_signature_runner()(**batch)
    except RuntimeError as error:
        raise ValueError(f"LiteRT cannot run the file: {error}") from error


def _sparse(dense, batches, outputs, quantization, has_zeros):
    """A file with sparse weights and its outputs, or the dense one where that is better."""
    from tf_rigl.export import _encoding  # It imports LiteRT.

    content, left = _encoding.encode(dense)
    if left:
        warnings.warn(
            f"{left} weight(s) with zeros are stored dense: LiteRT cannot run them sparse with "
            f"quantization {quantization!r}, only without one or with 'float16' (with 'int8' "
            "also in blocks of 16 inputs).",
            stacklevel=3,
        )
    if len(content) >= len(dense):
        if has_zeros and not left:
            warnings.warn(
                "The weights are stored dense: with so few zeros the file would be no smaller.",
                stacklevel=3,
            )
        return dense, outputs
    try:
        received = [_run(content, batch) for batch in batches]
        _check(outputs, received, _SPARSE_TOLERANCE[quantization])
    except ValueError as error:
        warnings.warn(
            f"The weights are stored dense: LiteRT does not run this model right with sparse ones. "
            f"({error})",
            stacklevel=3,
        )
        return dense, outputs
    return content, received


def _check(expected, received, tolerance):
    """The largest difference between outputs of several batches; raises if it is too large."""
    errors = [0.0]
    for ours, theirs in zip(expected, received, strict=True):
        outputs = list(ours.values()), [theirs[name] for name in ours]
        errors.append(_source.check_outputs(*outputs, tolerance, _LEAST_MAGNITUDE))
    return max(errors)
