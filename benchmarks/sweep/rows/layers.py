"""Models with layers, cells and subclasses of their own."""

import keras
import numpy as np

from benchmarks.sweep.case import Case, by_squares, floats, integers, row

layers, ops = keras.layers, keras.ops
CLASSES = 3
KIND = "layers and subclasses of one's own"
ours = keras.saving.register_keras_serializable(package="sweep")


@ours
class TransformerBlock(layers.Layer):
    """Its sublayers have automatic names, which differ in each process."""

    def __init__(self, width, heads, **kwargs):
        super().__init__(**kwargs)
        self.width, self.heads = width, heads
        self.attention = layers.MultiHeadAttention(heads, width // heads)
        self.feed = keras.Sequential([layers.Dense(2 * width, "relu"), layers.Dense(width)])
        self.norms = [layers.LayerNormalization(epsilon=1e-6) for _ in range(2)]
        self.drops = [layers.Dropout(0.1), layers.Dropout(0.1)]

    def call(self, x, training=False):
        attended = self.drops[0](self.attention(x, x), training=training)
        x = self.norms[0](x + attended)
        return self.norms[1](x + self.drops[1](self.feed(x), training=training))

    def get_config(self):
        return {**super().get_config(), "width": self.width, "heads": self.heads}


@ours
class TokensAndPlaces(layers.Layer):
    """Two embeddings: of tokens, and of their places."""

    def __init__(self, length, words, width, **kwargs):
        super().__init__(**kwargs)
        self.sizes = {"length": length, "words": words, "width": width}
        self.tokens = layers.Embedding(words, width)
        self.places = layers.Embedding(length, width)

    def call(self, x):
        return self.tokens(x) + self.places(ops.arange(ops.shape(x)[-1]))

    def get_config(self):
        return {**super().get_config(), **self.sizes}


@row(KIND, ["snip", "magnitude", "block_4x1", "2:4", "jit", "float16"])
def transformer_block():
    """A text classifier."""
    inputs = keras.Input((6,), dtype="int32")
    x = TokensAndPlaces(6, 20, 16)(inputs)
    x = TransformerBlock(16, 2)(x)
    x = TransformerBlock(16, 2)(x)
    x = layers.GlobalAveragePooling1D()(x)
    outputs = layers.Dense(CLASSES)(layers.Dense(12, activation="relu")(x))
    return Case(keras.Model(inputs, outputs), integers(20, 6), integers(CLASSES))


@ours
class Patches(layers.Layer):
    """Cuts images into patches, projects them and adds places."""

    def __init__(self, size, width, **kwargs):
        super().__init__(**kwargs)
        self.size, self.width = size, width
        self.projection = layers.Dense(width)

    def build(self, shape):
        self.count = (shape[1] // self.size) * (shape[2] // self.size)
        self.places = layers.Embedding(self.count, self.width)
        self.projection.build((None, self.count, self.size**2 * shape[3]))
        self.places.build((self.count,))
        self.start = self.add_weight(shape=(1, 1, self.width), name="start")

    def call(self, images):
        patches = ops.image.extract_patches(images, self.size)
        patches = ops.reshape(patches, (-1, self.count, patches.shape[-1]))
        x = self.projection(patches) + self.places(ops.arange(self.count))
        start = ops.repeat(self.start, ops.shape(x)[0], axis=0)
        return ops.concatenate([start, x], axis=1)

    def get_config(self):
        return {**super().get_config(), "size": self.size, "width": self.width}


@row(KIND, ["set", "executions"])
def vision_transformer():
    """Patches, a token of its own, and blocks of attention."""
    inputs = keras.Input((8, 8, 3))
    x = Patches(4, 16)(layers.Rescaling(0.5)(inputs))
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([layers.MultiHeadAttention(2, 8, dropout=0.1)(y, y), x])
        y = layers.Dense(24, activation="gelu")(layers.LayerNormalization()(x))
        x = layers.Add()([layers.Dense(16)(y), x])
    outputs = layers.Dense(CLASSES)(x[:, 0])
    return Case(keras.Model(inputs, outputs), floats(8, 8, 3), integers(CLASSES))


@ours
class TiedModel(keras.Model):
    """A language model whose output multiplies by its embedding."""

    def __init__(self, words, width, **kwargs):
        super().__init__(**kwargs)
        self.words, self.width = words, width
        self.embedding = layers.Embedding(words, width)
        self.mixing = layers.GRU(width, return_sequences=True)

    def call(self, x):
        hidden = self.mixing(self.embedding(x))
        return ops.matmul(hidden, ops.transpose(self.embedding.embeddings))

    def get_config(self):
        return {**super().get_config(), "words": self.words, "width": self.width}


@row(KIND, ["magnitude"])
def tied_embedding():
    """A subclass that uses one weight in two places."""
    model = TiedModel(20, 12)
    x = integers(20, 5)
    model(x[:2])
    return Case(model, x, np.roll(x, -1, axis=1), lite={"batch_size": 1})


@ours
class TiedDense(layers.Layer):
    """Multiplies by the transposed kernel of another layer."""

    def __init__(self, dense, **kwargs):
        super().__init__(**kwargs)
        self.dense = dense

    def build(self, shape):
        if not self.dense.built:
            raise ValueError("the other layer is not built")
        self.bias = self.add_weight(shape=(self.dense.kernel.shape[0],), name="bias")

    def call(self, x):
        return ops.matmul(x, ops.transpose(self.dense.kernel)) + self.bias

    def get_config(self):
        dense = keras.saving.serialize_keras_object(self.dense)
        return {**super().get_config(), "dense": dense}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config.pop("dense")), **config)


