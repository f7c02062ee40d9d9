"""Small models, small data, and the checks that many tests share."""

import itertools

import keras
import numpy as np

import tf_rigl

BATCH = 8
FEATURES = 10
CLASSES = 3


@keras.saving.register_keras_serializable(package="tests")
def uniform(shapes, sparsity):
    """The same sparsity everywhere, the first layer included."""
    return tf_rigl.distributions.uniform(shapes, sparsity, first_layer_dense=False)


def rigl(**kwargs):
    """RigL with updates at steps 2, 4, 6, ... that move half of the connections."""
    arguments = {
        "update_interval": 2,
        "drop_fraction": 0.5,
        "end_step": 1000,
        "decay": "constant",
    }
    return tf_rigl.methods.RigL(**{**arguments, **kwargs})


_OFTEN = {"update_interval": 2, "drop_fraction": 0.5, "end_step": 1000, "decay": "constant"}
_RISING = {"begin_step": 1, "end_step": 6, "frequency": 2}

# Every method, so small that masks change within eight batches, and pruning is over.
METHODS = {
    "static": tf_rigl.methods.Static,
    "set": lambda: tf_rigl.methods.SET(**_OFTEN),
    "rigl": rigl,
    "rigl-after": lambda: rigl(apply_optimizer_on_update=True),
    "rigl-batches": lambda: rigl(update_interval=3, gradient_batches=3),
    "snfs": lambda: tf_rigl.methods.SNFS(**_OFTEN),
    "snip": tf_rigl.methods.SNIP,
    "snip-global": lambda: tf_rigl.methods.SNIP(scope="global", batches=3),
    "magnitude": lambda: tf_rigl.methods.MagnitudePruning(
        tf_rigl.schedules.PolynomialDecay(**_RISING)
    ),
    "magnitude-global": lambda: tf_rigl.methods.MagnitudePruning(
        tf_rigl.schedules.PolynomialDecay(**_RISING), scope="global"
    ),
    "magnitude-constant": lambda: tf_rigl.methods.MagnitudePruning(
        tf_rigl.schedules.ConstantSparsity(begin_step=3, frequency=2)
    ),
    "edge-popup": tf_rigl.methods.EdgePopup,
    "granet": lambda: tf_rigl.methods.GraNet(update_interval=2, prune_end=5, end_step=7),
    "granet-dense": lambda: tf_rigl.methods.GraNet(
        update_interval=2, prune_end=5, end_step=7, initial_sparsity=0.0
    ),
    "srigl": lambda: tf_rigl.methods.SRigL(**_OFTEN),
    "mest": lambda: tf_rigl.methods.MEST(update_interval=2, end_step=7),
    "mest-soft": lambda: tf_rigl.methods.MEST(update_interval=2, end_step=7, soft=True),
    "acdc": lambda: tf_rigl.methods.ACDC(warm_up=2, phase=1, last_dense=(4, 6)),
    "acdc-layer": lambda: tf_rigl.methods.ACDC("layer", warm_up=2, phase=1, last_dense=(4, 6)),
    "ste": tf_rigl.methods.STE,
    "sr-ste": lambda: tf_rigl.methods.SRSTE(decay=0.01),
    "grasp": tf_rigl.methods.GraSP,
    "grasp-global": lambda: tf_rigl.methods.GraSP(scope="global"),
}


def random_data(shape=(FEATURES,), batches=8, batch=BATCH, seed=0, dtype="float32"):
    """Features of a shape, and labels of `CLASSES` classes."""
    rng = np.random.default_rng(seed)
    size = (batches * batch, *shape)
    integers = np.issubdtype(np.dtype(dtype), np.integer)
    x = rng.integers(0, 9, size) if integers else rng.normal(size=size)
    return x.astype(dtype), rng.integers(0, CLASSES, len(x))


def mlp(name="mlp"):
    """A functional model of two layers, "hidden" and "head"."""
    inputs = keras.Input((FEATURES,))
    x = keras.layers.Dense(8, activation="tanh", name="hidden")(inputs)
    return keras.Model(inputs, keras.layers.Dense(CLASSES, name="head")(x), name=name)


@keras.saving.register_keras_serializable(package="tests")
class Detached(keras.layers.Layer):
    """Lets no gradient through."""

    def call(self, x):
        return keras.ops.stop_gradient(x)


