"""One training of `tf-rigl tickets`: its data, its dense network, and its evaluations."""

import functools

import keras
import numpy as np
import tensorflow as tf

from tf_rigl.experiments import data, models
from tf_rigl.lottery import controls

_AT_ONCE = 2500  # Examples in a batch of an evaluation.


def arrays(name, data_dir):
    """Loads a data set into memory: a dict of "train" and "test" to images and labels."""
    loaded = data.arrays(name, data_dir=data_dir)
    return {"train": loaded.train, "test": loaded.test}


def split(images, seed):
    """Splits a twelfth of the training data off, as "val"."""
    x, y = images["train"]
    order = np.random.default_rng(seed).permutation(len(x))
    count = held_out(len(x))
    parts = {"val": order[:count], "train": order[count:]}
    return {"test": images["test"]} | {name: (x[part], y[part]) for name, part in parts.items()}


def held_out(examples):
    """Returns the number of examples to hold out of a number of examples."""
    return max(1, examples // 12)


def steps(settings, examples):
    """Returns the steps of a training: whole epochs, rounded up to a multiple of `every`."""
    in_epoch = max(1, examples // settings.batch_size)
    return -(-settings.epochs * in_epoch // settings.every) * settings.every


def dense(settings, images):
    """Makes the dense network, with weights from Glorot's normal distribution."""
    shape, classes = images["train"][0].shape[1:], int(images["train"][1].max()) + 1
    model = models.get(settings.model)(shape, classes)

    def normal(layer):
        config = layer.get_config()
        if "kernel_initializer" in config:
            config["kernel_initializer"] = keras.initializers.GlorotNormal()
        return type(layer).from_config(config)

    return keras.models.clone_model(model, clone_function=normal)


def optimizer(settings, step):
    """Makes an optimizer for a training that begins at a step."""
    rate = settings.learning_rate
    if settings.warm_up > step:
        rate = controls.from_step(controls.warm_up(rate, settings.warm_up), step)
    if settings.optimizer == "sgd":
        return keras.optimizers.SGD(rate, momentum=0.9)
    return keras.optimizers.Adam(rate)


def train(model, settings, images, seed):
    """Trains a network from its step on; returns the evaluations as a dict of lists."""
    x, y = (tf.constant(each) for each in images["train"])
    count = (steps(settings, len(x)) - model.step) // settings.every
    # Shuffling the images instead of their indices would take longer than the training.
    batches = tf.data.Dataset.range(len(x)).shuffle(len(x), seed=seed).repeat()
    batches = batches.batch(settings.batch_size, drop_remainder=True).skip(model.step)
    batches = batches.map(lambda some: (tf.gather(x, some), tf.gather(y, some))).prefetch(8)
    model.compile(
        optimizer(settings, model.step),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=settings.every,
    )
    curve = _Curve({part: images[part] for part in ("val", "test")})
    model.fit(
        batches,
        steps_per_epoch=settings.every,
        epochs=count,
        shuffle=False,
        verbose=0,
        callbacks=[curve],
    )
    return curve.history


class _Curve(keras.callbacks.Callback):
    """Measures loss and accuracy on several data sets at the end of each epoch."""

    def __init__(self, sets):
        super().__init__()
        self._sets = {
            name: [(tf.constant(x[i : i + _AT_ONCE]), y[i : i + _AT_ONCE])
                   for i in range(0, len(x), _AT_ONCE)]
            for name, (x, y) in sets.items()
        }  # fmt: skip
        self.history = {"step": []}

    def on_train_begin(self, logs=None):
        # TensorFlow warns about many traces of the same code. A partial has no code of its own,
        # so the traces of several models do not add up.
        call = functools.partial(self.model, training=False)
        self._predict = tf.function(call, reduce_retracing=True, autograph=False)

    def on_epoch_end(self, epoch, logs=None):
        self.history["step"].append(self.model.step)
        for name, batches in self._sets.items():
            logits = np.concatenate([self._predict(x).numpy() for x, _ in batches])
            labels = np.concatenate([y for _, y in batches])
            logits = logits.astype("float64") - logits.max(axis=1, keepdims=True)
            losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]
            hits = logits.argmax(axis=1) == labels
            self.history.setdefault(f"{name}_loss", []).append(float(losses.mean()))
            self.history.setdefault(f"{name}_accuracy", []).append(float(hits.mean()))
