"""Functional and Sequential models of Keras's own layers."""

import tempfile

import keras
import numpy as np
import tensorflow as tf

from benchmarks.sweep.case import Case, by_labels, by_squares, floats, integers, row

layers, ops = keras.layers, keras.ops
CLASSES = 3
KIND = "graphs of Keras's own layers"


def words(examples=24):
    """Sentences of a few words."""
    vocabulary = np.array(["red", "green", "blue", "cat", "dog", "bird", "runs", "sleeps", "sings"])
    return np.array([" ".join(vocabulary[line]) for line in integers(9, 5, examples=examples)])


@row(KIND, ["set", "snfs", "magnitude", "snip", "block_4x1", "2:4", "jit", "executions", "float16"])
def perceptron():
    """Two hidden layers, batch normalisation and dropout."""
    model = keras.Sequential([keras.Input((16,))])
    for width in (32, 16):
        model.add(layers.Dense(width))
        model.add(layers.BatchNormalization())
        model.add(layers.ReLU())
        model.add(layers.Dropout(0.1))
    model.add(layers.Dense(CLASSES))
    return Case(model, floats(16), integers(CLASSES))


@row(KIND, ["sparse compute"])
def wide_perceptron():
    """Layers of blocks."""
    model = keras.Sequential([keras.Input((32,))])
    model.add(layers.Dense(32, activation="relu"))
    model.add(layers.Dense(16, activation="relu"))
    model.add(layers.Dense(8))
    return Case(model, floats(32), integers(8))


@row(KIND, ["snip", "float16"])
def wide_and_deep():
    """A table of numbers and words: dict inputs, each prepared inside the model."""
    cities = np.array(["oslo", "lima", "rome", "pune"])
    x = {
        "age": floats(1) * 9 + 40,
        "city": tf.constant(cities[integers(4, 1)]),
        "day": integers(7, 1),
    }
    inputs = {
        "age": keras.Input((1,), name="age"),
        "city": keras.Input((1,), name="city", dtype="string"),
        "day": keras.Input((1,), name="day", dtype="int32"),
    }
    normal = layers.Normalization()
    normal.adapt(x["age"])
    age = normal(inputs["age"])
    city = layers.StringLookup(vocabulary=list(cities), output_mode="int")(inputs["city"])
    city = layers.Flatten()(layers.Embedding(5, 6)(city))
    day = layers.CategoryEncoding(7, output_mode="one_hot")(inputs["day"])
    deep = layers.Concatenate()([age, city])
    for width in (24, 12):
        deep = layers.Dense(width, activation="relu")(deep)
    outputs = layers.Dense(CLASSES)(layers.Concatenate()([day, deep]))
    return Case(keras.Model(inputs, outputs), x, integers(CLASSES))


@row(KIND, ["magnitude", "float16", "jit"])
def u_net():
    """Segments images: down, up, and connections between."""
    x = inputs = keras.Input((16, 16, 3))
    skips = []
    for width in (8, 16):
        x = layers.Conv2D(width, 3, padding="same", activation="relu")(x)
        skips.append(x)
        x = layers.MaxPooling2D()(x)
    x = layers.SeparableConv2D(16, 3, padding="same", activation="relu")(x)
    for width, skip in zip((16, 8), reversed(skips), strict=True):
        x = layers.Conv2DTranspose(width, 3, strides=2, padding="same", activation="relu")(x)
        x = layers.Concatenate()([x, skip])
        x = layers.BatchNormalization()(x)
    outputs = layers.Conv2D(2, 1)(x)
    return Case(keras.Model(inputs, outputs), floats(16, 16, 3), integers(2, 16, 16))


@row(KIND)
def conv_lstm():
    """Predicts the next frame of a film."""
    inputs = keras.Input((3, 8, 8, 2))
    x = layers.ConvLSTM2D(6, 3, padding="same", return_sequences=True)(inputs)
    x = layers.LayerNormalization()(x)
    x = layers.ConvLSTM2D(4, 3, padding="same")(x)
    outputs = layers.Conv2D(1, 3, padding="same")(x)
    model = keras.Model(inputs, outputs)
    return Case(model, floats(3, 8, 8, 2), floats(8, 8, 1), by_squares, lite={"batch_size": 1})


