"""Loops written by hand: `tf_rigl.training_step`, alone and between calls of `fit`."""

import keras
import numpy as np
import tensorflow as tf

from benchmarks.sweep.case import Case, by_labels, floats, integers, row

layers, ops = keras.layers, keras.ops
CLASSES = 3
KIND = "loops written by hand"


def network(inputs, *widths):
    """A stack of dense layers."""
    model = keras.Sequential([keras.Input((inputs,))])
    for width in widths[:-1]:
        model.add(layers.Dense(width, activation="relu"))
    model.add(layers.Dense(widths[-1]))
    return model


def _batches(x, y, count):
    for number in range(count):
        start = 4 * (number % (len(x) // 4))
        yield x[start : start + 4], y[start : start + 4]


def _classify(sparse, optimizer):
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_of(y, sparse(x, training=True)) + sum(sparse.losses, 0.0)
        gradients = tape.gradient(loss, sparse.trainable_variables)
        optimizer.apply_gradients(zip(gradients, sparse.trainable_variables, strict=True))
        return loss

    return step


def _steps(sparse, expected):
    if sparse.step != expected:
        raise AssertionError(f"{sparse.step} steps in place of {expected}")


def _loop(sparse, fit, tf_rigl):
    x, y = floats(16), integers(CLASSES)
    optimizer = keras.optimizers.Adam(0.01)
    train = tf_rigl.training_step(sparse, _classify(sparse, optimizer), optimizer, steps=12)
    for batch in _batches(x, y, 12):
        if not np.isfinite(train(*batch)):
            raise AssertionError("the loss is not finite")
    _steps(sparse, 12)


@row(KIND, ["magnitude", "snip", "set", "2:4"])
def classifier_loop():
    """A step with a tape."""
    model = network(16, 24, 16, CLASSES)
    return Case(model, floats(16), integers(CLASSES), train=_loop)


def _decorated(sparse, fit, tf_rigl):
    x, y = floats(16), integers(CLASSES)
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    function = tf.function(_classify(sparse, optimizer))
    train = tf_rigl.training_step(sparse, function, optimizer, steps=12)
    for batch in _batches(x, y, 12):
        train(*(tf.constant(each) for each in batch))
    _steps(sparse, 12)


@row(KIND)
def loop_with_a_tf_function():
    """The step is decorated with `tf.function`."""
    model = network(16, 24, 16, CLASSES)
    return Case(model, floats(16), integers(CLASSES), train=_decorated)


def _mixed(sparse, fit, tf_rigl):
    by_labels(sparse)
    fit()
    _loop_more(sparse, tf_rigl, 6)
    fit(initial_epoch=2, epochs=3)
    sparse.train_on_batch(floats(16)[:4], integers(CLASSES)[:4])
    _steps(sparse, 12 + 6 + 6 + 1)


def _loop_more(sparse, tf_rigl, count):
    optimizer = sparse.optimizer
    train = tf_rigl.training_step(sparse, _classify(sparse, optimizer), optimizer, steps=count)
    for batch in _batches(floats(16), integers(CLASSES), count):
        train(*batch)


@row(KIND)
def fit_and_loops_in_turn():
    """`fit`, a loop with the same optimizer, `fit` again, and `train_on_batch`."""
    model = network(16, 24, 16, CLASSES)
    return Case(model, floats(16), integers(CLASSES), train=_mixed)


def _q_learning(sparse, fit, tf_rigl):
    """A deep Q-network on a chain of states: the target network is a stripped copy."""
    target = tf_rigl.strip(sparse)
    optimizer, rng = keras.optimizers.Adam(0.01), np.random.default_rng(0)

    def step(state, action, goal):
        with tf.GradientTape() as tape:
            values = ops.sum(sparse(state, training=True) * ops.one_hot(action, 2), axis=1)
            loss = ops.mean(ops.square(goal - values))
        gradients = tape.gradient(loss, sparse.trainable_variables)
        optimizer.apply(gradients, sparse.trainable_variables)
        return loss

    train = tf_rigl.training_step(sparse, step, optimizer, steps=12)
    memory, state = [], rng.normal(size=8).astype("float32")
    for number in range(12):
        values = sparse(state[None])
        action = int(rng.integers(2)) if number % 3 == 0 else int(np.argmax(values))
        after = (0.9 * state + 0.3 * (2 * action - 1)).astype("float32")
        memory.append((state, action, after, -float(np.abs(after).mean())))
        state = after
        chosen = [memory[i] for i in rng.integers(0, len(memory), 8)]
        states, actions, afters, rewards = (np.array(each) for each in zip(*chosen, strict=True))
        goals = rewards + 0.9 * np.max(target(afters), axis=1)
        train(states, actions.astype("int32"), goals.astype("float32"))
        if number % 4 == 3:
            target.set_weights(tf_rigl.strip(sparse).get_weights())
    _steps(sparse, 12)


@row(KIND)
def deep_q_network():
    """Reinforcement learning with a memory and a target network."""
    return Case(network(8, 24, 16, 2), floats(8), train=_q_learning)


def _actor_critic(sparse, fit, tf_rigl):
    optimizers = [keras.optimizers.Adam(0.01), keras.optimizers.RMSprop(0.01)]
    actor = [v for v in sparse.trainable_variables if "critic" not in v.path]
    critic = [v for v in sparse.trainable_variables if "critic" in v.path]

    def step(x, action, reward):
        with tf.GradientTape(persistent=True) as tape:
            logits, value = sparse(x, training=True)
            advantage = tf.stop_gradient(reward - value[:, 0])
            chosen = ops.sum(ops.log_softmax(logits) * ops.one_hot(action, 2), axis=1)
            actor_loss = -ops.mean(chosen * advantage)
            critic_loss = ops.mean(ops.square(reward - value[:, 0]))
        optimizers[0].apply(tape.gradient(actor_loss, actor), actor)
        optimizers[1].apply(tape.gradient(critic_loss, critic), critic)

    train = tf_rigl.training_step(sparse, step, optimizers, steps=12)
    x, actions, rewards = floats(8), integers(2), floats()
    for number in range(12):
        at = slice(number, number + 8)
        train(x[at], actions[at], rewards[at])
    _steps(sparse, 12)


@row(KIND)
def actor_and_critic():
    """One model with two heads, each with an optimizer."""
    inputs = keras.Input((8,))
    x = layers.Dense(16, activation="relu", name="actor")(inputs)
    y = layers.Dense(16, activation="relu", name="critic")(inputs)
    heads = [layers.Dense(2, name="actor_head")(x), layers.Dense(1, name="critic_head")(y)]
    return Case(keras.Model(inputs, heads), floats(8), train=_actor_critic)


def _meta(sparse, fit, tf_rigl):
    """Learns a task, then moves from the old weights towards the new ones, as Reptile does."""
    optimizer = keras.optimizers.SGD(0.05)
    train = tf_rigl.training_step(sparse, _classify(sparse, optimizer), optimizer, steps=12)
    x, y = floats(16), integers(CLASSES)
    for task in range(4):
        old = sparse.get_weights()
        for batch in _batches(x + task, y, 3):
            train(*batch)
        if sparse.step % 2:  # Only between two updates are the zeros those of before.
            new = sparse.get_weights()
            numbers = [i for i, v in enumerate(sparse.weights) if v.dtype == "float32"]
            for i in numbers:
                new[i] = np.where(new[i] == 0, 0, old[i] + 0.5 * (new[i] - old[i]))
            sparse.set_weights(new)
    _steps(sparse, 12)


@row(KIND)
def meta_learning():
    """Weights are set between the steps."""
    model = network(16, 24, 16, CLASSES)
    return Case(model, floats(16), integers(CLASSES), train=_meta)


def _one_optimizer_fewer(sparse, fit, tf_rigl):
    """An ordinary loop without `training_step`: masks cannot move, zeros must stay."""
    optimizer = keras.optimizers.Adam(0.01)
    step = _classify(sparse, optimizer)
    for batch in _batches(floats(16), integers(CLASSES), 12):
        step(*batch)


@row(KIND)
def plain_loop_without_training_step():
    """The optimizer is applied as in plain Keras: masks stay, and there is a warning."""
    model = network(16, 24, 16, CLASSES)
    return Case(model, floats(16), integers(CLASSES), train=_one_optimizer_fewer, moves=False)


def _on_batches(sparse, fit, tf_rigl):
    by_labels(sparse)
    for batch in _batches(floats(16), integers(CLASSES), 12):
        sparse.train_on_batch(*batch)
    _steps(sparse, 12)


@row(KIND, ["magnitude"])
def train_on_batch():
    """One batch at a time."""
    model = network(16, 24, 16, CLASSES)
    return Case(model, floats(16), integers(CLASSES), train=_on_batches)


@keras.saving.register_keras_serializable(package="sweep")
class Host(keras.Model):
    """An ordinary model around another; it knows nothing of masks."""

    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def call(self, x, training=False):
        return self.inner(x, training=training)


def _nested(sparse, fit, tf_rigl):
    host = Host(sparse)
    by_labels(host)
    host.fit(floats(16), integers(CLASSES), batch_size=4, epochs=2, verbose=0)


@row(KIND)
def sparse_model_in_an_ordinary_one():
    """Trained by `fit` of the ordinary model: masks stay, and there is a warning."""
    model = network(16, 24, 16, CLASSES)
    return Case(model, floats(16), integers(CLASSES), train=_nested, moves=False)
