"""Exports a LiteRT (TFLite) file with sparse weights, and checks it with LiteRT's interpreter."""

import contextlib
import math
import os
import re
import sys
import tempfile
import warnings

import keras
import tensorflow as tf

from tf_rigl._base import files, notices, registry
from tf_rigl._base.arguments import check_flag, check_integer, unknown_name
from tf_rigl._base.keras_internals import all_layers
from tf_rigl.compaction import compacting
from tf_rigl.export import _compact, _half, _source
from tf_rigl.export._call import Call
from tf_rigl.export.info import ExportInfo

_BYTES = {None: 4, "float16": 2, "dynamic": 1, "int8": 1}  # Of an entry of a weight.

# Allowed difference from the outputs of the Keras model, as a fraction of their largest magnitude.
_TOLERANCE = {None: 1e-4, "float16": 1e-2, "dynamic": 0.2, "int8": 0.3}
# Allowed difference from the outputs of the dense file: only rounding differs.
_SPARSE_TOLERANCE = {None: 1e-4, "float16": 1e-4, "dynamic": 1e-2, "int8": 0.05}
_LEAST_MAGNITUDE = 1e-2  # Smaller outputs are compared as if this were their largest magnitude.


def export_tflite(
    model,
    path,
    *,
    quantization=None,
    representative_dataset=None,
    batch_size=None,
    packed=True,
    check_data=None,
    compute="auto",
) -> ExportInfo:
    """Writes a LiteRT (TFLite) file that does without the zeros of a model.

    Where zeros form blocks of 16 outputs or more ("channels_1x32", "block_32x32"), the file
    holds the compact model of `tf_rigl.compact`: ordinary dense operators over the blocks that
    are there, which are fast on every processor. Other weights with zeros are stored sparse
    ("encoded"). The layer, the pattern and the quantization then decide how a weight is stored
    and run:

    - Weights of `Dense`, `EinsumDense`, attention and recurrent layers run on sparse kernels in
      float32 if they have blocks of 4 or 16 inputs ("block_4x1", "block_16x1", "litert") and at
      least 70% zeros, and 4 divides a layer's inputs. Only these are both smaller and faster:
      2 to 3 times at 90% zeros (layers of 1024 units, batch 1, one thread of x86).
    - LiteRT unpacks all other weights of these layers, and those of convolutions and `Embedding`,
      when it loads the file. The file is smaller and just as fast. With "float16", this holds
      for all weights if LiteRT has XNNPACK. (Without it, LiteRT converts float16 weights at
      every call.)
    - With "int8", blocks of 16 run sparse if 16 divides a layer's inputs (on x86 at about half
      the speed of the dense kernels), and LiteRT unpacks convolutions. Other dense layers stay
      dense, as do all layers with "dynamic", and you get a warning: LiteRT refuses these weights
      sparse, or computes wrong outputs. With single zeros, "float16" then gives the smallest
      file, and from about 90% zeros even float32 gives a smaller one than "int8";
      `tf_rigl.export.advise` estimates all sizes.

    A weight is stored sparse if that makes it at least a tenth smaller: from about 40% zeros
    (float32, unstructured) or 15% (blocks).

    Layers that compute in half precision ("mixed_bfloat16") compute in float32 in the file. It is
    checked against the model in float32; the `ExportInfo` tells the difference from the model as
    it is, which rounds more.

    Args:
        model: a `tf_rigl.SparseModel`, or any built `keras.Model` with zeros in its weights.
        path: str or path, the file to write, with any suffix. Its folder must exist.
        quantization: None (float32), "float16" (weights), "dynamic" (int8 weights, float
            activations) or "int8" (weights and activations; inputs and outputs stay as
            they are in Keras, so callers need not quantize).
        representative_dataset: required with "int8", and only allowed there: inputs as for
            `fit`, at most 200 of which set the ranges of activations. A `tf.data.Dataset` of
            batches, with or without labels; an array, or a list or dict of arrays for several
            inputs; or, as for TensorFlow's converter, a function that yields lists of arrays.
        batch_size: int, a fixed size of the batch axis, which some layers need, such as
            `LSTM`. By default the axis is free, at no cost in speed. It is 1 until
            `resize_tensor_input` (or a call of the signature) changes it.
        packed: bool, whether zeros are removed. If not, the file is the dense one: larger,
            and on some machines faster with "int8".
        check_data: inputs for the check against the Keras model, as an array or a structure
            of arrays. Defaults to the first examples of `representative_dataset`, or random
            numbers.
        compute: str, "compact": the compact model, or an error that says why there is none;
            "encoded": sparse weights; "dense": zeros are stored, as with `packed=False`;
            "auto": compact if a layer gains by it, otherwise encoded.

    Returns:
        An `ExportInfo`. Its `dense_bytes` is the size of the same file with all zeros.

    Raises:
        ValueError: if an argument is out of range, TensorFlow's converter refuses the model,
            or the outputs differ from those of the Keras model by more than 1e-4 (float16:
            1e-2, dynamic: 0.2, int8: 0.3) of their largest magnitude. Then nothing is
            written, and an older file stays.

    Example:

    >>> info = tf_rigl.export_tflite(sparse, "model.tflite")
    >>> from ai_edge_litert.interpreter import Interpreter
    >>> run = Interpreter("model.tflite").get_signature_runner()
    >>> outputs = run(input_0=x)["output_0"]
    >>> np.allclose(outputs, sparse.predict(x, verbose=0), atol=1e-4)
    True

    Inputs have their Keras names, or "input_0", "input_1" if they have none. Outputs have
    their keys in a dict, or "output_0", "output_1".

    Reference:

    - [Fast Sparse ConvNets](https://arxiv.org/abs/1911.09723).
    """
    place = files.check_place(path)
    if place.is_dir():
        raise ValueError(f"Argument `path` must not be a folder. Received: path={str(path)!r}")
    if quantization not in tuple(_TOLERANCE):
        names = registry.QUANTIZATIONS
        raise unknown_name("quantization", quantization, names, or_object=False)
    if (quantization == "int8") != (representative_dataset is not None):
        raise ValueError(
            "Argument `representative_dataset` must be given with quantization='int8', and only "
            f"with it. Received: quantization={quantization!r}, representative_dataset="
            f"{'None' if representative_dataset is None else type(representative_dataset)}"
        )
    if batch_size is not None:
        batch_size = check_integer("batch_size", batch_size, 1)
    packed = check_flag("packed", packed) and compute != "dense"
    if not packed and compute in ("compact", "encoded"):
        raise ValueError(
            f"Argument `packed` must be True with compute={compute!r}, which removes zeros. "
            "Received: packed=False"
        )
    content, dense, error = _made(
        model, compute, quantization, batch_size, packed, representative_dataset, check_data
    )
    with files.beside(place) as scratch:
        scratch.write_bytes(content)
    return ExportInfo(str(path), len(content), dense, error)