@ours
class TiedAutoencoder(keras.Model):
    """Both halves share one kernel."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.down = layers.Dense(width, activation="relu")
        self.up = TiedDense(self.down)

    def build(self, shape):
        self.down.build(shape)
        self.up.build((shape[0], self.width))

    def call(self, x):
        return self.up(self.down(x))

    def get_config(self):
        return {**super().get_config(), "width": self.width}


@row(KIND, ["2:4"])
def tied_autoencoder():
    """A subclass with a `build` of its own."""
    x = floats(16)
    model = TiedAutoencoder(8)
    model(x[:2])
    return Case(model, x, x, by_squares)


@ours
class Switch(layers.Layer):
    """A mixture of experts: kernels in one weight, a router, an added loss."""

    def __init__(self, experts, width, **kwargs):
        super().__init__(**kwargs)
        self.experts, self.width = experts, width
        self.router = layers.Dense(experts)

    def build(self, shape):
        self.router.build(shape)
        features = shape[-1]
        self.up = self.add_weight(shape=(self.experts, features, self.width), name="up")
        self.down = self.add_weight(shape=(self.experts, self.width, features), name="down")

    def call(self, x):
        gates = ops.softmax(self.router(x))
        self.add_loss(0.01 * ops.sum(ops.square(ops.mean(gates, axis=(0, 1)))))
        hidden = ops.relu(ops.einsum("btf,efw->btew", x, self.up))
        mixed = ops.einsum("btew,ewf->btef", hidden, self.down)
        return ops.sum(mixed * gates[..., None], axis=2)

    def get_config(self):
        return {**super().get_config(), "experts": self.experts, "width": self.width}


@row(KIND, ["magnitude", "jit"])
def mixture_of_experts():
    """A block with experts in place of its feed-forward layers."""
    inputs = keras.Input((5, 12))
    x = layers.LayerNormalization()(inputs + layers.MultiHeadAttention(2, 6)(inputs, inputs))
    x = layers.LayerNormalization()(x + Switch(3, 16)(x))
    outputs = layers.Dense(CLASSES)(layers.GlobalAveragePooling1D()(x))
    return Case(keras.Model(inputs, outputs), floats(5, 12), integers(CLASSES))


@ours
class MinimalCell(layers.Layer):
    """A recurrent cell with one gate."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = units

    def build(self, shape):
        size = shape[-1] + self.units
        self.gate = self.add_weight(shape=(size, self.units), name="gate")
        self.candidate = self.add_weight(shape=(size, self.units), name="candidate")

    def call(self, x, states):
        (state,) = states
        both = ops.concatenate([x, state], -1)
        gate = ops.sigmoid(ops.matmul(both, self.gate))
        state = gate * state + (1 - gate) * ops.tanh(ops.matmul(both, self.candidate))
        return state, [state]

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@row(KIND)
def rnn_with_a_custom_cell():
    """`keras.layers.RNN` around a cell, and stacked cells of Keras."""
    inputs = keras.Input((5, 6))
    x = layers.RNN(MinimalCell(8), return_sequences=True)(inputs)
    x = layers.RNN([layers.GRUCell(6), layers.LSTMCell(6)])(x)
    model = keras.Model(inputs, layers.Dense(CLASSES)(x))
    return Case(model, floats(5, 6), integers(CLASSES), lite={"batch_size": 1})


