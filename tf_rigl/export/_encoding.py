"""Removes zeros from a LiteRT file, in the encodings that LiteRT runs correctly."""

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
# (Operator, input): the weights that the operator DENSIFY may unpack.
_TAKE_UNPACKED = {
    (_OP.FULLY_CONNECTED, 1),
    (_OP.CONV_2D, 1),
    (_OP.TRANSPOSE_CONV, 1),
    (_OP.GATHER, 0),  # An embedding.
}
# Type of weights -> the size of the blocks of inputs in FULLY_CONNECTED's sparse kernel.
_KERNEL_BLOCKS = {np.float32: 4, np.int8: 16}
# The version of FULLY_CONNECTED with sparse kernels; others read sparse weights as dense ones.
_SPARSE_VERSION = 8
MIN_ZEROS = 0.7  # Float weights with fewer zeros run faster on dense kernels.
MIN_PACKED = 0.9  # Blocks that remove a smaller fraction of the zeros are no block pattern.
_MAX_SIZE = 0.9  # A weight is encoded only if that makes it at least a tenth smaller.


def encode(content: bytes) -> tuple[bytes, int]:
    """Encodes the weights with zeros in a LiteRT file.

    A `FULLY_CONNECTED` operator gets blocks if its sparse kernel computes them correctly.
    `DENSIFY` unpacks other float weights when LiteRT loads the file. Other int8 weights stay
    dense. The converter's own pass (`EXPERIMENTAL_SPARSITY`) is not used. It gives wrong
    outputs if a block does not divide the inputs, and with float16 or dynamic-range blocks;
    with other int8 weights, LiteRT refuses its files.

    Args:
        content: bytes, a LiteRT file without sparse weights.

    Returns:
        The file with sparse weights; and the number of weights with zeros that stay dense
        because LiteRT cannot run them sparse.
    """
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    dense = sum(_encode_graph(model, graph) for graph in model.subgraphs)
    used = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    used |= {entry.buffer for entry in model.metadata or ()}
    for number, buffer in enumerate(model.buffers):
        if number not in used:
            buffer.data = None
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model)), dense


def _encode_graph(model, graph):
    """Encodes the weights of one graph; returns how many weights with zeros stay dense."""
    kinds = [model.operatorCodes[op.opcodeIndex].builtinCode for op in graph.operators]
    uses = {}  # Tensor -> list of (kind of operator, operator, position among its inputs).
    for kind, operator in zip(kinds, graph.operators, strict=True):
        for place, tensor in enumerate(operator.inputs if operator.inputs is not None else ()):
            uses.setdefault(int(tensor), []).append((kind, operator, place))
    dense, unpacking = 0, []
    for number, tensor in enumerate(list(graph.tensors)):
        values = _values(model, tensor)
        if values is None or number not in uses or number in graph.outputs:
            continue
        users = uses[number]
        if tensor.type == schema.TensorType.FLOAT16:
            # DEQUANTIZE converts these weights to float32: look at the users of its output.
            if any(kind != _OP.DEQUANTIZE for kind, _, _ in users):
                continue
            users = [use for _, op, _ in users for use in uses.get(int(op.outputs[0]), [])]
            if any(_runs_too_early(kind, op, model, graph) for kind, op, _ in users):
                continue
        if not users or any((kind, place) not in _TAKE_UNPACKED for kind, _, place in users):
            continue
        ways = encodings(values)
        best = min(ways, key=lambda way: way.size)
        if not is_smaller(best):
            continue
        runs = [way for way in ways if _runs(way, users, graph)]
        if runs:
            runs[0].store(model, tensor)
            for _, operator, _ in users:
                old = model.operatorCodes[operator.opcodeIndex]
                operator.opcodeIndex = _code(model, old.builtinCode, _SPARSE_VERSION)
        elif tensor.type == schema.TensorType.INT8 and not _takes_unpacked_int8(users, graph):
            dense += 1
        else:
            best.store(model, tensor)
            unpacking.append(_unpack(model, graph, number, uses[number]))
    graph.operators = unpacking + list(graph.operators)
    return dense


def _runs_too_early(kind, operator, model, graph):
    """Returns whether an operator would read float16 weights before they are unpacked."""
    if kind == _OP.TRANSPOSE_CONV:  # Only if the shape of its output depends on the batch.
        return model.buffers[graph.tensors[operator.inputs[0]].buffer].data is None
    return kind == _OP.GATHER


