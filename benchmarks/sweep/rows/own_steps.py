"""Models with a `train_step`, `compute_loss` or `compile` of their own."""

import keras
import tensorflow as tf

from benchmarks.sweep.case import Case, by_itself, by_labels, floats, integers, row

layers, ops = keras.layers, keras.ops
CLASSES = 3
KIND = "models with their own training"
ours = keras.saving.register_keras_serializable(package="sweep")


class Parts(keras.Model):
    """Base: a model of parts that its constructor takes, and that its configuration holds."""

    PARTS = ()

    def __init__(self, *parts, **kwargs):
        named = {name: kwargs.pop(name) for name in self.PARTS if name in kwargs}
        super().__init__(**kwargs)
        for name, part in {**dict(zip(self.PARTS, parts, strict=False)), **named}.items():
            setattr(self, name, part)

    def get_config(self):
        config = super().get_config()
        parts = {n: keras.saving.serialize_keras_object(getattr(self, n)) for n in self.PARTS}
        return {**config, **parts}

    @classmethod
    def from_config(cls, config):
        parts = {n: keras.saving.deserialize_keras_object(config.pop(n)) for n in cls.PARTS}
        return cls(**parts, **config)


def dense(inputs, *widths, name=None, activation="relu"):
    """A stack of dense layers; the last has no activation."""
    x = start = keras.Input((inputs,))
    for width in widths[:-1]:
        x = layers.Dense(width, activation=activation)(x)
    return keras.Model(start, layers.Dense(widths[-1])(x), name=name)


