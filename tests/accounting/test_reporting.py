"""FLOPs, parameters and sizes, against published figures and counts by hand."""

import copy
import json
import math
import random

import keras
import numpy as np
import pytest

import tf_rigl
from tests.helpers import (
    CLASSES,
    FEATURES,
    LAYER_CASES,
    MODEL_KINDS,
    Block,
    Experts,
    Projection,
    SubclassedDict,
    WithoutConfig,
    compiled,
    fit,
    layer_model,
    mlp,
    model_data,
    random_data,
    sparsify,
    uniform,
)
from tf_rigl import models, schedules
from tf_rigl.accounting import reporting

k = keras.layers


# Published figures.


@pytest.fixture(scope="module")
def resnet_50():
    return models.resnet_50((224, 224, 3), 1000)


# Distribution, sparsity, FLOPs against dense, size in MB (1e6 bytes).
PUBLISHED = [
    ("erk", 0.8, 0.42, 23.683),
    ("erk", 0.9, 0.24, 13.499),
    ("erk", 0.95, 0.12, 8.399),
    ("uniform", 0.9, 0.13, 13.532),
    ("uniform", 0.95, 0.08, 8.433),
]


@pytest.mark.parametrize(("distribution", "sparsity", "ratio", "megabytes"), PUBLISHED)
def test_published_costs_of_resnet_50(resnet_50, distribution, sparsity, ratio, megabytes):
    planned = reporting.plan(resnet_50, sparsity, distribution)
    assert planned.bytes / 1e6 == pytest.approx(megabytes, abs=0.01)
    assert planned.flops / planned.dense_flops == pytest.approx(ratio, abs=0.01)
    assert planned.dense_bytes / 1e6 == pytest.approx(102.122, abs=0.001)
    assert planned.dense_flops == pytest.approx(8.2e9, rel=0.01)
    # The printed figures are rounded. They count one operation for each output, as a ReLU.
    outputs = planned.bias_flops
    counted = (planned.flops + outputs) / (planned.dense_flops + outputs)
    assert abs(counted - ratio) < 0.0065
    # The first layer stays dense under "uniform", and takes no part in the sparsity asked for.
    assert planned.sparsity == pytest.approx(sparsity, abs=1e-3)
    assert planned.dense_params == resnet_50.count_params()


@pytest.mark.parametrize(
    ("sparsity", "without", "published", "ratio"),
    [(0.8, 0.4138, 0.4146, 0.4145), (0.9, 0.2418, 0.2429, 0.2427)],
)
def test_published_ratio_with_biases_and_activations(
    resnet_50, sparsity, without, published, ratio
):
    """n multiplications and n - 1 additions for a sum of n, one more for its bias, one for ReLU."""
    planned = reporting.plan(resnet_50, sparsity, "erk")
    sums = biases = planned.bias_flops  # Each output is a sum, with a bias.
    for activations, expected in ((0, without), (sums, published)):
        sparse, dense = (
            kernels - sums + biases + activations
            for kernels in (planned.flops, planned.dense_flops)
        )
        assert sparse / dense == pytest.approx(expected, abs=5e-5)
    # The published count takes a ReLU to follow each layer; here they count where they are.
    rest = planned.activation_flops
    sparse, dense = planned.flops + rest, planned.dense_flops + rest
    assert sparse / dense == pytest.approx(ratio, abs=5e-5)
    assert f"with biases and activations: {sparse:.4g} of {dense:.4g}" in str(planned)


def test_published_size_of_resnet_50(resnet_50):
    """25.6 million parameters, 53 convolutions and a dense layer."""
    planned = reporting.plan(resnet_50, 0.9)
    assert len(planned.layers) == 54
    assert resnet_50.count_params() == 25_557_032 + 53_120  # With moving statistics.


def test_mobile_net():
    """569 million multiply-adds and 4.2 million parameters (arXiv 1704.04861, table 8)."""
    planned = reporting.plan(keras.applications.MobileNet(weights=None))
    assert planned.dense_flops == pytest.approx(2 * 569e6, rel=0.01)
    assert planned.dense_params == pytest.approx(4.2e6, rel=0.02)
    depthwise = [row for row in planned.layers if "conv_dw" in row.name]
    assert len(depthwise) == 13
    # Layers that stay dense have the bytes of their biases too. Published sizes leave those out.
    biases = sum(4 * row.shape[-2] for row in depthwise)
    assert planned.bytes / 1e6 == pytest.approx(2.412, abs=5e-4)
    assert (planned.bytes - biases) / 1e6 == pytest.approx(2.392, abs=1e-3)
    for row in depthwise:
        assert not row.masked
        assert row.bytes == row.dense_bytes == 4 * (row.params + row.shape[-2])
        assert row.flops == row.dense_flops > 0


# Every kind of layer, counted by hand: two FLOPs for each use of each kernel entry.

SEQUENCE, IMAGE, VOLUME = (10, 3), (7, 9, 4), (4, 5, 6, 2)