@ours
class Residual(layers.Layer):
    """Convolutions with squeeze and excitation, built by their first call."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.steps = [
            layers.Conv2D(filters, 3, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(filters, 3, padding="same"),
            layers.BatchNormalization(),
        ]
        self.squeeze = layers.Dense(max(filters // 2, 1), activation="relu")
        self.excite = layers.Dense(filters, activation="sigmoid")
        self.shortcut = layers.Conv2D(filters, 1)

    def call(self, x, training=False):
        y = x
        for layer in self.steps:
            norm = isinstance(layer, layers.BatchNormalization)
            y = layer(y, training=training) if norm else layer(y)
        scale = self.excite(self.squeeze(ops.mean(y, axis=(1, 2))))
        return ops.relu(self.shortcut(x) + y * scale[:, None, None, :])

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


@ours
class ResidualNetwork(keras.Model):
    """A subclass with a list of layers."""

    def __init__(self, widths, classes, **kwargs):
        super().__init__(**kwargs)
        self.widths, self.classes = list(widths), classes
        self.blocks = [Residual(width) for width in widths]
        self.head = layers.Dense(classes)

    def call(self, x, training=False):
        for block in self.blocks:
            x = block(x, training=training)
        return self.head(ops.mean(x, axis=(1, 2)))

    def get_config(self):
        return {**super().get_config(), "widths": self.widths, "classes": self.classes}


@row(KIND, ["magnitude", "snip", "executions"])
def subclass_with_a_list_of_layers():
    """Called once before `sparsify`."""
    model = ResidualNetwork([6, 8], CLASSES)
    x = floats(8, 8, 3)
    model(x[:2])
    return Case(model, x, integers(CLASSES))


@row(KIND)
def subclass_that_is_not_built():
    """The first batch of `fit` builds it."""
    return Case(ResidualNetwork([6, 8], CLASSES), floats(8, 8, 3), integers(CLASSES))


class NoConfig(keras.Model):
    """A subclass that Keras cannot clone: no `get_config`, arguments in its constructor."""

    def __init__(self, hidden, classes):
        super().__init__()
        self.hidden = layers.Dense(hidden, activation="relu")
        self.head = layers.Dense(classes)

    def call(self, x):
        return self.head(self.hidden(x))


@row(KIND)
def subclass_without_configuration():
    """It is changed in place, and no file of it can be read: to be refused when saved."""
    model = NoConfig(16, CLASSES)
    x = floats(12)
    model(x[:2])
    return Case(model, x, integers(CLASSES), in_place=True)


@ours
class GraphConvolution(layers.Layer):
    """Messages along the edges of a fixed graph."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.message, self.update = layers.Dense(units), layers.Dense(units, activation="relu")

    def call(self, nodes, adjacency):
        messages = ops.matmul(adjacency, self.message(nodes))
        return self.update(ops.concatenate([nodes, messages], axis=-1))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@row(KIND)
def graph_network():
    """A layer of two arguments."""
    nodes, edges = keras.Input((6, 4)), keras.Input((6, 6))
    x = GraphConvolution(12)(nodes, edges)
    x = GraphConvolution(12)(x, adjacency=edges)
    outputs = layers.Dense(CLASSES)(x)
    data = [floats(6, 4), (floats(6, 6) > 0).astype("float32")]
    return Case(keras.Model([nodes, edges], outputs), data, integers(CLASSES, 6))


@ours
class Translator(keras.Model):
    """An encoder-decoder subclass of a dict, with attention and a causal mask."""

    def __init__(self, words, width, **kwargs):
        super().__init__(**kwargs)
        self.words, self.width = words, width
        self.embedding = layers.Embedding(words, width, mask_zero=True)
        self.encoder = layers.Bidirectional(layers.GRU(width, return_sequences=True), "sum")
        self.decoder = layers.GRU(width, return_sequences=True)
        self.attention = layers.MultiHeadAttention(2, width // 2)
        self.norm = layers.LayerNormalization()
        self.head = layers.Dense(words)

    def call(self, inputs):
        source = self.encoder(self.embedding(inputs["source"]))
        target = self.decoder(self.embedding(inputs["target"]))
        return self.head(self.norm(target + self.attention(target, source)))

    def get_config(self):
        return {**super().get_config(), "words": self.words, "width": self.width}


@row(KIND, ["magnitude"])
def translator():
    """Sequences with masks from an embedding."""
    model = Translator(18, 8)
    x = {"source": integers(18, 6), "target": integers(18, 5)}
    model({name: array[:2] for name, array in x.items()})
    return Case(model, x, integers(18, 5), lite={"batch_size": 1})


@ours
class LowRank(layers.Layer):
    """A layer that names what may be masked, and divides by a norm that it stores."""

    def __init__(self, units, rank, **kwargs):
        super().__init__(**kwargs)
        self.units, self.rank = units, rank

    def build(self, shape):
        self.left = self.add_weight(shape=(shape[-1], self.rank), name="left")
        self.right = self.add_weight(shape=(self.rank, self.units), name="right")
        self.size = self.add_weight(shape=(), initializer="ones", trainable=False, name="size")

    def call(self, x, training=False):
        y = ops.matmul(ops.matmul(x, self.left), self.right)
        if training:
            self.size.assign(0.9 * self.size + 0.1 * ops.mean(ops.abs(y)))
        return y / (self.size + 0.1)

    def get_prunable_weights(self):
        return [self.left, self.right]

    def get_config(self):
        return {**super().get_config(), "units": self.units, "rank": self.rank}


@row(KIND, ["block_4x1"])
def layer_that_names_its_weights():
    """`get_prunable_weights`, and a weight that the call assigns."""
    model = keras.Sequential([keras.Input((16,)), LowRank(24, 8), layers.ReLU()])
    model.add(layers.Dense(CLASSES))
    return Case(model, floats(16), integers(CLASSES))