@row(KIND)
def text_with_vectorization():
    """Sentences as strings: their words become numbers inside the model."""
    text = tf.constant(words())
    vectorize = layers.TextVectorization(max_tokens=12, output_sequence_length=5)
    vectorize.adapt(text)
    inputs = keras.Input((), dtype="string")
    x = layers.Embedding(12, 8)(vectorize(inputs))
    x = layers.GlobalAveragePooling1D()(x)
    x = layers.Dense(16, activation="relu")(x)
    return Case(keras.Model(inputs, layers.Dense(CLASSES)(x)), text, integers(CLASSES))


@row(KIND, ["executions", "snip"])
def bidirectional_lstm_with_masking():
    """Words in both directions; zeros are padding."""
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(20, 8, mask_zero=True)(inputs)
    x = layers.Bidirectional(layers.LSTM(6, return_sequences=True))(x)
    x = layers.Bidirectional(layers.LSTM(4))(x)
    outputs = layers.Dense(CLASSES)(x)
    x = integers(20, 6)
    return Case(keras.Model(inputs, outputs), x, integers(CLASSES), lite={"batch_size": 1})


@row(KIND)
def masking_layer_and_gru():
    """Series of numbers of several lengths."""
    inputs = keras.Input((5, 4))
    x = layers.Masking()(inputs)
    x = layers.GRU(8, return_sequences=True)(x)
    x = layers.TimeDistributed(layers.Dense(6, activation="tanh"))(x)
    x = layers.GRU(6)(x)
    data = floats(5, 4)
    data[:, 3:] = 0
    outputs = layers.Dense(CLASSES)(x)
    return Case(keras.Model(inputs, outputs), data, integers(CLASSES), lite={"batch_size": 1})


@row(KIND)
def time_distributed_cnn():
    """A small CNN for each frame, then a recurrent layer."""
    frame = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(8),
        ]
    )
    inputs = keras.Input((3, 8, 8, 1))
    x = layers.TimeDistributed(frame)(inputs)
    outputs = layers.Dense(CLASSES)(layers.LSTM(5)(x))
    model = keras.Model(inputs, outputs)
    return Case(model, floats(3, 8, 8, 1), integers(CLASSES), lite={"batch_size": 1})


@row(KIND, ["block_4x1"])
def seq2seq_lstm():
    """Translates letters: the encoder's states begin the decoder."""
    source, target = keras.Input((5, 8), name="source"), keras.Input((4, 8), name="target")
    _, *states = layers.LSTM(12, return_state=True)(source)
    decoder = layers.LSTM(12, return_sequences=True)
    outputs = layers.Dense(8)(decoder(target, initial_state=states))
    x = [floats(5, 8), floats(4, 8)]
    model = keras.Model([source, target], outputs)
    return Case(model, x, integers(8, 4), lite={"batch_size": 1})


@row(KIND, ["2:4", "magnitude", "jit"])
def attention_encoder():
    """Self-attention with feed-forward layers, in a functional graph."""
    inputs = keras.Input((6, 16))
    x = inputs
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(2, 8)(y, y)])
        y = layers.Dense(32, activation="gelu")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(16)(y)])
    outputs = layers.Dense(CLASSES)(layers.GlobalAveragePooling1D()(x))
    return Case(keras.Model(inputs, outputs), floats(6, 16), integers(CLASSES))


@row(KIND)
def grouped_query_attention():
    """Fewer keys and values than queries; dot-product attention beside it."""
    inputs = keras.Input((6, 16))
    x = layers.GroupQueryAttention(8, 4, 2)(inputs, inputs, use_causal_mask=True)
    x = layers.Attention(use_scale=True)([x, inputs])
    x = layers.AdditiveAttention()([x, inputs])
    outputs = layers.EinsumDense("btd,dk->bk", CLASSES)(x)
    return Case(keras.Model(inputs, outputs), floats(6, 16), integers(CLASSES))


@row(KIND)
def images_with_augmentation():
    """Random flips and rotations, and rescaling, inside the model."""
    model = keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            layers.Rescaling(1 / 255),
            layers.RandomFlip(),
            layers.RandomRotation(0.1),
            layers.RandomContrast(0.1),
            layers.Conv2D(8, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.DepthwiseConv2D(3, activation="relu"),
            layers.Conv2D(8, 1, activation="relu"),
            layers.Flatten(),
            layers.Dense(CLASSES),
        ]
    )
    return Case(model, floats(12, 12, 3) * 100, integers(CLASSES))


