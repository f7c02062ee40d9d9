"""Zeros taken out of a LiteRT file, in the ways that LiteRT runs right."""

import copy
import math

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

_OP = schema.BuiltinOperator
_TYPES = {
    schema.TensorType.FLOAT32: np.float32,
    schema.TensorType.FLOAT16: np.float16,
    schema.TensorType.INT8: np.int8,
}
# Operators that take weights which another operator, DENSIFY, has unpacked, and at which input.
_TAKE_UNPACKED = {
    (_OP.FULLY_CONNECTED, 1),
    (_OP.CONV_2D, 1),
    (_OP.TRANSPOSE_CONV, 1),
    (_OP.GATHER, 0),  # An embedding.
}
# The blocks of inputs that the sparse kernels of FULLY_CONNECTED know, by type of weights.
_KERNEL_BLOCKS = {np.float32: 4, np.int8: 16}
_SPARSE_VERSION = 8  # Of FULLY_CONNECTED: in others, LiteRT takes sparse weights for dense ones.
MIN_ZEROS = 0.7  # With fewer, the dense kernels of float weights are faster than the sparse ones.
MIN_PACKED = 0.9  # A pattern of blocks leaves no more zeros inside blocks than this.
_MAX_SIZE = 0.9  # What is not a tenth smaller encoded stays as it is.


def encode(content: bytes) -> tuple[bytes, int]:
    """Encodes the weights of a LiteRT file that have zeros.

    The converter's own pass (`EXPERIMENTAL_SPARSITY`) gives wrong outputs where a block
    does not divide the inputs, and with float16 or dynamic-range blocks, and files that
    LiteRT refuses with other int8 weights. Here a `FULLY_CONNECTED` operator gets blocks
    where its sparse kernels are right; other float weights are unpacked by `DENSIFY` when
    LiteRT loads them; other int8 weights stay dense.

    Args:
        content: bytes, a LiteRT file without sparse weights.

    Returns:
        The file with sparse weights; and how many weights with zeros stay dense since
        LiteRT does not run them otherwise.
    """
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    left = sum(_encode_graph(model, graph) for graph in model.subgraphs)
    used = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    used |= {entry.buffer for entry in model.metadata or ()}
    for number, buffer in enumerate(model.buffers):
        if number not in used:
            buffer.data = None
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model)), left


def _encode_graph(model, graph):
    """Encodes the weights of one graph; returns how many with zeros stay dense."""
    kinds = [model.operatorCodes[op.opcodeIndex].builtinCode for op in graph.operators]
    uses = {}  # Tensor -> (kind of operator, operator, which of its inputs).
    for kind, operator in zip(kinds, graph.operators, strict=True):
        for place, tensor in enumerate(operator.inputs if operator.inputs is not None else ()):
            uses.setdefault(int(tensor), []).append((kind, operator, place))
    left, unpacking = 0, []
    for number, tensor in enumerate(list(graph.tensors)):
        values = _values(model, tensor)
        if values is None or number not in uses or number in graph.outputs:
            continue
        wanted = uses[number]
        if tensor.type == schema.TensorType.FLOAT16:
            # Stored in half precision, computed in single: what counts is who takes that.
            if any(kind != _OP.DEQUANTIZE for kind, _, _ in wanted):
                continue
            wanted = [use for _, op, _ in wanted for use in uses.get(int(op.outputs[0]), [])]
            if any(_comes_too_early(kind, op, model, graph) for kind, op, _ in wanted):
                continue
        if not wanted or any((kind, place) not in _TAKE_UNPACKED for kind, _, place in wanted):
            continue
        ways = encodings(values)
        best = min(ways, key=lambda way: way.size)
        if not is_smaller(best):
            continue
        runs = [way for way in ways if _runs(way, wanted, graph)]
        if runs:
            runs[0].store(model, tensor)
            for _, operator, _ in wanted:
                old = model.operatorCodes[operator.opcodeIndex]
                operator.opcodeIndex = _code(model, old.builtinCode, _SPARSE_VERSION)
        elif tensor.type == schema.TensorType.INT8 and not _takes_unpacked_int8(wanted, graph):
            left += 1
        else:
            best.store(model, tensor)
            unpacking.append(_unpack(model, graph, number, uses[number]))
    graph.operators = unpacking + list(graph.operators)
    return left


def _comes_too_early(kind, operator, model, graph):
    """Whether an operator would take half-precision weights that are not unpacked yet."""
    if kind == _OP.TRANSPOSE_CONV:  # Where the shape of its output depends on the batch.
        return model.buffers[graph.tensors[operator.inputs[0]].buffer].data is None
    return kind == _OP.GATHER


def _values(model, tensor):
    """The values of a constant that may be weights, or None."""
    data = model.buffers[tensor.buffer].data
    rank = 0 if tensor.shape is None else len(tensor.shape)
    if tensor.type not in _TYPES or data is None or rank not in (2, 4) or tensor.sparsity:
        return None
    values = np.frombuffer(bytes(bytearray(data)), _TYPES[tensor.type])
    return values.reshape(tensor.shape) if values.size == math.prod(tensor.shape) else None


def _blocks(values):
    """The sizes of blocks along the last axis in which values can be stored."""
    # Where a block does not divide the axis LiteRT computes with what is not there.
    matrix = values.ndim == 2
    return [1, *(block for block in (4, 16) if matrix and values.shape[-1] % block == 0)]


def encodings(values) -> list:
    """The ways to encode a matrix of outputs by inputs, or the kernel of a convolution."""
    return [_Encoded(values, block) for block in _blocks(values)]