class CellOfOnesOwn(k.Layer):
    """h' = tanh(x W + h U), by way of two dense layers."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.state_size = self.output_size = units
        self.x = k.Dense(units, name="x")
        self.h = k.Dense(units, name="h")

    def build(self, input_shape):
        self.x.build(input_shape)
        self.h.build((None, self.state_size))

    def call(self, inputs, states):
        state = keras.ops.tanh(self.x(inputs) + self.h(states[0]))
        return state, [state]


class CellOfMatrices(CellOfOnesOwn):
    """The same by way of two matrices."""

    def build(self, input_shape):
        self.w = self.add_weight(shape=(input_shape[-1], self.state_size), name="w")
        self.u = self.add_weight(shape=(self.state_size, self.state_size), name="u")

    def call(self, inputs, states):
        state = keras.ops.tanh(inputs @ self.w + states[0] @ self.u)
        return state, [state]


class Filter(k.Layer):
    """A convolution with strides, and products of its outputs with each other."""

    def build(self, input_shape):
        self.w = self.add_weight(shape=(3, 3, input_shape[-1], 6), name="w")

    def call(self, x):
        x = keras.ops.conv(x, self.w, strides=2, padding="same")
        return keras.ops.einsum("bhwc,bhwd->bcd", x, x)


def _attend(layer):
    return lambda x: layer(x, x)


def _attend_other(layer, length=5):
    """Queries of the whole sequence, values of a part of it."""
    return lambda x: layer(x, x[:, :length])


# Name: input shape, layer, {path of the weight: FLOPs}, biases, activations.
COUNTED = {
    "Dense": ((5,), k.Dense(7, "relu", name="l"), {"l/kernel": 2 * 5 * 7}, 7, 7),
    "Dense-linear": ((5,), k.Dense(7, name="l"), {"l/kernel": 2 * 5 * 7}, 7, 0),
    "Dense-softmax": ((5,), k.Dense(7, "softmax", name="l"), {"l/kernel": 2 * 5 * 7}, 7, 0),
    "Dense-rank-4": (
        (3, 4, 5),
        k.Dense(7, use_bias=False, name="l"),
        {"l/kernel": 2 * 5 * 7 * (3 * 4)},
        # Counted without `use_bias` too: normalisation would be folded into it.
        7 * (3 * 4),
        0,
    ),
    "EinsumDense": (
        SEQUENCE,
        k.EinsumDense("abc,cd->abd", (10, 8), activation="gelu", name="l"),
        {"l/kernel": 2 * (3 * 8) * 10},
        8 * 10,
        8 * 10,
    ),
    "EinsumDense-ellipsis": (
        (3, 4, 5),
        k.EinsumDense("...x,xy->...y", 6, name="l"),
        {"l/kernel": 2 * (5 * 6) * (3 * 4)},
        6 * (3 * 4),
        0,
    ),
    "EinsumDense-kernel-per-position": (
        SEQUENCE,
        k.EinsumDense("abc,bcd->abd", (10, 8), name="l"),
        {"l/kernel": 2 * (10 * 3 * 8)},
        8 * 10,
        0,
    ),
    # Positions of the output: 10 - 2 * (3 - 1) = 6.
    "Conv1D-dilation": (
        SEQUENCE,
        k.Conv1D(8, 3, dilation_rate=2, name="l"),
        {"l/kernel": 2 * (3 * 3 * 8) * 6},
        8 * 6,
        0,
    ),
    "Conv1D-causal": (
        SEQUENCE,
        k.Conv1D(8, 3, padding="causal", name="l"),
        {"l/kernel": 2 * (3 * 3 * 8) * 10},
        8 * 10,
        0,
    ),
    # ceil(7 / 2) = 4, ceil(9 / 2) = 5.
    "Conv2D-strides-same": (
        IMAGE,
        k.Conv2D(6, 3, strides=2, padding="same", activation="relu", name="l"),
        {"l/kernel": 2 * (3 * 3 * 4 * 6) * (4 * 5)},
        6 * (4 * 5),
        6 * (4 * 5),
    ),
    # floor((7 - 3) / 2) + 1 = 3, floor((9 - 3) / 2) + 1 = 4.
    "Conv2D-strides-valid": (
        IMAGE,
        k.Conv2D(6, 3, strides=2, name="l"),
        {"l/kernel": 2 * (3 * 3 * 4 * 6) * (3 * 4)},
        6 * (3 * 4),
        0,
    ),
    "Conv2D-groups": (
        IMAGE,
        k.Conv2D(6, (1, 3), groups=2, name="l"),
        {"l/kernel": 2 * (1 * 3 * 2 * 6) * (7 * 7)},
        6 * (7 * 7),
        0,
    ),
    "Conv2D-channels-first": (
        (4, 7, 9),
        k.Conv2D(6, 3, data_format="channels_first", name="l"),
        {"l/kernel": 2 * (3 * 3 * 4 * 6) * (5 * 7)},
        6 * (5 * 7),
        0,
    ),
    "Conv3D": (
        VOLUME,
        k.Conv3D(3, 2, name="l"),
        {"l/kernel": 2 * (2 * 2 * 2 * 2 * 3) * (3 * 4 * 5)},
        3 * (3 * 4 * 5),
        0,
    ),
    # Each value of the input is multiplied by the whole kernel; outputs: 2 * (10 - 1) + 3 = 21.
    "Conv1DTranspose": (
        SEQUENCE,
        k.Conv1DTranspose(8, 3, strides=2, name="l"),
        {"l/kernel": 2 * (3 * 8 * 3) * 10},
        8 * 21,
        0,
    ),
    "Conv2DTranspose": (
        IMAGE,
        k.Conv2DTranspose(6, 3, strides=2, padding="same", name="l"),
        {"l/kernel": 2 * (3 * 3 * 6 * 4) * (7 * 9)},
        6 * (14 * 18),
        0,
    ),
    "Conv2DTranspose-channels-first": (
        (4, 7, 9),
        k.Conv2DTranspose(6, 3, padding="same", data_format="channels_first", name="l"),
        {"l/kernel": 2 * (3 * 3 * 6 * 4) * (7 * 9)},
        6 * (7 * 9),
        0,
    ),
    "Conv3DTranspose": (
        VOLUME,
        k.Conv3DTranspose(3, 2, name="l"),
        {"l/kernel": 2 * (2 * 2 * 2 * 3 * 2) * (4 * 5 * 6)},
        3 * (5 * 6 * 7),
        0,
    ),
    "DepthwiseConv1D": (
        SEQUENCE,
        k.DepthwiseConv1D(3, depth_multiplier=2, name="l"),
        {"l/kernel": 2 * (3 * 3 * 2) * 8},
        (3 * 2) * 8,
        0,
    ),
    "DepthwiseConv2D": (
        IMAGE,
        k.DepthwiseConv2D(3, strides=2, padding="same", activation="relu", name="l"),
        {"l/kernel": 2 * (3 * 3 * 4) * (4 * 5)},
        4 * (4 * 5),
        4 * (4 * 5),
    ),
    "SeparableConv1D": (
        SEQUENCE,
        k.SeparableConv1D(8, 3, name="l"),
        {"l/depthwise_kernel": 2 * (3 * 3) * 8, "l/pointwise_kernel": 2 * (3 * 8) * 8},
        8 * 8,
        0,
    ),
    "SeparableConv2D": (
        IMAGE,
        k.SeparableConv2D(6, 3, depth_multiplier=2, activation="relu", name="l"),
        {
            "l/depthwise_kernel": 2 * (3 * 3 * 4 * 2) * (5 * 7),
            "l/pointwise_kernel": 2 * (8 * 6) * (5 * 7),
        },
        6 * (5 * 7),
        6 * (5 * 7),
    ),
    "Embedding": ((10,), k.Embedding(9, 6, name="l"), {"l/embeddings": 0}, 0, 0),
    "SimpleRNN": (
        SEQUENCE,
        k.SimpleRNN(4, name="l"),
        {
            "l/simple_rnn_cell/kernel": 10 * 2 * (3 * 4),
            "l/simple_rnn_cell/recurrent_kernel": 10 * 2 * (4 * 4),
        },
        10 * 4,
        10 * 4,
    ),
    # Three gates, each with its activation.
    "GRU": (
        SEQUENCE,
        k.GRU(4, return_sequences=True, name="l"),
        {
            "l/gru_cell/kernel": 10 * 2 * (3 * 3 * 4),
            "l/gru_cell/recurrent_kernel": 10 * 2 * (3 * 4 * 4),
        },
        10 * 3 * 4,
        10 * 3 * 4,
    ),
    # Four gates, each with its activation, and one for the state.
    "LSTM": (
        SEQUENCE,
        k.LSTM(4, name="l"),
        {
            "l/lstm_cell/kernel": 10 * 2 * (4 * 3 * 4),
            "l/lstm_cell/recurrent_kernel": 10 * 2 * (4 * 4 * 4),
        },
        10 * 4 * 4,
        10 * 5 * 4,
    ),
    "LSTM-unrolled": (
        SEQUENCE,
        k.LSTM(4, unroll=True, name="l"),
        {
            "l/lstm_cell/kernel": 10 * 2 * (4 * 3 * 4),
            "l/lstm_cell/recurrent_kernel": 10 * 2 * (4 * 4 * 4),
        },
        10 * 4 * 4,
        10 * 5 * 4,
    ),
    "Bidirectional": (
        SEQUENCE,
        k.Bidirectional(k.SimpleRNN(4, name="rnn"), name="l"),
        {
            f"l/{direction}_rnn/simple_rnn_cell/{name}": 10 * 2 * entries
            for direction in ("forward", "backward")
            for name, entries in (("kernel", 3 * 4), ("recurrent_kernel", 4 * 4))
        },
        2 * 10 * 4,
        2 * 10 * 4,
    ),
    "RNN-cells": (
        SEQUENCE,
        k.RNN([k.GRUCell(4, name="a"), k.SimpleRNNCell(5, name="b")], name="l"),
        {
            "l/stacked_rnn_cells/a/kernel": 10 * 2 * (3 * 3 * 4),
            "l/stacked_rnn_cells/a/recurrent_kernel": 10 * 2 * (3 * 4 * 4),
            "l/stacked_rnn_cells/b/kernel": 10 * 2 * (4 * 5),
            "l/stacked_rnn_cells/b/recurrent_kernel": 10 * 2 * (5 * 5),
        },
        10 * (3 * 4 + 5),
        10 * (3 * 4 + 5),
    ),
    "RNN-cell-of-one's-own": (
        SEQUENCE,
        k.RNN(CellOfOnesOwn(4, name="cell"), name="l"),
        {"l/cell/x/kernel": 10 * 2 * (3 * 4), "l/cell/h/kernel": 10 * 2 * (4 * 4)},
        10 * (4 + 4),
        0,  # The tanh is no layer.
    ),
    # 10 steps; positions 7 - 2 and 9 - 2; the recurrent convolution keeps them.
    "ConvLSTM2D": (
        (10, 7, 9, 4),
        k.ConvLSTM2D(5, 3, name="l"),
        {
            "l/conv_lstm_cell/kernel": 10 * 2 * (3 * 3 * 4 * 4 * 5) * (5 * 7),
            "l/conv_lstm_cell/recurrent_kernel": 10 * 2 * (3 * 3 * 5 * 4 * 5) * (5 * 7),
        },
        10 * (4 * 5) * (5 * 7),
        10 * 5 * 5 * (5 * 7),
    ),
    "TimeDistributed": (
        (10, *IMAGE),
        k.TimeDistributed(k.Conv2D(6, 3, activation="relu", name="inner"), name="l"),
        {"l/inner/kernel": 10 * 2 * (3 * 3 * 4 * 6) * (5 * 7)},
        10 * 6 * (5 * 7),
        10 * 6 * (5 * 7),
    ),
    "TimeDistributed-LSTM": (
        (6, *SEQUENCE),
        k.TimeDistributed(k.SimpleRNN(4, name="inner"), name="l"),
        {
            "l/inner/simple_rnn_cell/kernel": 6 * 10 * 2 * (3 * 4),
            "l/inner/simple_rnn_cell/recurrent_kernel": 6 * 10 * 2 * (4 * 4),
        },
        6 * 10 * 4,
        6 * 10 * 4,
    ),
    # 10 queries, 5 values, 2 heads.
    "MultiHeadAttention": (
        SEQUENCE,
        _attend_other(k.MultiHeadAttention(2, 4, value_dim=6, name="l")),
        {
            "l/query/kernel": 10 * 2 * (3 * 2 * 4),
            "l/key/kernel": 5 * 2 * (3 * 2 * 4),
            "l/value/kernel": 5 * 2 * (3 * 2 * 6),
            "l/attention_output/kernel": 10 * 2 * (2 * 6 * 3),
            "l/products": 2 * (10 * 5 * 2 * 4) + 2 * (10 * 5 * 2 * 6),
        },
        10 * 2 * 4 + 5 * 2 * 4 + 5 * 2 * 6 + 10 * 3,
        0,
    ),
    # Attention along the second of the axes 7, 9: 7 times 9 queries with 9 values.
    "MultiHeadAttention-axes": (
        IMAGE,
        _attend(k.MultiHeadAttention(2, 3, attention_axes=2, name="l")),
        {
            "l/query/kernel": 63 * 2 * (4 * 2 * 3),
            "l/key/kernel": 63 * 2 * (4 * 2 * 3),
            "l/value/kernel": 63 * 2 * (4 * 2 * 3),
            "l/attention_output/kernel": 63 * 2 * (2 * 3 * 4),
            "l/products": 2 * (2 * 7 * (9 * 9) * 2 * 3),
        },
        63 * (3 * 2 * 3 + 4),
        0,
    ),
    # 4 heads of queries share 2 heads of keys and values.
    "GroupQueryAttention": (
        SEQUENCE,
        _attend_other(k.GroupQueryAttention(6, 4, 2, name="l")),
        {
            "l/query/kernel": 10 * 2 * (3 * 4 * 6),
            "l/key/kernel": 5 * 2 * (3 * 2 * 6),
            "l/value/kernel": 5 * 2 * (3 * 2 * 6),
            "l/attention_output/kernel": 10 * 2 * (4 * 6 * 3),
            "l/products": 2 * (2 * (10 * 5 * 4 * 6)),
        },
        10 * 4 * 6 + 2 * (5 * 2 * 6) + 10 * 3,
        0,
    ),
    "Attention": (
        SEQUENCE,
        lambda x: k.Attention(name="l")([x, x[:, :5]]),
        {"l/products": 2 * (2 * (10 * 5 * 3))},
        0,
        0,
    ),
    "AdditiveAttention": (
        SEQUENCE,
        lambda x: k.AdditiveAttention(name="l")([x, x[:, :5]]),
        {"l/products": 2 * (2 * (10 * 5 * 3))},
        0,
        0,
    ),
    "get_prunable_weights": (
        (3, 4, 5),
        Projection(7, name="l"),
        {"l/matrix": 2 * (5 * 7) * (3 * 4)},
        7 * (3 * 4),
        0,
    ),
    # 2 experts, and a weight that is added.
    "custom": (
        SEQUENCE,
        Experts(4, name="l"),
        {"l/up": 10 * 2 * (2 * 3 * 4), "l/down": 10 * 2 * (2 * 4 * 3)},
        10 * 2 * (4 + 3),
        0,
    ),
    "custom-convolution": (
        IMAGE,
        Filter(name="l"),
        {"l/w": 2 * (3 * 3 * 4 * 6) * (4 * 5), "l/products": 2 * (4 * 5) * 6 * 6},
        6 * (4 * 5),
        0,
    ),
    "custom-cell": (
        SEQUENCE,
        k.RNN(CellOfMatrices(4, name="cell"), name="l"),
        {"l/cell/w": 10 * 2 * (3 * 4), "l/cell/u": 10 * 2 * (4 * 4)},
        10 * (4 + 4),
        0,
    ),
    "between-layers": (
        SEQUENCE,
        lambda x: keras.ops.matmul(x, keras.ops.transpose(x, (0, 2, 1))),
        {"products": 2 * (10 * 10 * 3)},
        0,
        0,
    ),
    "Dot": (
        SEQUENCE,
        lambda x: k.Dot(1, name="l")([x, x]),
        {"l/products": 2 * (3 * 3 * 10)},
        0,
        0,
    ),
    "activations": (
        SEQUENCE,
        keras.Sequential([k.ReLU(), k.LeakyReLU(), k.PReLU(), k.ELU(), k.Activation("tanh")]),
        {},
        0,
        5 * 10 * 3,
    ),
    "not-counted": (
        IMAGE,
        keras.Sequential(
            [
                k.BatchNormalization(),
                k.MaxPooling2D(),
                k.Softmax(),
                k.Activation("softmax"),
                k.Activation("linear"),
                k.Dropout(0.5),
            ]
        ),
        {},
        0,
        0,
    ),
}


@pytest.mark.parametrize("case", COUNTED)
def test_layer_by_hand(case):
    shape, layer, flops, bias_flops, activation_flops = COUNTED[case]
    inputs = keras.Input(shape, dtype="int32" if case == "Embedding" else None)
    counted = reporting.report(keras.Model(inputs, layer(inputs)))
    assert {row.name: row.dense_flops for row in counted.layers} == flops
    assert counted.dense_flops == counted.flops == sum(flops.values())
    assert counted.bias_flops == bias_flops
    assert counted.activation_flops == activation_flops


def test_convolution_by_loops():
    """Every multiplication of a small convolution, one by one."""
    height, width, channels, filters, size, stride = 6, 5, 2, 3, 3, 2
    multiplications = 0
    for y in range(0, height - size + 1, stride):
        for x in range(0, width - size + 1, stride):
            for _ in np.ndindex(size, size, channels, filters):
                assert y + size <= height
                assert x + size <= width
                multiplications += 1
    inputs = keras.Input((height, width, channels))
    model = keras.Model(inputs, k.Conv2D(filters, size, strides=stride)(inputs))
    assert reporting.report(model).flops == 2 * multiplications


@pytest.mark.skipif(not hasattr(k, "ReversibleEmbedding"), reason="this Keras has none")
def test_reversible_embedding_is_a_product_in_reverse():
    tokens = keras.Input((10,), dtype="int32")
    layer = k.ReversibleEmbedding(9, 6, name="l")
    x = layer(tokens)
    assert reporting.report(keras.Model(tokens, x)).flops == 0
    reverse = keras.Model(tokens, layer(x, reverse=True))
    assert reporting.report(reverse).flops == 10 * 2 * (9 * 6)


# Sparsity, parameters and bytes.


def test_figures_of_a_sparse_model_by_hand():
    """784 x 300, 300 x 100 and 100 x 10, half of the first and a quarter of the last zero."""
    model = models.lenet_300_100((28, 28, 1), 10)
    planned = reporting.plan(model, distribution={"hidden_1": 0.5, "logits": 0.25})
    first, second, last = planned.layers
    assert [row.name for row in planned.layers] == [
        "hidden_1/kernel",
        "hidden_2/kernel",
        "logits/kernel",
    ]
    assert [row.shape for row in planned.layers] == [(784, 300), (300, 100), (100, 10)]
    assert [row.nnz for row in planned.layers] == [117_600, 30_000, 750]
    assert [row.params for row in planned.layers] == [235_200, 30_000, 1_000]
    assert [row.sparsity for row in planned.layers] == [0.5, 0.0, 0.25]
    # 4 bytes per entry and bias; one bit per entry where there are zeros.
    assert first.bytes == 4 * 117_600 + 235_200 / 8 + 4 * 300
    assert second.bytes == second.dense_bytes == 4 * 30_000 + 4 * 100
    assert last.bytes == 4 * 750 + 1_000 / 8 + 4 * 10
    assert planned.bytes == first.bytes + second.bytes + last.bytes
    assert planned.dense_bytes == 4 * 266_610
    assert planned.flops == 2 * (117_600 + 30_000 + 750)
    assert planned.dense_flops == 2 * 266_200
    assert planned.dense_params == 266_610
    assert planned.params == 266_610 - 117_600 - 250
    assert planned.sparsity == pytest.approx((117_600 + 250) / 266_200)
    assert planned.bias_flops == 410
    assert planned.activation_flops == 400
    for value in (planned.params, planned.flops, planned.dense_flops, first.nnz, first.flops):
        assert type(value) is int


def test_normalisation_is_a_parameter_but_takes_no_bytes():
    model = keras.Sequential(
        [keras.Input((5,)), k.Dense(7, use_bias=False), k.BatchNormalization()]
    )
    counted = reporting.report(model)
    assert counted.dense_params == model.count_params() == 35 + 28
    assert counted.dense_bytes == 4 * (35 + 7)


def test_biases_of_recurrent_layers_are_stored_once():
    inputs = keras.Input(SEQUENCE)
    counted = reporting.report(keras.Model(inputs, k.LSTM(4)(inputs)))
    assert counted.dense_bytes == 4 * (3 * 16 + 4 * 16 + 16)


def test_embeddings_have_no_bias():
    inputs = keras.Input((10,), dtype="int32")
    counted = reporting.report(keras.Model(inputs, k.Embedding(9, 6)(inputs)))
    assert counted.dense_bytes == 4 * 9 * 6


def test_excluded_layers_count_as_dense():
    planned = reporting.plan(mlp(), 0.5, uniform, exclude=["hidden"])
    hidden, head = planned.layers
    assert (hidden.masked, hidden.sparsity, hidden.flops) == (False, 0.0, hidden.dense_flops)
    assert (head.masked, head.sparsity) == (True, 0.5)
    assert planned.sparsity == 0.5  # Of what may be masked.


def test_fixed_sparsities_are_kept():
    planned = reporting.plan(mlp(), 0.5, "erk", fixed={"head": 0.25})
    hidden, head = planned.layers
    assert head.sparsity == 0.25
    assert hidden.sparsity == pytest.approx(0.5, abs=0.02)


# A report is what was planned.


def _same(report, other, names=True):
    """Compares all figures; the names of layers that were not given any may differ."""
    report, other = report.to_dict(), other.to_dict()
    if not names:
        for row in (*report["layers"], *other["layers"]):
            del row["name"]
    assert report == other


@pytest.mark.parametrize("case", LAYER_CASES)
def test_report_is_the_plan_and_survives_strip(case):
    model, *_ = layer_model(case)
    planned = reporting.plan(model, 0.5, uniform)
    sparse = sparsify(model)
    _same(reporting.report(sparse), planned)
    _same(reporting.report(tf_rigl.strip(sparse)), planned)
    assert planned.sparsity == pytest.approx(sparse.sparsity)
    assert [row.name for row in planned.layers if row.masked] == list(sparse.masks)


@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_kinds_of_models(kind):
    """The same figures from the plan, the sparse model and the stripped one, built or not."""
    make, paths = MODEL_KINDS[kind]
    model = make()
    x, _ = model_data(kind, batches=1)
    shape = keras.tree.map_structure(lambda a: a.shape[1:], x)
    was_built = model.built
    planned = reporting.plan(model, 0.5, uniform, input_shape=shape)
    assert model.built == was_built
    assert [row.name for row in planned.layers] == paths
    sparse = sparsify(model)
    sparse(x)
    counted = reporting.report(sparse, input_shape=shape)
    _same(counted, planned)
    _same(reporting.report(sparse), planned)
    assert counted.sparsity == sparse.sparsity
    # `strip` copies a model without a graph by making it anew, with new names.
    _same(reporting.report(tf_rigl.strip(sparse)), planned, names=False)
    assert planned.dense_params == tf_rigl.strip(sparse).count_params()


def test_shared_layers_are_counted_at_each_call():
    planned = reporting.plan(MODEL_KINDS["shared"][0](), 0.5, uniform)
    shared, head = planned.layers
    assert shared.params == FEATURES * FEATURES
    assert shared.dense_flops == 2 * (2 * FEATURES * FEATURES)
    assert head.dense_flops == 2 * FEATURES * CLASSES
    assert planned.activation_flops == 2 * FEATURES
    assert planned.dense_bytes == 4 * (
        FEATURES * FEATURES + FEATURES + FEATURES * CLASSES + CLASSES
    )


def test_layers_in_nested_models_are_counted_at_each_call():
    planned = reporting.plan(MODEL_KINDS["sequential-in-functional"][0](), 0.5, uniform)
    once = 2 * (FEATURES * 8 + 8 * FEATURES)
    assert planned.dense_flops == 2 * once + 2 * (FEATURES * 8 + 8 * CLASSES)


def test_layers_that_are_not_called_are_stored_but_not_used():
    class Idle(keras.Model):
        def __init__(self):
            super().__init__()
            self.used, self.idle = k.Dense(4, name="used"), k.Dense(4, name="idle")

        def build(self, input_shape):
            self.used.build(input_shape)
            self.idle.build(input_shape)

        def call(self, x):
            return self.used(x)

    model = Idle()
    model.build((None, 5))
    used, idle = reporting.report(model).layers
    assert (used.flops, idle.flops) == (2 * 5 * 4, 0)
    assert used.bytes == idle.bytes


def test_masked_layers_by_hand():
    """In a plain model, and in a sparse one; paths are those of `masked_weights`."""
    inputs = keras.Input((FEATURES,))
    x = tf_rigl.MaskedLayer(k.Dense(8, name="hidden"), sparsity=0.75)(inputs)
    outputs = k.Dense(CLASSES, name="head")(x)
    for model in (keras.Model(inputs, outputs), tf_rigl.SparseModel(inputs, outputs)):
        counted = reporting.report(model)
        hidden, head = counted.layers
        assert (hidden.name, head.name) == ("hidden/kernel", "head/kernel")
        assert (hidden.nnz, head.nnz) == (20, 24)
        assert (hidden.masked, head.masked) == (True, False)
        assert counted.flops == 2 * (20 + 24)
        assert counted.sparsity == 0.75
        assert counted.dense_params == 80 + 8 + 24 + 3


def test_report_after_training_counts_the_masks():
    sparse = compiled(sparsify(mlp()), run_eagerly=True)
    before = reporting.report(sparse)
    fit(sparse, *random_data(batches=5))
    assert reporting.report(sparse) == before


def test_dense_model_with_a_chance_zero_is_dense():
    model = models.lenet_300_100((28, 28, 1), 10)
    kernel = model.get_layer("hidden_1").kernel
    value = kernel.numpy()
    value[3, 4] = 0.0
    kernel.assign(value)
    counted = reporting.report(model)
    assert counted.sparsity == 0
    assert counted.bytes == counted.dense_bytes


def test_composite_layer_that_names_the_weights_of_its_parts():
    class Named(Block):
        def get_prunable_weights(self):
            return [part.kernel for part in self.parts]

    inputs = keras.Input((4, FEATURES))
    counted = reporting.report(keras.Model(inputs, Named(FEATURES, name="block")(inputs)))
    assert [row.flops for row in counted.layers] == 2 * [4 * 2 * FEATURES * FEATURES]


def test_fixed_batch_sizes_are_divided_out():
    inputs = keras.Input(batch_shape=(6, *SEQUENCE))
    x = k.SimpleRNN(4, stateful=True, return_sequences=True, name="rnn")(inputs)
    counted = reporting.report(keras.Model(inputs, k.Dense(2, name="head")(x)))
    assert [row.flops for row in counted.layers] == [
        10 * 2 * (3 * 4),
        10 * 2 * (4 * 4),
        10 * 2 * (4 * 2),
    ]


def test_time_folded_into_the_batch():
    inputs = keras.Input(SEQUENCE)
    x = k.Dense(4)(keras.ops.reshape(inputs, (-1, 3)))
    counted = reporting.report(keras.Model(inputs, keras.ops.reshape(x, (-1, 10, 4))))
    assert counted.flops == 10 * 2 * (3 * 4)


# The model stays as it is.


def _snapshot(model):
    layers = model._flatten_layers()
    attributes = [(layer, dict(vars(layer))) for layer in layers]
    weights = [w.numpy() for w in model.variables]
    return attributes, weights, copy.copy(random.getstate())


def _check_unchanged(model, snapshot):
    attributes, weights, state = snapshot
    layers = list(model._flatten_layers())
    assert len(layers) == len(attributes)
    for layer, (same, before) in zip(layers, attributes, strict=True):
        assert layer is same
        assert vars(layer).keys() == before.keys()
        for name, value in vars(layer).items():
            assert value is before[name], (layer.name, name)
    for variable, value in zip(model.variables, weights, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    assert random.getstate() == state


@pytest.mark.parametrize(
    "kind", ["sequential", "sequential-unbuilt", "subclassed", "subclassed-unbuilt", "composite"]
)
def test_model_stays_as_it_is(kind):
    model = MODEL_KINDS[kind][0]()
    snapshot = _snapshot(model)
    reporting.plan(model, 0.5, uniform, input_shape=(FEATURES,))
    reporting.report(model, input_shape=(FEATURES,))
    _check_unchanged(model, snapshot)


def test_model_stays_as_it_is_if_the_call_fails():
    class Failing(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = k.Dense(4)

        def call(self, x):
            x = self.dense(x)
            if x.shape[0] == 1:
                raise TypeError("not of one example")
            return x

    model = Failing()
    model(np.zeros((2, 5), "float32"))
    snapshot = _snapshot(model)
    with pytest.raises(ValueError, match="not of one example"):
        reporting.report(model)
    _check_unchanged(model, snapshot)


def test_recurrent_state_and_seeds_stay_as_they_are():
    inputs = keras.Input(batch_shape=(2, *SEQUENCE))
    x = k.LSTM(4, stateful=True, dropout=0.5, seed=1)(inputs)
    model = keras.Model(inputs, k.Dropout(0.5, seed=2)(x))
    model(np.ones((2, *SEQUENCE), "float32"))
    snapshot = _snapshot(model)
    reporting.plan(model, 0.5, uniform)
    _check_unchanged(model, snapshot)


def test_trains_as_before():
    """A plan and a report between `compile` and `fit` change nothing in the result."""
    x, y = random_data(batches=4)
    results = []
    for look in (False, True):
        keras.utils.set_random_seed(0)
        model = compiled(sparsify(MODEL_KINDS["subclassed"][0]()))
        if look:
            reporting.report(model)
        fit(model, x, y)
        if look:
            reporting.report(model)
        results.append(model.get_weights())
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


# Input shapes.


def test_free_axes_take_their_size_from_input_shape():
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, k.Conv2D(4, 3, padding="same")(inputs))
    for shape in ((5, 7, 3), [5, 7, 3], tuple(np.array([5, 7, 3]))):
        assert reporting.report(model, input_shape=shape).flops == 2 * (9 * 3 * 4) * (5 * 7)
    # Nobody says a size, so one is assumed, and the report says so.
    for found in (reporting.report(model), reporting.plan(model, 0.5, "uniform_all")):
        assert found.dense_flops == 2 * (9 * 3 * 4) * 224**2
        assert found.assumed_shapes == [(224, 224, 3)]
        assert found.to_dict()["assumed_shapes"] == [[224, 224, 3]]
        assert "FLOPs for inputs of shape (224, 224, 3): the model leaves sizes free" in str(found)
    given = reporting.report(model, input_shape=(224, 224, 3))
    assert given.assumed_shapes is None
    assert (given.flops, "leaves sizes free" in str(given)) == (
        reporting.report(model).flops,
        False,
    )


def test_free_axes_of_several_inputs_and_of_models_without_a_graph():
    first, tokens = keras.Input((3, None, None)), keras.Input((None,), dtype="int32")
    x = k.GlobalMaxPooling2D(data_format="channels_first")(first)
    y = k.GRU(5)(k.Embedding(9, 6)(tokens))
    model = keras.Model([first, tokens], k.Dense(2)(k.Concatenate()([x, y])))
    found = reporting.report(model)
    assert found.assumed_shapes == [(3, 224, 224), (128,)]
    assert found.flops == reporting.report(model, input_shape=[(3, 8, 8), (128,)]).flops

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = k.Dense(4)

        def call(self, x):
            return self.dense(x)

    model = Own()
    model(keras.Input((None, 3)))
    found = reporting.report(model)
    assert (found.flops, found.assumed_shapes) == (2 * 3 * 4 * 128, [(128, 3)])


def test_free_axes_that_do_not_matter_need_no_size():
    tokens = keras.Input((None,), dtype="int32")
    x = k.GlobalAveragePooling1D()(k.Embedding(9, 6)(tokens))
    model = keras.Model(tokens, k.Dense(3)(x))
    assert reporting.plan(model, 0.5).dense_flops == 2 * 6 * 3


def test_unknown_timesteps_count_as_128():
    inputs = keras.Input((None, 3))
    for layer in (k.GRU(4), k.TimeDistributed(k.Dense(4))):
        model = keras.Model(inputs, layer(inputs))
        found = reporting.report(model)
        assert found.assumed_shapes == [(128, 3)]
        assert found.flops == reporting.report(model, input_shape=(128, 3)).flops
        assert found.flops == 12.8 * reporting.report(model, input_shape=(10, 3)).flops


def test_several_inputs_by_name_or_in_order():
    a, b = keras.Input((None, 3), name="a"), keras.Input((None, 4), name="b")
    outputs = k.Concatenate(axis=1)([k.Dense(2)(a), k.Dense(2)(b)])
    expected = 2 * 5 * (3 * 2) + 2 * 6 * (4 * 2)
    model = keras.Model([b, a], outputs)
    for shape in ([(6, 4), (5, 3)], {"a": (5, 3), "b": (6, 4)}):
        assert reporting.report(model, input_shape=shape).flops == expected
    model = keras.Model({"b": b, "a": a}, outputs)
    assert reporting.report(model, input_shape={"a": (5, 3), "b": (6, 4)}).flops == expected
    with pytest.raises(ValueError, match=r"does not fit the inputs.*Received: input_shape"):
        reporting.report(model, input_shape={"a": (5, 3)})


def test_several_arguments_of_call_by_name():
    class TwoArguments(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.one, self.two = k.Dense(4, name="one"), k.Dense(4, name="two")

        def call(self, first, second):
            return self.one(first) + self.two(second)

    model = TwoArguments()
    planned = reporting.plan(model, 0.5, uniform, input_shape={"first": (5,), "second": (6,)})
    assert planned.dense_flops == 2 * (5 * 4 + 6 * 4)
    model(np.zeros((2, 5), "float32"), np.zeros((2, 6), "float32"))
    counted = reporting.report(model, input_shape={"first": (5,), "second": (6,)})
    assert counted.dense_flops == planned.dense_flops
    with pytest.raises(ValueError, match="Argument `input_shape` must be"):
        reporting.report(model)


@pytest.mark.parametrize(
    "shape", [784, "784", (None, 10), (0,), (1.5,), {"a": 3}, {}, [(3,), None], (True,)]
)
def test_bad_input_shapes(shape):
    with pytest.raises(ValueError, match="Argument `input_shape` must be a tuple of positive"):
        reporting.report(mlp(), input_shape=shape)


@pytest.mark.parametrize("shape", [(11,), (1, FEATURES), [(FEATURES,), (FEATURES,)]])
def test_input_shapes_that_do_not_fit(shape):
    with pytest.raises(ValueError, match=r"`input_shape` does not fit.*\(10,\).*Received"):
        reporting.plan(mlp(), input_shape=shape)


def test_input_shapes_that_do_not_fit_a_subclassed_model():
    model = MODEL_KINDS["subclassed"][0]()
    with pytest.raises(ValueError, match="Argument `input_shape` must be a shape that the model"):
        reporting.plan(model, input_shape=(11,))
    with pytest.raises(ValueError, match="building failed"):
        reporting.plan(SubclassedDict(), input_shape=(11,))


# Other bad input.


def test_models_that_are_not_built():
    model = MODEL_KINDS["sequential-unbuilt"][0]()
    with pytest.raises(ValueError, match="`input_shape` is needed for a model that is not built"):
        reporting.plan(model)
    without_config = WithoutConfig(k.Dense(8))
    with pytest.raises(ValueError, match=r"not built, and Keras cannot clone it: call it on data"):
        reporting.plan(without_config, input_shape=(FEATURES,))
    without_config(np.zeros((1, FEATURES), "float32"))
    assert reporting.plan(without_config, 0.5, uniform).dense_flops > 0
    with pytest.raises(ValueError, match=r"not built, so it has no masks yet"):
        reporting.report(sparsify(model), input_shape=(FEATURES,))


def test_layers_that_are_not_built_are_not_built_by_looking():
    model = WithoutConfig(k.Dense(8, name="hidden"))
    model.built = True
    with pytest.raises(ValueError, match=r"a layer that is not built, 'hidden'"):
        reporting.report(model, input_shape=(FEATURES,))
    assert not model.hidden.built
    assert not model.weights
    model(np.zeros((1, FEATURES), "float32"))
    counted = reporting.report(model, input_shape=(FEATURES,))
    assert counted.flops == 2 * (FEATURES * 8 + 8 * CLASSES)
    with pytest.raises(ValueError, match="does not say what shape it was built for"):
        reporting.report(model)  # It was never asked to build.


@pytest.mark.parametrize("function", [reporting.report, reporting.plan])
def test_what_is_no_model(function):
    with pytest.raises(ValueError, match=r"Argument `model` must be a `keras\.Model`"):
        function(k.Dense(3))


def test_arguments_of_plan_are_checked():
    with pytest.raises(ValueError, match="Argument `sparsity` must be"):
        reporting.plan(mlp(), 1.0)
    with pytest.raises(ValueError, match="Did you mean 'erk'"):
        reporting.plan(mlp(), distribution="erkk")
    with pytest.raises(ValueError, match="matches no maskable layer"):
        reporting.plan(mlp(), exclude=["nothing"])
    for fixed in ([("head", 0.5)], ["head"], 0.5):
        with pytest.raises(ValueError, match="Argument `fixed` must be a mapping"):
            reporting.plan(mlp(), fixed=fixed)
    with pytest.raises(ValueError, match=r"fixed\['head'\]=1.5"):
        reporting.plan(mlp(), fixed={"head": 1.5})
    with pytest.raises(ValueError, match="no maskable layer"):
        reporting.plan(keras.Sequential([keras.Input((3,)), k.ReLU()]))


def test_quantized_layers_are_refused():
    model = mlp()
    model.quantize("int8")
    with pytest.raises(ValueError, match="must hold no quantized layers"):
        reporting.report(model)


# Training.


@pytest.fixture
def planned():
    """f_D = 2 * 104, f_S = 2 * 52."""
    result = reporting.plan(mlp(), 0.5, uniform)
    assert (result.dense_flops, result.flops) == (208, 104)
    return result


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("dense", 3 * 208),
        ("static", 3 * 104),
        ("set", 3 * 104),
        ("snip", 3 * 104),
        ("snfs", 2 * 104 + 208),
        ("edge_popup", 2 * 104 + 208),
        # Its updates come every 100 steps.
        ("rigl", (3 * 104 * 100 + 2 * 104 + 208) / 101),
    ],
)
def test_training_step_by_hand(planned, method, expected):
    result = reporting.train_flops(planned, method, steps=1000)
    assert type(result) is float
    assert result == pytest.approx(expected)


def test_training_step_of_rigl_depends_on_its_interval(planned):
    method = tf_rigl.methods.RigL(update_interval=4)
    expected = (3 * 104 * 4 + 2 * 104 + 208) / 5
    assert reporting.train_flops(planned, method) == pytest.approx(expected)
    assert reporting.train_flops(planned) == reporting.train_flops(planned, "rigl")


def test_the_formula_of_rigl_counts_an_update_beside_the_interval(planned):
    """The paper's does; of the steps of algorithm 1, one in an interval is an update."""
    method = tf_rigl.methods.RigL(update_interval=100, end_step=10**6)
    updates = [method.plan(t, [1]) is not None for t in range(100, 1100)]
    exact = sum(2 * 104 + 208 if update else 3 * 104 for update in updates) / len(updates)
    low = exact - reporting.train_flops(planned, method)
    assert low == pytest.approx((208 - 104) / (100 * 101))