@row(KIND)
def operations_in_the_graph():
    """`keras.ops` and operators between layers: a mixer of patches."""
    inputs = keras.Input((8, 8, 3))
    x = ops.reshape(inputs, (-1, 4, 2, 4, 2, 3))
    x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
    x = layers.Dense(12)(ops.reshape(x, (-1, 16, 12)))
    for _ in range(2):
        y = ops.swapaxes(layers.LayerNormalization()(x), 1, 2)
        x = x + ops.swapaxes(layers.Dense(16, activation="gelu")(y), 1, 2)
        x = x + layers.Dense(12)(ops.gelu(x)) * 0.5
    outputs = layers.Dense(CLASSES)(ops.mean(x, axis=1) / ops.sqrt(12.0))
    return Case(keras.Model(inputs, outputs), floats(8, 8, 3), integers(CLASSES))


@row(KIND)
def several_inputs_and_outputs():
    """Losses, weights of losses and metrics by the names of outputs."""
    title, body = keras.Input((8,), name="title"), keras.Input((12,), name="body")
    x = layers.Concatenate()([layers.Dense(12, "relu")(title), layers.Dense(12, "relu")(body)])
    outputs = {
        "priority": layers.Dense(1, name="priority")(x),
        "department": layers.Dense(CLASSES, name="department")(x),
    }

    def compile_it(model, **options):
        losses = {
            "priority": "mse",
            "department": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        }
        weights = {"priority": 0.3, "department": 1.0}
        model.compile(
            "rmsprop", losses, loss_weights=weights, metrics={"priority": ["mae"]}, **options
        )

    x = {"title": floats(8), "body": floats(12)}
    y = {"priority": floats(1), "department": integers(CLASSES)}
    model = keras.Model({"title": title, "body": body}, outputs)
    return Case(model, x, y, compile_it)


@row(KIND)
def weights_of_examples():
    """Weights for each example, validation data, and early stopping."""
    model = keras.Sequential([keras.Input((10,)), layers.Dense(16, "relu"), layers.Dense(CLASSES)])
    x, y = floats(10), integers(CLASSES)
    fit = {
        "sample_weight": np.linspace(0.5, 1.5, len(x)).astype("float32"),
        "validation_data": (x, y),
        "callbacks": [keras.callbacks.EarlyStopping(patience=9)],
    }
    return Case(model, x, y, fit=fit)


@row(KIND)
def weights_of_classes():
    """Classes that are rare count more."""
    model = keras.Sequential([keras.Input((10,)), layers.Dense(16, "relu"), layers.Dense(CLASSES)])
    weights = {"class_weight": {0: 1.0, 1: 2.0, 2: 0.5}}
    return Case(model, floats(10), integers(CLASSES), fit=weights)


@row(KIND)
def shared_tower():
    """One tower reads two inputs; their distance is the output."""
    tower = keras.Sequential([keras.Input((10,)), layers.Dense(16, "relu"), layers.Dense(8)])
    left, right = keras.Input((10,)), keras.Input((10,))
    difference = layers.Subtract()([tower(left), tower(right)])
    outputs = layers.Dense(1)(ops.sum(ops.square(difference), axis=-1, keepdims=True))
    model = keras.Model([left, right], outputs)
    return Case(model, [floats(10), floats(10)[::-1]], floats(1), by_squares)


def _backbone():
    return keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.Conv2D(8, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
        ],
        name="backbone",
    )


def _transfer(backbone):
    inputs = keras.Input((12, 12, 3))
    x = layers.Dense(16, activation="relu")(backbone(inputs, training=False))
    model = keras.Model(inputs, layers.Dense(CLASSES)(x))
    return model


def _two_fits(sparse, fit, tf_rigl):
    sparse.get_layer("backbone").trainable = True
    before = [item.mask.numpy().copy() for item in sparse.masked_weights]
    sparse.get_layer("backbone").trainable = False
    by_labels(sparse)
    fit()
    for item, mask in zip(sparse.masked_weights, before, strict=True):
        if "backbone" in item.path and (item.mask.numpy() != mask).any():
            raise AssertionError(f"{item.path} is frozen, but its mask has changed")
    sparse.get_layer("backbone").trainable = True
    by_labels(sparse)
    fit()


@row(KIND)
def transfer_with_a_backbone_that_is_sparse():
    """Made sparse as a whole; trained with the backbone frozen, then as a whole."""
    model = _transfer(_backbone())
    return Case(model, floats(12, 12, 3), integers(CLASSES), train=_two_fits)