def detached_mlp():
    """That model, but "hidden" has no gradient."""
    inputs = keras.Input((FEATURES,))
    x = Detached()(keras.layers.Dense(8, activation="tanh", name="hidden")(inputs))
    return keras.Model(inputs, keras.layers.Dense(CLASSES, name="head")(x))


def sparsify(model, method=None, sparsity=0.5, distribution=uniform, seed=0, **kwargs):
    """`tf_rigl.sparsify` with arguments under which masks of small models move."""
    method = rigl() if method is None else method
    return tf_rigl.sparsify(
        model, method, sparsity=sparsity, distribution=distribution, seed=seed, **kwargs
    )


def compiled(model, optimizer="sgd", **kwargs):
    """Compiles a classifier, and returns it."""
    if optimizer == "sgd":
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), **kwargs)
    return model


def active(model):
    """The number of active entries of each masked weight, by path."""
    return {path: int(mask.sum()) for path, mask in model.masks.items()}


def check_invariants(model, counts=None, *, finite=True):
    """Weights are exactly zero under the mask, and counts are those of the target.

    Args:
        model: a `tf_rigl.SparseModel` with unstructured masks.
        counts: what `active` has to return. Defaults to the counts of the targets.
        finite: bool, whether weights have to be finite.
    """
    assert model.masked_weights
    for item in model.masked_weights:
        weight, mask = keras.ops.convert_to_numpy(item.weight), item.mask.numpy()
        assert mask.dtype == bool
        assert np.isfinite(weight).all() or not finite, item.path
        assert (weight[~mask] == 0).all(), item.path
    if counts is None:
        counts = {item.path: item.target_active() for item in model.masked_weights}
    assert active(model) == counts


class CheckEveryStep(keras.callbacks.Callback):
    """Checks the invariants after every batch, and keeps the masks of each step.

    Where a method begins dense, counts are not those of the target yet, but fall, unless it
    grows as well. Some that begin sparse change counts too.
    """

    def __init__(self):
        super().__init__()
        self.masks = []

    def on_train_batch_end(self, batch, logs=None):
        method = self.model.method
        free = method.begins_dense or not method.keeps_counts
        check_invariants(self.model, active(self.model) if free else None)
        self.masks.append(self.model.masks)
        if method.begins_dense and method.keeps_counts:
            for earlier, later in itertools.pairwise(self.masks[-2:]):
                assert not any((later[path] & ~earlier[path]).any() for path in later)


def check_pruned(model, *, finite=True):
    """The model has the zeros asked for, each weight its own or all together."""
    counts = None
    if isinstance(model.method, tf_rigl.methods.SRigL):
        counts = active(model)
        for item in model.masked_weights:
            each = item.mask.numpy().sum(axis=0)  # Of matrices; ablated outputs have none.
            assert len(set(each) - {0}) == 1
            outputs = np.count_nonzero(each)
            left = int(np.floor((1 - item.target_sparsity) * item.mask.numpy().size + 1e-9))
            assert counts[item.path] == outputs * max(1, left // outputs)
    if model.method.scope == "global":
        counts = active(model)
        asked = sum(item.target_active() for item in model.masked_weights)
        assert sum(counts.values()) == asked
    check_invariants(model, counts, finite=finite)


def fit(model, x, y, **kwargs):
    """Trains in order and in silence, checks every step, and returns the masks of each."""
    check = CheckEveryStep()
    arguments = {"batch_size": BATCH, "shuffle": False, "verbose": 0, "callbacks": [check]}
    model.fit(x, y, **{**arguments, **kwargs})
    return check.masks


def equal_masks(one, other):
    """Whether two dicts of masks are the same."""
    return one.keys() == other.keys() and all((one[p] == other[p]).all() for p in one)


def check_equal_models(one, other, exact=True):
    """Two models have the same masks, weights and step."""
    assert one.step == other.step
    assert equal_masks(one.masks, other.masks)
    for a, b in zip(one.weights, other.weights, strict=True):
        a, b = keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b)
        if exact:
            np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@keras.saving.register_keras_serializable(package="tests")