def test_bad_arguments_of_train_flops(planned):
    with pytest.raises(ValueError, match="Argument `method` must be one of"):
        reporting.train_flops(planned, "adam")
    with pytest.raises(ValueError, match="Argument `report` must be"):
        reporting.train_flops(mlp(), "rigl")
    for steps in (None, 0, -1, 10.5, "10", True):
        with pytest.raises(ValueError, match=f"Argument `steps` must be .*steps={steps!r}"):
            reporting.train_flops(planned, "magnitude", steps=steps)


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize(
    "schedule",
    [
        schedules.ConstantSparsity(begin_step=3, frequency=2),
        schedules.PolynomialDecay(begin_step=2, end_step=0.75, frequency=3),
        schedules.PolynomialDecay(0.2, 0.5, begin_step=2, end_step=9, frequency=4),
        lambda step: (step % 3 == 0, 0.25 if step < 6 else 0.5),
        lambda step: (step in (2, 5), {2: 0.3, 5: 0.5}.get(step, 0.0)),
    ],
    ids=["constant", "open", "polynomial", "function", "function that ends at 0"],
)
def test_training_step_of_pruning_is_the_mean_over_a_run(planned, schedule, scope):
    """Three times what the weights left by then cost, but for the rounding of counts."""
    method = tf_rigl.methods.MagnitudePruning(schedule, scope=scope)
    model = compiled(sparsify(mlp(), method), run_eagerly=True)
    masks = fit(model, *random_data(batches=12))
    costs = [3 * 2 * sum(int(mask.sum()) for mask in each.values()) for each in masks]
    assert len(set(costs)) > 1
    expected = reporting.train_flops(planned, method, steps=12)
    assert expected == pytest.approx(np.mean(costs), abs=3 * 2 * 2 / 2)