@ours
class Handmade(keras.Model):
    """A functional model with a step that does what Keras's does."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(x=x, y=y, y_pred=y_pred)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
            else:
                metric.update_state(y, y_pred)
        return {metric.name: metric.result() for metric in self.metrics}


@row(KIND, ["set", "magnitude", "snip", "block_4x1", "2:4", "jit", "executions"])
def own_train_step():
    """A functional model of a class with its own step."""
    network = dense(16, 24, 16, CLASSES)
    return Case(Handmade(network.inputs, network.outputs), floats(16), integers(CLASSES))


@ours
class Twice(keras.Model):
    """Takes two optimizer steps on each batch, the second on noisy inputs."""

    def train_step(self, data):
        x, y = data
        for noise in (0.0, 0.1):
            noisy = x + noise * keras.random.normal(ops.shape(x))
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(noisy, training=True))
            gradients = tape.gradient(loss, self.trainable_variables)
            gradients = [tf.clip_by_norm(g, 1.0) for g in gradients]
            self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss}


@row(KIND)
def two_steps_on_a_batch():
    """Two optimizer steps within one step of training, with clipped gradients."""
    network = dense(16, 24, CLASSES)
    model = Twice(network.inputs, network.outputs)

    def compile_it(model, **options):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss, **options)

    return Case(model, floats(16), integers(CLASSES), compile_it)


@ours
class GAN(Parts):
    """Two networks against each other, each with an optimizer."""

    PARTS = ("generator", "discriminator")
    noise = 4

    def compile(self, generator_optimizer, discriminator_optimizer, **options):
        super().compile(**options)
        self.generator_optimizer = generator_optimizer
        self.discriminator_optimizer = discriminator_optimizer
        self.measure = keras.losses.BinaryCrossentropy(from_logits=True)
        self.losses_of = [keras.metrics.Mean(name=n) for n in ("generator", "discriminator")]

    @property
    def metrics(self):
        return self.losses_of

    def train_step(self, real):
        size = ops.shape(real)[0]
        fake = self.generator(keras.random.normal((size, self.noise)))
        labels = ops.concatenate([ops.ones((size, 1)), ops.zeros((size, 1))])
        with tf.GradientTape() as tape:
            logits = self.discriminator(ops.concatenate([real, fake]), training=True)
            d_loss = self.measure(labels, logits)
        weights = self.discriminator.trainable_variables
        self.discriminator_optimizer.apply(tape.gradient(d_loss, weights), weights)
        with tf.GradientTape() as tape:
            fake = self.generator(keras.random.normal((size, self.noise)), training=True)
            g_loss = self.measure(ops.ones((size, 1)), self.discriminator(fake))
        weights = self.generator.trainable_variables
        self.generator_optimizer.apply(tape.gradient(g_loss, weights), weights)
        for metric, loss in zip(self.losses_of, (g_loss, d_loss), strict=True):
            metric.update_state(loss)
        return {metric.name: metric.result() for metric in self.losses_of}


def _two_optimizers(model, **options):
    adam = keras.optimizers.Adam
    model.compile(adam(1e-3, beta_1=0.5), adam(1e-3, beta_1=0.5), **options)


def _images_from_noise():
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(4 * 4 * 8),
            layers.Reshape((4, 4, 8)),
            layers.Conv2DTranspose(8, 4, strides=2, padding="same"),
            layers.LeakyReLU(0.2),
            layers.Conv2D(1, 3, padding="same", activation="tanh"),
        ],
        name="generator",
    )


def _critic():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, strides=2, padding="same"),
            layers.LeakyReLU(0.2),
            layers.Flatten(),
            layers.Dense(1),
        ],
        name="discriminator",
    )


@row(KIND, ["magnitude", "2:4", "executions"])
def gan():
    """A generator and a discriminator."""
    model = GAN(_images_from_noise(), _critic())
    x = floats(8, 8, 1)
    return Case(model, x, None, _two_optimizers, part="generator", inputs=floats(4, examples=2))


@ours
class Wasserstein(GAN):
    """The critic trains twice; the gradient with respect to its inputs is penalised."""

    def train_step(self, real):
        size = ops.shape(real)[0]
        weights = self.discriminator.trainable_variables
        for _ in range(2):
            with tf.GradientTape() as tape:
                fake = self.generator(keras.random.normal((size, self.noise)), training=True)
                cost = ops.mean(self.discriminator(fake)) - ops.mean(self.discriminator(real))
                cost += 10.0 * self._penalty(real, fake, size)
            gradients = tape.gradient(cost, weights)
            self.discriminator_optimizer.apply_gradients(zip(gradients, weights, strict=True))
        weights = self.generator.trainable_variables
        with tf.GradientTape() as tape:
            fake = self.generator(keras.random.normal((size, self.noise)), training=True)
            g_loss = -ops.mean(self.discriminator(fake, training=True))
        gradients = tape.gradient(g_loss, weights)
        self.generator_optimizer.apply_gradients(zip(gradients, weights, strict=True))
        return {"critic": cost, "generator": g_loss}

    def _penalty(self, real, fake, size):
        share = keras.random.uniform((size, 1, 1, 1))
        between = share * real + (1 - share) * fake
        with tf.GradientTape() as tape:
            tape.watch(between)
            scores = self.discriminator(between, training=True)
        slopes = tape.gradient(scores, between)
        norms = ops.sqrt(ops.sum(ops.square(slopes), axis=(1, 2, 3)) + 1e-12)
        return ops.mean(ops.square(norms - 1.0))


@row(KIND, ["set"])
def wasserstein_gan_with_penalty():
    """Gradients of gradients, and several critic steps for each step of the generator."""
    model = Wasserstein(_images_from_noise(), _critic())
    x = floats(8, 8, 1)
    return Case(model, x, None, _two_optimizers, part="generator", inputs=floats(4, examples=2))


@ours
class Sampling(layers.Layer):
    """Draws from a normal distribution of a mean and a logarithm of the variance."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seeds = keras.random.SeedGenerator(7)

    def call(self, inputs):
        mean, log_variance = inputs
        noise = keras.random.normal(ops.shape(mean), dtype=mean.dtype, seed=self.seeds)
        return mean + ops.exp(0.5 * log_variance) * noise


@ours
class VAE(Parts):
    """A variational autoencoder with metrics of its own."""

    PARTS = ("encoder", "decoder")

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.total = keras.metrics.Mean(name="total")
        self.divergence = keras.metrics.Mean(name="divergence")

    @property
    def metrics(self):
        return [self.total, self.divergence]

    def train_step(self, data):
        with tf.GradientTape() as tape:
            mean, log_variance, code = self.encoder(data)
            image = ops.cast(self.decoder(code), "float32")  # In case of mixed precision.
            mean, log_variance = ops.cast(mean, "float32"), ops.cast(log_variance, "float32")
            error = ops.mean(ops.sum(ops.square(data - image), axis=-1))
            divergence = 1 + log_variance - ops.square(mean) - ops.exp(log_variance)
            divergence = ops.mean(ops.sum(-0.5 * divergence, axis=1))
            loss = error + divergence
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, self.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        self.total.update_state(loss)
        self.divergence.update_state(divergence)
        return {"loss": self.total.result(), "divergence": self.divergence.result()}