def _made(model, compute, quantization, batch_size, packed, representative_dataset, check_data):
    """Makes and checks the file; the arguments are those of `export_tflite`.

    Returns:
        The content, bytes; the size of the same file with all zeros; and the largest difference
        from the outputs of the model.
    """
    wanted = compute if packed or compute != "auto" else "dense"
    target = quantization or "float32"
    small, entries = _compact.attempted(model, wanted, registry.COMPUTE, target)
    given, model = model, small or _source.ordinary(model)
    loops = [x for x in all_layers(model) if isinstance(x, keras.layers.RNN) and not x.unroll]
    if quantization == "int8" and loops:  # The converter would crash the process.
        raise ValueError(
            "Argument `quantization` cannot be 'int8' for recurrent layers that loop: TensorFlow's "
            "converter crashes. Build them with `unroll=True`, or pass another quantization. "
            f"Received: a model with layer {loops[0].name!r}"
        )
    call = Call(model, batch_size, check_data)
    whole = call if small is None else call.of(given)
    samples = call.samples("representative_dataset", representative_dataset)
    batches = call.check_batches(call.samples("check_data", check_data) or samples)
    trained = expected = [whole.outputs(batch) for batch in batches]
    with _half.in_float32(given, model) as changed, tempfile.TemporaryDirectory() as folder:
        call.save(folder)
        dense = _convert(folder, quantization, call.batches(samples), model)
        if changed:
            expected = [whole.outputs(batch) for batch in batches]
    outputs = [_run(dense, batch) for batch in batches]
    _check(expected, outputs, _TOLERANCE[quantization])
    content, received = dense, outputs
    # Other weights of a compact model are stored sparse too, where LiteRT can unpack them.
    if packed and (small is None or (wanted == "auto" and quantization in (None, "float16"))):
        is_compact = small is not None or compacting.is_compact(model)
        content, received = _sparse(model, dense, batches, outputs, quantization, is_compact)
    _check(expected, received, _TOLERANCE[quantization])
    error = _check(trained, received, math.inf)  # Half precision rounds what the file does not.
    unstored = sum(map(_compact.left_out, entries)) * _BYTES[quantization]
    return content, len(dense) + unstored, error