def is_smaller(encoded) -> bool:
    """Whether an encoding is worth it."""
    return encoded.size <= _MAX_SIZE * encoded.dense.nbytes


def suits_kernel(encoded) -> bool:
    """Whether `FULLY_CONNECTED` has a sparse kernel for an encoding, and it pays."""
    values = encoded.dense
    if encoded.block != _KERNEL_BLOCKS.get(values.dtype.type):
        return False
    if values.dtype == np.float32 and encoded.values.size > (1 - MIN_ZEROS) * values.size:
        return False
    # Blocks of which most have something in them are not what the weight was trained in.
    zeros = values.size - np.count_nonzero(values)
    return values.size - encoded.values.size >= MIN_PACKED * zeros


def _runs(encoded, uses, graph):
    """Whether a sparse kernel of LiteRT computes with weights so encoded, and does it right."""
    values = encoded.dense
    if not suits_kernel(encoded):
        return False
    for kind, operator, _ in uses:
        if kind != _OP.FULLY_CONNECTED:
            return False
        # The kernel of int8 weights and float inputs leaves out the scales of channels.
        if _input_type(operator, kind, graph) is not values.dtype.type:
            return False
    return True


def _takes_unpacked_int8(uses, graph):
    """Whether int8 weights may be unpacked: LiteRT refuses that where activations are float."""
    return all(
        kind in (_OP.CONV_2D, _OP.TRANSPOSE_CONV) and _input_type(operator, kind, graph) is np.int8
        for kind, operator, _ in uses
    )


def _input_type(operator, kind, graph):
    """The type of the activations that come in."""
    place = 2 if kind == _OP.TRANSPOSE_CONV else 0
    return _TYPES.get(graph.tensors[operator.inputs[place]].type)


class _Encoded:
    """Values without blocks of zeros along the last axis."""

    def __init__(self, dense, block):
        rows = dense.reshape(-1, dense.shape[-1] // block, block)
        kept = np.any(rows != 0, axis=-1)
        self.dense, self.block = dense, block
        self.values = rows[kept]
        self.segments = np.concatenate([[0], np.cumsum(kept.sum(axis=-1))])
        self.indices = np.nonzero(kept)[1]
        vectors = [_vector(self.segments)[1], _vector(self.indices)[1]]
        self.size = self.values.nbytes + sum(vector.values.nbytes for vector in vectors)

    def store(self, model, tensor):
        """Makes this what a tensor holds."""
        rank = self.dense.ndim
        axes = [
            schema.DimensionMetadataT(format=schema.DimensionType.DENSE, denseSize=size)
            for size in self.dense.shape[:-1]
        ]
        segments_type, segments = _vector(self.segments)
        indices_type, indices = _vector(self.indices)
        axes.append(
            schema.DimensionMetadataT(
                format=schema.DimensionType.SPARSE_CSR,
                arraySegmentsType=segments_type,
                arraySegments=segments,
                arrayIndicesType=indices_type,
                arrayIndices=indices,
            )
        )
        sparsity = schema.SparsityParametersT(traversalOrder=list(range(rank)), dimMetadata=axes)
        if self.block > 1:
            sparsity.traversalOrder.append(rank)
            sparsity.blockMap = [rank - 1]
            axes.append(
                schema.DimensionMetadataT(format=schema.DimensionType.DENSE, denseSize=self.block)
            )
        data = np.frombuffer(self.values.tobytes(), np.uint8)
        # Another tensor may hold the same values: the old buffer goes when nobody uses it.
        model.buffers.append(schema.BufferT(data=data))
        tensor.buffer = len(model.buffers) - 1
        tensor.sparsity = sparsity


def _vector(numbers):
    """Integers in the smallest type that a file may have them in."""
    largest = int(numbers.max(initial=0))
    kinds = schema.SparseIndexVector
    for limit, dtype, kind, cls in (
        (2**8, np.uint8, kinds.Uint8Vector, schema.Uint8VectorT),
        (2**16, np.uint16, kinds.Uint16Vector, schema.Uint16VectorT),
        (2**31, np.int32, kinds.Int32Vector, schema.Int32VectorT),
    ):
        if largest < limit:
            return kind, cls(values=numbers.astype(dtype))
    raise ValueError(f"LiteRT cannot store a weight of {largest} values.")


def _unpack(model, graph, number, uses):
    """An operator that unpacks a sparse tensor, whose users now take what it makes."""
    dense = copy.copy(graph.tensors[number])
    dense.name = (dense.name or b"") + b"/unpacked"
    dense.buffer, dense.sparsity = 0, None
    graph.tensors.append(dense)
    for _, operator, place in uses:
        inputs = list(operator.inputs)
        inputs[place] = len(graph.tensors) - 1
        operator.inputs = inputs
    return schema.OperatorT(
        opcodeIndex=_code(model, _OP.DENSIFY, 1),
        inputs=[number],
        outputs=[len(graph.tensors) - 1],
        builtinOptionsType=schema.BuiltinOptions.DensifyOptions,
        builtinOptions=schema.DensifyOptionsT(),
    )


def _code(model, kind, version):
    """The number of a kind of operators in a version among those of a model."""
    codes = [(code.builtinCode, code.version) for code in model.operatorCodes]
    if (kind, version) not in codes:
        model.operatorCodes.append(
            schema.OperatorCodeT(
                deprecatedBuiltinCode=min(kind, _OP.PLACEHOLDER_FOR_GREATER_OP_CODES),
                builtinCode=kind,
                version=version,
            )
        )
        return len(codes)
    return codes.index((kind, version))