def _values(model, tensor):
    """Returns the values of a constant that may be weights, or None."""
    data = model.buffers[tensor.buffer].data
    rank = 0 if tensor.shape is None else len(tensor.shape)
    if tensor.type not in _TYPES or data is None or rank not in (2, 4) or tensor.sparsity:
        return None
    values = np.frombuffer(bytes(bytearray(data)), _TYPES[tensor.type])
    return values.reshape(tensor.shape) if values.size == math.prod(tensor.shape) else None


def _blocks(values):
    """Returns the sizes of blocks along the last axis that can store values."""
    # If a block does not divide the axis, LiteRT reads past the end of the values.
    matrix = values.ndim == 2
    return [1, *(block for block in (4, 16) if matrix and values.shape[-1] % block == 0)]


def encodings(values) -> list:
    """Returns the encodings of a matrix (outputs, inputs), or of the kernel of a convolution."""
    return [_Encoded(values, block) for block in _blocks(values)]


def is_smaller(encoded) -> bool:
    """Returns whether an encoding makes the file enough smaller."""
    return encoded.size <= _MAX_SIZE * encoded.dense.nbytes


def suits_kernel(encoded) -> bool:
    """Returns whether `FULLY_CONNECTED` has a sparse kernel for an encoding, and gains by it."""
    values = encoded.dense
    if encoded.block != _KERNEL_BLOCKS.get(values.dtype.type):
        return False
    if values.dtype == np.float32 and encoded.values.size > (1 - MIN_ZEROS) * values.size:
        return False
    # If blocks remove too few of the zeros, the weight was not trained in such blocks.
    zeros = values.size - np.count_nonzero(values)
    return values.size - encoded.values.size >= MIN_PACKED * zeros


def _runs(encoded, uses, graph):
    """Returns whether a sparse kernel of LiteRT runs an encoding, with correct outputs."""
    values = encoded.dense
    if not suits_kernel(encoded):
        return False
    for kind, operator, _ in uses:
        if kind != _OP.FULLY_CONNECTED:
            return False
        # The kernel for int8 weights and float inputs ignores the scales of channels.
        if _input_type(operator, kind, graph) is not values.dtype.type:
            return False
    return True


def _takes_unpacked_int8(uses, graph):
    """Returns whether int8 weights may be unpacked. LiteRT refuses it if activations are float."""
    return all(
        kind in (_OP.CONV_2D, _OP.TRANSPOSE_CONV) and _input_type(operator, kind, graph) is np.int8
        for kind, operator, _ in uses
    )


def _input_type(operator, kind, graph):
    """Returns the type of an operator's input activations."""
    place = 2 if kind == _OP.TRANSPOSE_CONV else 0
    return _TYPES.get(graph.tensors[operator.inputs[place]].type)


class _Encoded:
    """A weight in a sparse encoding: without the blocks that are all zeros.

    Attributes:
        dense: array, the weight.
        block: int, the size of a block along the last axis.
        values: array of shape (blocks, block), the stored blocks.
        segments, indices: int arrays, the positions of the blocks (CSR).
        size: int, the bytes of the encoding.
    """

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
        """Writes the encoding to a tensor of a model."""
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
        # Other tensors may share the old buffer; `encode` empties it if no tensor uses it.
        model.buffers.append(schema.BufferT(data=data))
        tensor.buffer = len(model.buffers) - 1
        tensor.sparsity = sparsity


def _vector(numbers):
    """Returns integers in the smallest type that the file format allows, with its code."""
    largest = int(numbers.max(initial=0))
    kinds = schema.SparseIndexVector
    for limit, dtype, kind, cls in (
        (2**8, np.uint8, kinds.Uint8Vector, schema.Uint8VectorT),
        (2**16, np.uint16, kinds.Uint16Vector, schema.Uint16VectorT),
        (2**31, np.int32, kinds.Int32Vector, schema.Int32VectorT),
    ):
        if largest < limit:
            return kind, cls(values=numbers.astype(dtype))
    raise ValueError(f"The indices of a sparse weight must be below {2**31}. Received: {largest}")


def _unpack(model, graph, number, uses):
    """Returns an operator that unpacks a sparse tensor; its users now read the unpacked one."""
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
    """Returns the index of an operator's kind and version in a model; adds it if it is new."""
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