@row(KIND, ["magnitude", "snip", "float16", "jit", "block_4x1"])
def vae():
    """An encoder with three outputs and a decoder."""
    x = inputs = keras.Input((16,))
    x = layers.Dense(24, activation="relu")(x)
    mean, log_variance = layers.Dense(2, name="mean")(x), layers.Dense(2, name="log")(x)
    outputs = [mean, log_variance, Sampling()([mean, log_variance])]
    encoder = keras.Model(inputs, outputs, name="encoder")
    model = VAE(encoder, dense(2, 24, 16, name="decoder"))
    codes = floats(2, examples=2)
    return Case(model, floats(16), None, by_itself, part="decoder", inputs=codes)


@ours
class Distiller(Parts):
    """A student learns from labels and from a frozen teacher: Keras's public `compute_loss`."""

    PARTS = ("student", "teacher")

    def call(self, x, training=False):
        return self.student(x, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        hard = super().compute_loss(x, y, y_pred, sample_weight)
        teacher = ops.softmax(self.teacher(x, training=False) / 3.0)
        soft = keras.losses.kl_divergence(teacher, ops.softmax(y_pred / 3.0))
        return 0.3 * hard + 0.7 * ops.mean(soft) * 9.0


@row(KIND, ["snip", "2:4", "executions"])
def distiller():
    """The teacher is frozen, so it stays dense."""
    teacher = dense(16, 32, 32, CLASSES, name="teacher")
    teacher.trainable = False
    model = Distiller(dense(16, 16, CLASSES, name="student"), teacher)
    model(floats(16)[:2])
    return Case(model, floats(16), integers(CLASSES))


@ours
class Siamese(Parts):
    """Three pictures through one network: anchor, positive, negative."""

    PARTS = ("embedding",)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.tracker = keras.metrics.Mean(name="loss")

    def call(self, inputs):
        anchor, positive, negative = (self.embedding(each) for each in inputs)
        near = ops.sum(ops.square(anchor - positive), -1)
        return near, ops.sum(ops.square(anchor - negative), -1)

    def train_step(self, data):
        with tf.GradientTape() as tape:
            near, far = self(data, training=True)
            loss = ops.mean(ops.maximum(near - far + 0.5, 0.0))
        gradients = tape.gradient(loss, self.embedding.trainable_weights)
        pairs = zip(gradients, self.embedding.trainable_weights, strict=True)
        self.optimizer.apply_gradients(pairs)
        self.tracker.update_state(loss)
        return {"loss": self.tracker.result()}

    @property
    def metrics(self):
        return [self.tracker]


@row(KIND, ["magnitude"])
def siamese():
    """A triplet loss in a step of its own."""
    pictures = floats(12)
    model = Siamese(dense(12, 24, 8, name="embedding"))
    x = (pictures, pictures + 0.1, pictures[::-1])
    model([each[:2] for each in x])
    triplets = tf.data.Dataset.from_tensor_slices(x).batch(4)
    return Case(model, triplets, None, by_itself, part="embedding", inputs=pictures[:2])


@ours
class TwoTowers(Parts):
    """Queries and candidates meet in one space; others of the batch are negatives."""

    PARTS = ("query", "candidate")

    def call(self, inputs):
        return ops.matmul(self.query(inputs["user"]), ops.transpose(self.candidate(inputs["film"])))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        targets = ops.arange(ops.shape(y_pred)[0])
        losses = keras.losses.sparse_categorical_crossentropy(targets, y_pred, from_logits=True)
        return ops.mean(losses)


def _tower(count):
    return keras.Sequential(
        [keras.Input((), dtype="int32"), layers.Embedding(count, 8), layers.Dense(8)]
    )


@row(KIND)
def contrastive_two_towers():
    """Dict inputs; the loss needs no labels."""
    model = TwoTowers(_tower(20), _tower(30))
    x = {"user": integers(20), "film": integers(30)}
    model({name: array[:2] for name, array in x.items()})
    return Case(model, x, None, by_itself)


@ours
class Diffusion(Parts):
    """Learns to remove noise; a second network follows the first slowly."""

    PARTS = ("network", "slow")

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.slow.trainable = False

    def call(self, inputs, training=False):
        return (self.network if training else self.slow)(inputs, training=training)

    def train_step(self, images):
        size = ops.shape(images)[0]
        times = keras.random.uniform((size, 1))
        angle = times * 1.5
        noise = keras.random.normal(ops.shape(images))
        signal = ops.cos(angle)[:, :, None, None], ops.sin(angle)[:, :, None, None]
        noisy = signal[0] * images + signal[1] * noise
        with tf.GradientTape() as tape:
            predicted = self.network([noisy, times], training=True)
            loss = ops.mean(ops.square(noise - predicted))
        weights = self.network.trainable_weights
        self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        for fast, slow in zip(self.network.weights, self.slow.weights, strict=True):
            slow.assign(0.9 * slow + 0.1 * fast)
        return {"noise": loss}


def _denoiser():
    image, time = keras.Input((8, 8, 1)), keras.Input((1,))
    x = layers.Concatenate()([image, layers.UpSampling2D(8)(layers.Reshape((1, 1, 1))(time))])
    x = layers.Conv2D(8, 3, padding="same", activation="swish")(x)
    x = layers.Conv2D(8, 3, padding="same", activation="swish")(x)
    return keras.Model([image, time], layers.Conv2D(1, 3, padding="same")(x))


@row(KIND, ["set"])
def diffusion_with_a_slow_network():
    """The step assigns to a frozen copy of the network."""
    network = _denoiser()
    slow = keras.models.clone_model(network)
    slow.set_weights(network.get_weights())
    model = Diffusion(network, slow)
    inputs = [floats(8, 8, 1, examples=2), floats(1, examples=2)]
    model(inputs)
    return Case(model, floats(8, 8, 1), None, by_itself, part="network", inputs=inputs)


@ours
class OwnLoss(keras.Model):
    """`compute_loss` and `compute_metrics` of its own, Keras's step."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        labels = ops.one_hot(y, CLASSES)
        focal = -labels * ops.log_softmax(y_pred) * ops.square(1 - ops.softmax(y_pred))
        return ops.mean(ops.sum(focal, -1)) + sum(self.losses, 0.0)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        return {**super().compute_metrics(x, y, y_pred, sample_weight), "mean": ops.mean(y_pred)}


@row(KIND, ["jit"])
def own_loss_and_metrics():
    """Regularisers too."""
    inputs = keras.Input((16,))
    x = layers.Dense(24, activation="relu", kernel_regularizer="l2")(inputs)
    outputs = layers.Dense(CLASSES)(layers.ActivityRegularization(1e-3)(x))
    return Case(OwnLoss(inputs, outputs), floats(16), integers(CLASSES))


@ours
class OwnCompile(keras.Model):
    """Takes a factor in `compile`, and has a `test_step` and `predict_step`."""

    def compile(self, optimizer, factor, **options):
        super().compile(optimizer=optimizer, **options)
        self.factor = factor

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self._loss(y, self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss}

    def test_step(self, data):
        x, y = data
        return {"loss": self._loss(y, self(x, training=False))}

    def predict_step(self, data):
        return ops.softmax(self(data, training=False))

    def _loss(self, y, logits):
        losses = keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
        return self.factor * ops.mean(losses)


@row(KIND)
def own_compile():
    """Validation during `fit` runs its `test_step`."""
    network = dense(16, 24, CLASSES)
    x, y = floats(16), integers(CLASSES)

    def compile_it(model, **options):
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9), factor=2.0, **options)

    model = OwnCompile(network.inputs, network.outputs)
    return Case(model, x, y, compile_it, fit={"validation_data": (x, y)})


@ours
class Cycle(Parts):
    """Two translators and two critics, four optimizers."""

    PARTS = ("there", "back", "critic_there", "critic_back")

    def compile(self, rate, **options):
        super().compile(**options)
        self.optimizers = [keras.optimizers.Adam(rate) for _ in self.PARTS]

    def train_step(self, data):
        here, far = data
        with tf.GradientTape(persistent=True) as tape:
            fake_far, fake_here = self.there(here), self.back(far)
            cycle = ops.mean(ops.abs(self.back(fake_far) - here))
            cycle += ops.mean(ops.abs(self.there(fake_here) - far))
            scores = self.critic_there(fake_far), self.critic_back(fake_here)
            real = self.critic_there(far), self.critic_back(here)
            fooled = [ops.mean(ops.square(score - 1)) + cycle for score in scores]
            caught = [
                ops.mean(ops.square(r - 1)) + ops.mean(ops.square(s))
                for r, s in zip(real, scores, strict=True)
            ]
        for loss, name, optimizer in zip(
            [*fooled, *caught], self.PARTS, self.optimizers, strict=True
        ):
            weights = getattr(self, name).trainable_variables
            optimizer.apply(tape.gradient(loss, weights), weights)
        return {"cycle": cycle}


@row(KIND)
def cycle_of_two_translators():
    """Four networks in one step, by a persistent tape."""
    model = Cycle(
        dense(8, 16, 8, name="there"),
        dense(8, 16, 8, name="back"),
        dense(8, 12, 1, name="critic_there"),
        dense(8, 12, 1, name="critic_back"),
    )

    def compile_it(model, **options):
        model.compile(1e-3, **options)

    x = floats(8)
    return Case(model, x, x[::-1] + 1, compile_it, part="there", inputs=x[:2])


@ours
class SelfSupervised(Parts):
    """Two noisy views of each example come near each other; a probe trains beside."""

    PARTS = ("encoder", "head", "probe")

    def compile(self, contrastive, probing, **options):
        super().compile(**options)
        self.contrastive, self.probing = contrastive, probing

    def call(self, x):
        return self.probe(self.encoder(x))

    def train_step(self, data):
        x, y = data
        views = [x + 0.1 * keras.random.normal(ops.shape(x)) for _ in range(2)]
        with tf.GradientTape() as tape:
            one, two = (ops.normalize(self.head(self.encoder(v, training=True))) for v in views)
            logits = ops.matmul(one, ops.transpose(two)) / 0.2
            targets = ops.arange(ops.shape(x)[0])
            loss = ops.mean(
                keras.losses.sparse_categorical_crossentropy(targets, logits, from_logits=True)
            )
        weights = self.encoder.trainable_weights + self.head.trainable_weights
        gradients = tape.gradient(loss, weights)
        self.contrastive.apply_gradients(zip(gradients, weights, strict=True))
        with tf.GradientTape() as tape:
            logits = self.probe(self.encoder(x, training=False))
            losses = keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
            second = ops.mean(losses)
        weights = self.probe.trainable_weights
        gradients = tape.gradient(second, weights)
        self.probing.apply_gradients(zip(gradients, weights, strict=True))
        return {"contrastive": loss, "probe": second}


@row(KIND)
def contrastive_with_a_probe():
    """An encoder under two heads, with an optimizer for each loss."""
    model = SelfSupervised(
        dense(12, 24, 8, name="encoder"), dense(8, 8, name="head"), dense(8, CLASSES, name="probe")
    )
    model(floats(12)[:2])
    return Case(model, floats(12), integers(CLASSES), _two_optimizers)


@ours
class Adversarial(Parts):
    """Trains on inputs moved along the gradient, too: a gradient within the loss."""

    PARTS = ("network",)

    def call(self, x, training=False):
        return self.network(x, training=training)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = self.compute_loss(x, y, self(x, training=True))
        moved = tf.stop_gradient(x + 0.05 * tf.sign(tape.gradient(loss, x)))
        with tf.GradientTape() as tape:
            total = self.compute_loss(x, y, self(x, training=True))
            total += self.compute_loss(moved, y, self(moved, training=True))
        weights = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(total, weights), weights, strict=True))
        return self.compute_metrics(x, y, self(x, training=False))


@row(KIND)
def adversarial_examples():
    """A wrapper around a network, with the metrics of `compile`."""
    model = Adversarial(dense(16, 24, CLASSES, name="network"))
    model(floats(16)[:2])
    return Case(model, floats(16), integers(CLASSES), by_labels)


@ours
class Masked(Parts):
    """An autoencoder that sees some of the patches and predicts the others."""

    PARTS = ("encoder", "decoder")

    def call(self, x):
        return self.decoder(self.encoder(x))

    def calculate(self, x):
        seen = ops.cast(keras.random.uniform(ops.shape(x)[:2]) > 0.5, x.dtype)[..., None]
        error = ops.square(self(x * seen) - x) * (1 - seen)
        return ops.sum(error) / (ops.sum(1 - seen) + 1)

    def train_step(self, x):
        with tf.GradientTape() as tape:
            loss = self.calculate(x)
        variables = [*self.encoder.trainable_variables, *self.decoder.trainable_variables]
        pairs = []
        for gradient, variable in zip(tape.gradient(loss, variables), variables, strict=True):
            pairs.append((gradient, variable))
        self.optimizer.apply_gradients(pairs)
        return {"loss": loss}

    def test_step(self, x):
        return {"loss": self.calculate(x)}


@row(KIND)
def masked_autoencoder():
    """Layers on sequences of patches, and `fit` on a data set."""
    start = keras.Input((6, 8))
    encoder = keras.Model(start, layers.Dense(12, activation="relu")(start), name="encoder")
    start = keras.Input((6, 12))
    decoder = keras.Model(start, layers.Dense(8)(start), name="decoder")
    model = Masked(encoder, decoder)
    data = floats(6, 8)
    model(data[:2])
    dataset = tf.data.Dataset.from_tensor_slices(data).batch(4)
    return Case(model, dataset, None, by_itself, inputs=data[:2])