class Projection(keras.layers.Layer):
    """A layer of one's own that names what may be masked."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape):
        self.matrix = self.add_weight(shape=(input_shape[-1], self.units), name="matrix")
        self.scale = self.add_weight(shape=(self.units,), initializer="ones", name="scale")

    def call(self, x):
        return x @ self.matrix * self.scale

    def get_prunable_weights(self):
        return [self.matrix]

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable(package="tests")
class Experts(keras.layers.Layer):
    """A mixture of experts that does not name its weights: two are kernels, one is added."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape):
        features = input_shape[-1]
        self.up = self.add_weight(shape=(2, features, self.units), name="up")
        self.down = self.add_weight(shape=(2, self.units, features), name="down")
        self.place = self.add_weight(shape=input_shape[1:], name="place")

    def call(self, x):
        hidden = keras.ops.einsum("btd,edh->beth", x + self.place, self.up)
        return keras.ops.mean(keras.ops.einsum("beth,ehd->betd", hidden, self.down), axis=1)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def _embedding_lstm(tokens):
    x = keras.layers.Embedding(9, 6, mask_zero=True, name="embedding")(tokens)
    return keras.layers.LSTM(4, name="lstm")(x)


def _attention(layer):
    return lambda x: layer(x, x)


def _layer_cases():
    """Layer kinds: input shape, input type, what to apply, and which weights get masks."""
    k = keras.layers
    cell = ["{}/kernel", "{}/recurrent_kernel"]

    def of(name, weights):
        return [w.format(name) for w in weights]

    projections = [f"mha/{p}/kernel" for p in ("query", "key", "value", "attention_output")]
    grouped = [f"gqa/{p}/kernel" for p in ("query", "key", "value", "attention_output")]
    directions = [f"bi/{d}_lstm/lstm_cell" for d in ("forward", "backward")]
    sequence, image, volume = (4, 6), (6, 6, 3), (4, 4, 4, 2)
    f, i = "float32", "int32"
    return {
        "Dense": ((6,), f, lambda: k.Dense(8, name="l"), ["l/kernel"]),
        "EinsumDense": (
            sequence,
            f,
            lambda: k.EinsumDense("abc,cd->abd", (4, 8), bias_axes="d", name="l"),
            ["l/kernel"],
        ),
        "Conv1D": (sequence, f, lambda: k.Conv1D(4, 3, name="l"), ["l/kernel"]),
        "Conv2D": (image, f, lambda: k.Conv2D(4, 3, name="l"), ["l/kernel"]),
        "Conv3D": (volume, f, lambda: k.Conv3D(4, 3, name="l"), ["l/kernel"]),
        "Conv1DTranspose": (sequence, f, lambda: k.Conv1DTranspose(4, 3, name="l"), ["l/kernel"]),
        "Conv2DTranspose": (image, f, lambda: k.Conv2DTranspose(4, 3, name="l"), ["l/kernel"]),
        "Conv3DTranspose": (volume, f, lambda: k.Conv3DTranspose(2, 2, name="l"), ["l/kernel"]),
        "SeparableConv1D": (
            sequence,
            f,
            lambda: k.SeparableConv1D(8, 3, name="l"),
            ["l/pointwise_kernel"],
        ),
        "SeparableConv2D": (
            image,
            f,
            lambda: k.SeparableConv2D(8, 3, name="l"),
            ["l/pointwise_kernel"],
        ),
        "Embedding": ((7,), i, lambda: k.Embedding(9, 6, name="l"), ["l/embeddings"]),
        "Embedding-mask_zero-LSTM": (
            (7,),
            i,
            lambda: _embedding_lstm,
            ["embedding/embeddings", *of("lstm/lstm_cell", cell)],
        ),
        "SimpleRNN": (
            sequence,
            f,
            lambda: k.SimpleRNN(4, name="l"),
            of("l/simple_rnn_cell", cell),
        ),
        "GRU": (sequence, f, lambda: k.GRU(4, name="l"), of("l/gru_cell", cell)),
        "LSTM": (sequence, f, lambda: k.LSTM(4, name="l"), of("l/lstm_cell", cell)),
        "Bidirectional": (
            sequence,
            f,
            lambda: k.Bidirectional(k.LSTM(4, name="lstm"), name="bi"),
            [w for direction in directions for w in of(direction, cell)],
        ),
        "RNN-cells": (
            sequence,
            f,
            lambda: k.RNN([k.GRUCell(4, name="a"), k.LSTMCell(4, name="b")], name="l"),
            of("l/stacked_rnn_cells/a", cell) + of("l/stacked_rnn_cells/b", cell),
        ),
        "TimeDistributed": (
            sequence,
            f,
            lambda: k.TimeDistributed(k.Dense(4, name="inner"), name="l"),
            ["l/inner/kernel"],
        ),
        "MultiHeadAttention": (
            sequence,
            f,
            lambda: _attention(k.MultiHeadAttention(2, 3, name="mha")),
            projections,
        ),
        "GroupQueryAttention": (
            sequence,
            f,
            lambda: _attention(k.GroupQueryAttention(3, 4, 2, name="gqa")),
            grouped,
        ),
        "get_prunable_weights": ((6,), f, lambda: Projection(8, name="l"), ["l/matrix"]),
        "ConvLSTM2D": (
            (3, 4, 4, 2),
            f,
            lambda: k.ConvLSTM2D(2, 3, name="l"),
            of("l/conv_lstm_cell", cell),
        ),
        "custom": (sequence, f, lambda: Experts(4, name="l"), ["l/up", "l/down"]),
    }