def test_training_step_of_pruning_by_hand(planned):
    """Two steps dense, eight at half; with layers of different sparsity, each its own."""
    method = tf_rigl.methods.MagnitudePruning(schedules.ConstantSparsity(begin_step=3))
    result = reporting.train_flops(planned, method, steps=10)
    assert result == pytest.approx(3 * (2 * 208 + 8 * 104) / 10)
    other = reporting.plan(mlp(), 0.5, {"hidden": 0.75})
    result = reporting.train_flops(other, method, steps=10)
    assert result == pytest.approx(3 * (2 * 208 + 8 * (40 + 48)) / 10)


@pytest.mark.parametrize(("name", "dense"), [("snip", 0), ("snfs", 104)])
def test_training_step_of_methods_whose_cost_stays(planned, name, dense):
    """The same at each step: the dense gradient of SNFS is one more dense than sparse pass."""
    for steps in (None, 1, 1000):
        assert reporting.train_flops(planned, name, steps=steps) == 3 * 104 + dense


# How a report is shown.


def test_to_dict_is_json():
    planned = reporting.plan(mlp(), 0.5, uniform)
    result = planned.to_dict()
    assert json.loads(json.dumps(result)) == result
    assert result["layers"][0]["name"] == "hidden/kernel"
    assert result["layers"][0]["shape"] == [FEATURES, 8]
    assert result["flops"] == planned.flops


def test_table():
    lines = str(reporting.plan(models.lenet_300_100((28, 28, 1), 10), 0.9)).splitlines()
    header, rule, first, *_ = lines
    assert header.split()[:5] == ["weight", "shape", "sparsity", "params", "nnz"]
    assert first.split()[:4] == ["hidden_1/kernel", "784x300", "0.9204", "235,200"]
    assert len(header) == len(rule) == len(first)
    total = next(line for line in lines if line.startswith("total"))
    assert total.split() == ["total", "0.9000", "266,200", "26,621", "532,400", "53,242", "0.141"]
    text = "\n".join(lines)
    assert "parameters: 27,031 of 266,610 (0.101x)" in text
    assert "FLOPs: 5.324e+04 of 5.324e+05 (0.100x); with biases and activations" in text
    assert "size: 0.141 MB of 1.066 MB (0.132x)" in text


def test_empty_table():
    """A model without a single kernel has a report, too."""
    counted = reporting.report(keras.Sequential([keras.Input((3,)), k.ReLU()]))
    assert (counted.flops, counted.sparsity, counted.layers) == (0, 0.0, [])
    assert "total" in str(counted)
    assert math.isfinite(counted.bytes)