@row(KIND)
def transfer_with_a_backbone_that_stays_dense():
    """The backbone is frozen before `sparsify`, so it gets no masks; later it trains dense."""
    backbone = _backbone()
    backbone.trainable = False
    model = _transfer(backbone)
    return Case(model, floats(12, 12, 3), integers(CLASSES), train=_two_fits)


@row(KIND)
def models_in_models():
    """A functional model in a Sequential in a functional model."""

    def inner():  # Not shared: Keras cannot load a model that is in two places.
        inputs = keras.Input((8,))
        return keras.Model(inputs, layers.Dense(8, "relu")(layers.Dense(8, "relu")(inputs)))

    middle = keras.Sequential([keras.Input((8,)), inner(), layers.Dense(8)])
    inputs = keras.Input((8,))
    outputs = layers.Dense(CLASSES)(layers.Add()([middle(inputs), inner()(inputs)]))
    return Case(keras.Model(inputs, outputs), floats(8), integers(CLASSES))


@row(KIND)
def a_model_in_two_places():
    """One model in a Sequential and beside it: Keras cannot load its file, sparse or not."""
    inputs = keras.Input((8,))
    inner = keras.Model(inputs, layers.Dense(8, "relu")(layers.Dense(8, "relu")(inputs)))
    middle = keras.Sequential([keras.Input((8,)), inner, layers.Dense(8)])
    inputs = keras.Input((8,))
    outputs = layers.Dense(CLASSES)(layers.Add()([middle(inputs), inner(inputs)]))
    model = keras.Model(inputs, outputs)
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/dense.keras")
        try:
            keras.models.load_model(f"{folder}/dense.keras")
        except ValueError:
            return Case(model, floats(8), integers(CLASSES))
    raise AssertionError("Keras loads the dense model now, so the sparse one has to load too")


@row(KIND)
def convolutional_autoencoder():
    """Down and up again, by squares."""
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2D(4, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2DTranspose(8, 3, strides=2, padding="same", activation="relu"),
            layers.UpSampling2D(),
            layers.Conv2D(1, 3, padding="same"),
        ]
    )
    x = floats(8, 8, 1)
    return Case(model, x, x, by_squares)


@row(KIND)
def super_resolution():
    """Channels become pixels."""
    inputs = keras.Input((None, None, 1))
    x = layers.Conv2D(8, 5, padding="same", activation="relu")(inputs)
    x = layers.Conv2D(4, 3, padding="same")(x)
    outputs = (
        ops.nn.depth_to_space(x, 2)
        if hasattr(ops.nn, "depth_to_space")
        else (layers.UpSampling2D()(layers.Conv2D(1, 1)(x)))
    )
    model = keras.Model(inputs, outputs)
    return Case(model, floats(8, 8, 1), floats(16, 16, 1), by_squares)


@row(KIND)
def text_convolution():
    """Convolutions of three widths over words."""
    inputs = keras.Input((8,), dtype="int32")
    x = layers.Embedding(20, 8)(inputs)
    towers = [layers.Conv1D(6, width, activation="relu")(x) for width in (2, 3, 4)]
    towers = [layers.GlobalMaxPooling1D()(tower) for tower in towers]
    outputs = layers.Dense(CLASSES)(layers.Concatenate()(towers))
    return Case(keras.Model(inputs, outputs), integers(20, 8), integers(CLASSES))


@row(KIND)
def causal_convolutions():
    """Dilated causal convolutions with gates, as for sound."""
    inputs = keras.Input((16, 2))
    x = layers.Conv1D(8, 1)(inputs)
    for rate in (1, 2, 4):
        options = {"padding": "causal", "dilation_rate": rate}
        filtered = layers.Conv1D(8, 2, activation="tanh", **options)(x)
        gate = layers.Conv1D(8, 2, activation="sigmoid", **options)(x)
        x = layers.Add()([x, layers.Conv1D(8, 1)(layers.Multiply()([filtered, gate]))])
    model = keras.Model(inputs, layers.Conv1D(2, 1)(x))
    return Case(model, floats(16, 2), floats(16, 2), by_squares)


@row(KIND)
def volumes():
    """A 3D CNN for scans."""
    model = keras.Sequential(
        [
            keras.Input((6, 6, 6, 1)),
            layers.Conv3D(4, 3, activation="relu", padding="same"),
            layers.MaxPooling3D(),
            layers.Conv3D(6, 3, activation="relu"),
            layers.GlobalAveragePooling3D(),
            layers.Dense(CLASSES),
        ]
    )
    return Case(model, floats(6, 6, 6, 1), integers(CLASSES))