LAYER_CASES = _layer_cases()


def layer_model(case):
    """A classifier around one kind of layer; its other weights are in "head".

    Returns:
        The model, its input shape and type, and the paths of the weights of the layer
        that are to get masks.
    """
    shape, dtype, make, paths = LAYER_CASES[case]
    inputs = keras.Input(shape, dtype=dtype)
    x = keras.layers.Flatten()(make()(inputs))
    outputs = keras.layers.Dense(CLASSES, name="head")(x)
    return keras.Model(inputs, outputs), shape, dtype, paths


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    """A model with a `call` of its own, which Keras can copy, with dropout and statistics."""

    def __init__(self, units=8, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.hidden = keras.layers.Dense(units, activation="tanh", name="hidden")
        self.norm = keras.layers.BatchNormalization(name="norm")
        self.dropout = keras.layers.Dropout(0.2, seed=1)
        self.head = keras.layers.Dense(CLASSES, name="head")

    def call(self, x, training=False):
        x = self.norm(self.hidden(x), training=training)
        return self.head(self.dropout(x, training=training))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable(package="tests")
class SubclassedDict(keras.Model):
    """A subclassed model of two inputs in a dict, two outputs, and no `training`."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.left = keras.layers.Dense(8, name="left")
        self.right = keras.layers.Dense(8, name="right")
        self.heads = [keras.layers.Dense(CLASSES, name=f"head_{n}") for n in range(2)]

    def call(self, inputs):
        x = self.left(inputs["a"]) * self.right(inputs["b"])
        return {"one": self.heads[0](x), "two": self.heads[1](x)}


class WithoutConfig(keras.Model):
    """A subclassed model that cannot be made from its configuration."""

    def __init__(self, hidden):
        super().__init__()
        self.hidden = hidden
        self.head = keras.layers.Dense(CLASSES, name="head")

    def call(self, x):
        return self.head(self.hidden(x))


@keras.saving.register_keras_serializable(package="tests")
class Block(keras.layers.Layer):
    """A composite layer: a residual branch of two layers in a list and a normalisation."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.parts = [keras.layers.Dense(units, name=f"part_{n}") for n in range(2)]
        self.norm = keras.layers.LayerNormalization(name="norm")

    def build(self, input_shape):
        for part in self.parts:
            part.build(input_shape)
        self.norm.build(input_shape)

    def call(self, x):
        return self.norm(x + self.parts[1](keras.ops.tanh(self.parts[0](x))))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def _sequential(*layers):
    return keras.Sequential([*layers, keras.layers.Dense(CLASSES, name="head")])


def _multi_input():
    one, two = keras.Input((FEATURES,)), keras.Input((FEATURES,))
    x = keras.layers.Dense(8, name="one")(one) * keras.layers.Dense(8, name="two")(two)
    return keras.Model([one, two], keras.layers.Dense(CLASSES, name="head")(x))


def _dict_input_and_output():
    inputs = {"a": keras.Input((FEATURES,), name="a"), "b": keras.Input((FEATURES,), name="b")}
    x = keras.layers.Dense(8, name="one")(keras.layers.Concatenate()([inputs["a"], inputs["b"]]))
    heads = {n: keras.layers.Dense(CLASSES, name=f"head_{n}")(x) for n in ("one", "two")}
    return keras.Model(inputs, heads)


def _multi_output():
    inputs = keras.Input((FEATURES,))
    x = keras.layers.Dense(8, name="hidden")(inputs)
    return keras.Model(inputs, [keras.layers.Dense(CLASSES, name=n)(x) for n in ("one", "two")])


def _shared():
    inputs = keras.Input((FEATURES,))
    layer = keras.layers.Dense(FEATURES, activation="tanh", name="shared")
    x = layer(layer(inputs))
    return keras.Model(inputs, keras.layers.Dense(CLASSES, name="head")(x))


def _operations():
    """A graph that holds bare operations beside layers."""
    inputs = keras.Input((FEATURES,))
    x = keras.layers.Dense(8, name="hidden")(inputs)
    x = keras.ops.tanh(x) * 2 + x[:, ::-1]
    return keras.Model(inputs, keras.layers.Dense(CLASSES, name="head")(x))


def _nested(inner):
    inputs = keras.Input((FEATURES,))
    x = keras.layers.Dense(8, activation="tanh", name="last")(inner(inner(inputs)))
    return keras.Model(inputs, keras.layers.Dense(CLASSES, name="head")(x))


def _inner_functional():
    inputs = keras.Input((FEATURES,))
    x = keras.layers.Dense(8, activation="tanh", name="hidden")(inputs)
    return keras.Model(inputs, keras.layers.Dense(FEATURES, name="out")(x), name="inner")


def _inner_sequential():
    layers = [keras.layers.Dense(8, name="hidden"), keras.layers.Dense(FEATURES, name="out")]
    return keras.Sequential([keras.Input((FEATURES,)), *layers], name="inner")


def _built(model, inputs):
    model(inputs)
    return model


def _dense_and_dropout():
    return (
        keras.layers.Dense(8, activation="tanh", name="hidden"),
        keras.layers.BatchNormalization(name="norm"),
        keras.layers.Dropout(0.2, seed=1),
    )


_ONE = keras.tree.map_structure(lambda x: x[:1], random_data()[0])
_PATHS = ["hidden/kernel", "head/kernel"]
_INNER = ["inner/hidden/kernel", "inner/out/kernel", "last/kernel", "head/kernel"]
_TWO_HEADS = ["head_one/kernel", "head_two/kernel"]
_DICT = ["left/kernel", "right/kernel", "head_0/kernel", "head_1/kernel"]

# Kinds of models: how to make one, and the paths of its maskable weights.
MODEL_KINDS = {
    "sequential": (
        lambda: keras.Sequential(
            [keras.Input((FEATURES,)), *_sequential(*_dense_and_dropout()).layers]
        ),
        _PATHS,
    ),
    "sequential-unbuilt": (lambda: _sequential(*_dense_and_dropout()), _PATHS),
    "functional": (mlp, _PATHS),
    "operations": (_operations, _PATHS),
    "multi-input": (_multi_input, ["one/kernel", "two/kernel", "head/kernel"]),
    "multi-output": (_multi_output, ["hidden/kernel", "one/kernel", "two/kernel"]),
    "dict": (_dict_input_and_output, ["one/kernel", *_TWO_HEADS]),
    "shared": (_shared, ["shared/kernel", "head/kernel"]),
    "functional-in-functional": (lambda: _nested(_inner_functional()), _INNER),
    "sequential-in-functional": (lambda: _nested(_inner_sequential()), _INNER),
    "composite": (
        lambda: keras.Sequential(
            [
                keras.Input((FEATURES,)),
                Block(FEATURES, name="block"),
                keras.layers.Dense(CLASSES, name="head"),
            ]
        ),
        ["block/part_0/kernel", "block/part_1/kernel", "head/kernel"],
    ),
    "subclassed": (lambda: _built(Subclassed(), _ONE), _PATHS),
    "subclassed-unbuilt": (Subclassed, _PATHS),
    "subclassed-dict": (lambda: _built(SubclassedDict(), {"a": _ONE, "b": _ONE}), _DICT),
    "subclassed-dict-unbuilt": (SubclassedDict, _DICT),
}


def model_data(kind, batches=8, seed=0):
    """Inputs and labels in the structure that a kind of model takes."""
    x, y = random_data(batches=batches, seed=seed)
    if kind == "multi-input":
        x = [x, x[:, ::-1]]
    elif "dict" in kind:
        x = {"a": x, "b": x[:, ::-1]}
    if "dict" in kind:
        y = {"one": y, "two": (y + 1) % CLASSES}
    elif kind == "multi-output":
        y = [y, (y + 1) % CLASSES]
    return x, y


@keras.saving.register_keras_serializable("tests.helpers")
class Feed(keras.layers.Layer):
    """Two layers that are named automatically, as in examples of keras.io."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = keras.layers.Dense(64), keras.layers.Dense(64)

    def build(self, shape):
        self.first.build(shape)
        self.second.build(shape)

    def call(self, x):
        return self.second(keras.ops.relu(self.first(x)))