def _convert(folder, quantization, samples, model) -> bytes:
    """Converts a SavedModel to a LiteRT file without sparse weights."""
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
    except Exception as error:  # The converter raises its own errors and many others.
        raise ValueError(_explained(str(error)) + _half.advice(model)) from error


def _explained(text):
    """Returns the converter's error without its traces, and advice."""
    operators = sorted(set(re.findall(r"'(tf\.\w+)' op", text)))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line.split("error: ", 1)[1] for line in lines if "error: " in line]
    said = re.sub(r"loc\(.*\): ", "", told[-1] if told else " ".join(lines))[:300]
    if operators:
        said = f"LiteRT has no operator for {', '.join(operators)}. {said}"
    advice = "Replace unsupported layers, or export with `tf_rigl.export_saved_model`."
    if "tensor list" in text or "TensorList" in text:
        advice = "Pass `batch_size`: recurrent layers cannot have a free batch axis."
    return f"TensorFlow's converter cannot make a LiteRT file of the model: {said} {advice}"


@contextlib.contextmanager
def _quiet():
    """Drops the log of native code. Errors are raised as exceptions, with their text."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # The converter uses a deprecated interpreter.
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _run(content, batch) -> dict:
    """Runs a LiteRT file on one batch, and returns the outputs by name."""
    from ai_edge_litert.interpreter import Interpreter  # Slow to import.

    try:
        with _quiet():
            return Interpreter(model_content=content, num_threads=1).get_signature_runner()(**batch)
    except RuntimeError as error:
        raise ValueError(f"LiteRT cannot run the file: {error}") from error


def _sparse(model, dense, batches, outputs, quantization, is_compact):
    """Returns a file with sparse weights and its outputs, or the dense file if that is better."""
    from tf_rigl.export import _encoding, sizes  # They import LiteRT, which is slow.

    content, number_dense = _encoding.encode(dense)
    if number_dense:
        notices.warn(
            f"{number_dense} weight(s) with zeros are stored dense: LiteRT cannot run them sparse "
            f"with quantization={quantization!r}, only with None or 'float16' (with 'int8' also in "
            f"blocks of 16 inputs). {sizes.smallest(model, quantization)}".rstrip(),
        )
    if len(content) >= len(dense):
        if not number_dense and not is_compact and _source.has_zeros(model):
            notices.warn(
                "The weights are stored dense: they have so few zeros that a sparse file would not "
                "be smaller.",
            )
        return dense, outputs
    try:
        received = [_run(content, batch) for batch in batches]
        _check(outputs, received, _SPARSE_TOLERANCE[quantization])
    except ValueError as error:
        notices.warn(
            f"The weights are stored dense: with sparse weights, LiteRT does not run this model "
            f"right. ({error})",
        )
        return dense, outputs
    return content, received


def _check(expected, received, tolerance):
    """Returns the largest difference between outputs of several batches; raises if too large."""
    errors = [0.0]
    for ours, theirs in zip(expected, received, strict=True):
        outputs = list(ours.values()), [theirs[name] for name in ours]
        errors.append(_source.check_outputs(*outputs, tolerance, _LEAST_MAGNITUDE))
    return max(errors)