@row(KIND)
def wrapped_layers():
    """Spectral normalisation, weights shared by a layer called twice, and grouped convolutions."""
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(8, 3, groups=2, padding="same", activation="relu")(inputs)
    x = layers.SpectralNormalization(layers.Conv2D(8, 3, padding="same"))(x)
    shared = layers.Conv2D(8, 1, activation="relu")
    x = layers.GlobalMaxPooling2D()(shared(shared(x)))
    return Case(keras.Model(inputs, layers.Dense(CLASSES)(x)), floats(8, 8, 4), integers(CLASSES))


@row(KIND)
def hashed_features():
    """Hashing, discretization and crossed features, each with an embedding."""
    x = {"shop": integers(1000, 1), "price": floats(1)}
    shop = keras.Input((1,), name="shop", dtype="int32")
    price = keras.Input((1,), name="price")
    buckets = layers.Discretization([-1.0, 0.0, 1.0])(price)
    hashed = layers.Hashing(10)(shop)
    parts = [
        layers.Flatten()(layers.Embedding(10, 6)(hashed)),
        layers.Flatten()(layers.Embedding(4, 6)(buckets)),
    ]
    x_ = layers.Dense(12, activation="relu")(layers.Concatenate()(parts))
    model = keras.Model({"shop": shop, "price": price}, layers.Dense(CLASSES)(x_))
    return Case(model, x, integers(CLASSES))


@row(KIND)
def point_clouds():
    """A transform learned from the points is applied to them."""
    inputs = keras.Input((12, 3))
    x = layers.Conv1D(8, 1, activation="relu")(inputs)
    x = layers.Dense(9)(layers.GlobalMaxPooling1D()(x))
    moved = layers.Dot(axes=(2, 1))([inputs, layers.Reshape((3, 3))(x)])
    x = layers.GlobalMaxPooling1D()(layers.Conv1D(16, 1, activation="relu")(moved))
    return Case(keras.Model(inputs, layers.Dense(CLASSES)(x)), floats(12, 3), integers(CLASSES))


def _adapters(sparse, fit, tf_rigl):
    fit()
    layer = sparse.get_layer("wide")
    before = layer.kernel.numpy() if not layer.lora_enabled else None
    layer.enable_lora(2)
    by_labels(sparse)
    fit()
    item = next(item for item in sparse.masked_weights if item.path == "wide/kernel")
    np.testing.assert_array_equal(item.weight.numpy(), before, "the frozen kernel has changed")


def _two_layers():
    inputs = keras.Input((12,))
    x = layers.Dense(16, activation="relu", name="wide")(inputs)
    return keras.Model(inputs, layers.Dense(CLASSES, name="head")(x))


@row("adapters and quantization")
def lora_on_a_sparse_kernel():
    """Adapters are added after the training; the sparse kernel below stays as it is."""
    more = ("dense_params", "params", "dense_flops", "flops")  # Those of the adapters.
    return Case(_two_layers(), floats(12), integers(CLASSES), train=_adapters, unplanned=more)


@row("adapters and quantization")
def lora_before_sparsify():
    """The model has adapters when it becomes sparse."""
    model = _two_layers()
    model.get_layer("wide").enable_lora(2)
    return Case(model, floats(12), integers(CLASSES))


def _int8(plain):
    copy = keras.models.clone_model(plain)
    copy.set_weights(plain.get_weights())
    copy.quantize("int8")
    x = floats(12)
    if not np.allclose(copy(x), plain(x), atol=0.1):
        raise AssertionError("the quantized model predicts something else")


@row("adapters and quantization")
def int8_after_strip():
    """Trained, stripped, then quantized by Keras."""
    return Case(_two_layers(), floats(12), integers(CLASSES), after=_int8)


def _quantize(sparse, fit, tf_rigl):
    fit()
    sparse.quantize("int8")


@row("adapters and quantization")
def int8_of_a_sparse_model():
    """Quantized with its masks: to be refused, with the order that works."""
    return Case(_two_layers(), floats(12), integers(CLASSES), train=_quantize)


@row("adapters and quantization")
def int8_before_sparsify():
    """One layer is quantized before the model becomes sparse: it is left alone."""
    model = _two_layers()
    model.get_layer("wide").quantize("int8")
    return Case(model, floats(12), integers(CLASSES))
