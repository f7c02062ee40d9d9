"""The door to private API: each name is still there, and does what it is for."""

import ast
import importlib
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import house

PACKAGE = pathlib.Path(__file__).resolve().parents[2] / "tf_rigl"


def read_names():
    """Returns `NAMES` from the source: the import of the package may fail where a name is gone."""
    for node in ast.parse((PACKAGE / house.TABLE).read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NAMES":
            return ast.literal_eval(node.value)
    raise AssertionError(f"{house.TABLE} has no NAMES")


NAMES = read_names()
PAIRS = [(owner, name) for owner, names in NAMES.items() for name in names]


def build(layer, *shapes):
    """Builds a layer on shapes; returns it."""
    layer.build(*shapes)
    return layer


def compiled():
    """Returns a compiled functional model of one layer."""
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    model.compile("sgd", "mse")
    return model


def attention():
    """Returns a built attention layer, gated where Keras has that."""
    names = keras.layers.MultiHeadAttention(1, 2).get_config()
    gate = {"use_gate": True} if "use_gate" in names else {}
    return build(keras.layers.MultiHeadAttention(1, 2, **gate), (None, 3, 4), (None, 3, 4))


def built(make):
    """Returns a built optimizer."""
    optimizer = make()
    optimizer.build([keras.Variable([1.0])])
    return optimizer


# Of what has names that only instances have, one of it.
INSTANCES = {
    "keras.layers.Layer": lambda: build(keras.layers.Dense(2), (None, 3)),
    "keras.layers.Dense": lambda: build(keras.layers.Dense(2), (None, 3)),
    "keras.layers.EinsumDense": lambda: build(keras.layers.EinsumDense("ab,bc->ac", 2), (None, 3)),
    "keras.layers.Conv2D": lambda: build(keras.layers.Conv2D(2, 1), (None, 4, 4, 3)),
    "keras.layers.Embedding": lambda: build(keras.layers.Embedding(4, 2)),
    "keras.layers.MultiHeadAttention": attention,
    "keras.models.Sequential": lambda: keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]),
    "keras.KerasTensor": lambda: keras.layers.Embedding(4, 2, mask_zero=True)(keras.Input((3,))),
    "keras.Function": lambda: keras.Function(x := keras.Input((3,)), keras.ops.relu(x)),
    "keras.optimizers.Optimizer": lambda: built(lambda: keras.optimizers.SGD(use_ema=True)),
    "keras.optimizers.ScheduleFreeAdamW": lambda: built(keras.optimizers.ScheduleFreeAdamW),
    "keras.optimizers.Adagrad": lambda: built(keras.optimizers.Adagrad),
    "keras.optimizers.Ftrl": lambda: built(keras.optimizers.Ftrl),
    "keras.Model": compiled,
    "tensorflow.Variable": lambda: tf.Variable(0.0),
    "tensorflow.types.experimental.ConcreteFunction": lambda: tf.function(
        lambda x: x
    ).get_concrete_function(tf.TensorSpec([])),
}


def owner_of(path):
    """Returns an instance, or else the module or class, that a dotted name means."""
    if path in INSTANCES:
        return INSTANCES[path]()
    parts = path.split(".")
    for size in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:size]))
        except ModuleNotFoundError:
            continue
        for part in parts[size:]:
            found = getattr(found, part)
        return found
    raise AttributeError(path)


def is_older(version, than):
    """Whether a version is lower than another, of which the first two numbers are given."""
    first, second = (tuple(map(int, text.split(".")[:2])) for text in (version, than))
    return first < second


@pytest.mark.parametrize(("owner", "name"), PAIRS, ids=[".".join(pair) for pair in PAIRS])
def test_name_is_there(owner, name):
    purpose, versions = NAMES[owner][name]
    library = tf if owner.startswith(("tensorflow.", "tf_keras.")) else keras
    since = versions.split("-")[0]
    if is_older(library.__version__, since):
        pytest.skip(f"{library.__name__} {library.__version__} has no {owner}.{name} yet")
    try:
        found = hasattr(owner_of(owner), name)
    except AttributeError:
        found = False
    if not found:
        version = f"{library.__name__} {library.__version__}"
        pytest.fail(f"{version} has no {owner}.{name}, which {purpose}", pytrace=False)


def test_each_name_in_the_door_is_listed():
    listed = {name for names in NAMES.values() for name in names}
    listed |= {owner.split(".")[-1] for owner in NAMES}
    used = {p.name.split(".")[-1] for p in house.private_uses(PACKAGE) if p.file == house.DOOR}
    assert used - listed == {"_{name}"}  # Of an attribute: `_kernel`, `_embeddings`.


# What the functions do. The door is imported late: the test of a missing name runs without it.


@pytest.fixture(name="door")
def import_door():
    return importlib.import_module("tf_rigl._base.keras_internals")


def test_all_layers(door):
    inner = [keras.layers.Dense(2, name="a"), keras.layers.Dense(2, name="b")]
    model = keras.Sequential([keras.Sequential(inner), keras.layers.Dropout(0.5)])
    assert door.all_layers(model)[0] is model
    assert inner[0] in door.all_layers(model)
    direct = door.all_layers(model, include_self=False, recursive=False)
    assert inner[0] not in direct
    assert set(map(id, model.layers)) <= set(map(id, direct))


def test_track_layer(door):
    model, extra = compiled(), keras.layers.Dense(2)
    for _ in range(2):
        door.track_layer(model, extra)
    assert door.all_layers(model).count(extra) == 1


def test_set_own_trainable(door):
    model = compiled()
    door.set_own_trainable(model, False)
    assert not model.trainable
    assert model.layers[-1].trainable
    assert all(variable.trainable for variable in model.variables[:1])


def test_own_variables_are_those_of_the_file(door):
    store = {}
    layer = build(keras.layers.BatchNormalization(), (None, 3))
    layer.save_own_variables(store)
    own = door.own_variables(layer)
    assert list(store) == [str(number) for number in range(len(own))]
    assert all(np.array_equal(store[str(n)], variable) for n, variable in enumerate(own))


def test_seed_states(door):
    dropout = keras.layers.Dropout(0.5)
    (state,) = door.seed_states(dropout)
    assert state is dropout.seed_generator.state
    assert door.seed_states(keras.Sequential([dropout])) == []


def test_stored_variable_with_lora(door):
    layer = INSTANCES["keras.layers.Dense"]()
    layer.enable_lora(1)
    assert isinstance(door.stored_variable(layer, "kernel"), keras.Variable)


def test_track(door, tmp_path):
    layer, variable = keras.layers.ReLU(), tf.Variable(1.0)
    door.track(layer, variable, "extra")
    path = tf.train.Checkpoint(layer).write(tmp_path / "checkpoint")
    variable.assign(2.0)
    tf.train.Checkpoint(layer).read(path)
    assert variable.numpy() == 1


def test_default_build(door):
    class Layer(keras.layers.Layer):
        @door.default_build
        def build(self, input_shape=None):
            del input_shape

    assert door.has_default_build(Layer())
    assert not door.has_default_build(keras.layers.Dense(2))


def test_set_projection(door):
    layer = attention()
    new = keras.layers.EinsumDense("abc,cde->abde", (None, 1, 2))
    number = door.all_layers(layer).index(layer.query_dense)
    door.set_projection(layer, "query", new)
    assert layer.query_dense is new is door.projection(layer, "query")
    assert door.all_layers(layer)[number] is new
    assert layer.output_dense is door.projection(layer, "attention_output")


def test_a_mask_of_timesteps_is_seen(door):
    inputs = keras.Input((3,), dtype="int32")
    masked = keras.layers.Embedding(5, 4, mask_zero=True)(inputs)
    assert door.carries_mask(masked)
    assert not door.carries_mask(keras.layers.Embedding(5, 4)(inputs))


def test_graph(door):
    inputs = keras.Input((3,), name="x")
    layer = keras.layers.Dense(2)
    outputs = keras.ops.relu(layer(inputs))
    assert door.history(outputs).operation.__class__ is door.Relu
    assert door.history(layer.output).operation is layer
    (node,) = door.nodes_of(layer)
    assert node.input_tensors == [inputs]
    nodes = door.nodes_in_order(keras.Function(inputs, outputs))
    assert [each.operation.__class__ for each in nodes[1:]] == [keras.layers.Dense, door.Relu]
    model = keras.Model({"x": inputs}, [outputs])
    assert door.graph_of(model) is model
    # In their structure, as the package takes them.
    assert model.input == {"x": inputs}
    assert model.output == [outputs]
    sequential = INSTANCES["keras.models.Sequential"]()
    assert door.graph_of(sequential).operations[-1] is sequential.layers[-1]
    assert door.graph_of(layer) is None


def test_compute_output_spec_adds_no_call(door):
    model = compiled()
    before = len(door.nodes_of(model.layers[-1]))
    assert door.compute_output_spec(model, keras.KerasTensor((4, 3))).shape == (4, 2)
    assert len(door.nodes_of(model.layers[-1])) == before


def test_variables(door):
    variable = keras.Variable(np.ones(2, "float32"))
    with keras.StatelessScope() as scope:
        assert door.in_stateless_scope()
        door.assign_directly(variable, np.zeros(2))
    assert not door.in_stateless_scope()
    assert scope.get_current_value(variable) is None
    assert not np.any(variable)
    layer = keras.layers.Dense(2, dtype="mixed_bfloat16")
    layer.build((None, 3))
    seen = []

    def call(inputs):
        seen.append(keras.ops.convert_to_tensor(layer.kernel).dtype)
        with door.without_autocast():
            seen.append(keras.ops.convert_to_tensor(layer.kernel).dtype)
        return inputs

    layer.call = call
    layer(np.ones((1, 3)))
    assert seen == [tf.bfloat16, tf.float32]


@pytest.mark.parametrize("make", [keras.optimizers.Adagrad, keras.optimizers.Ftrl])
def test_accumulators(make, door):
    (accumulator,) = door.accumulators(built(make))
    assert accumulator.numpy() > 0


def test_built_on(door):
    weights = [keras.Variable([1.0]), keras.Variable([2.0])]
    optimizer = keras.optimizers.SGD()
    assert door.built_on(optimizer) == []
    optimizer.build(weights)
    assert [id(weight) for weight in door.built_on(optimizer)] == [id(weight) for weight in weights]


def test_copies_of_weights(door):
    assert door.copies_of_weights(built(keras.optimizers.Adam)) == []
    assert door.copies_of_weights(keras.optimizers.SGD(use_ema=True)) == []
    (average,) = door.copies_of_weights(built(lambda: keras.optimizers.SGD(use_ema=True)))
    assert average.shape == (1,)
    if hasattr(keras.optimizers, "ScheduleFreeAdamW"):
        (copy,) = door.copies_of_weights(built(keras.optimizers.ScheduleFreeAdamW))
        assert copy.numpy() == [1.0]


class OldLoss(keras.Model):
    """A model whose loss and metrics are its own."""

    def __init__(self):
        super().__init__()
        self.own = keras.metrics.Mean(name="loss")
        self.dense = keras.layers.Dense(1)

    def call(self, inputs):
        return self.dense(inputs)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        return super().compute_loss(x, y, y_pred, sample_weight) + 1

    @property
    def metrics(self):
        return [self.own]


@pytest.mark.parametrize("make", [compiled, OldLoss])
def test_loss(door, make):
    model = make()
    model.compile("sgd", "mse")
    assert door.loss_metric(model) is model._loss_tracker
    x, y = np.ones((2, 3), "float32"), np.ones((2, 1), "float32")
    y_pred = model(x)
    expected = model._compute_loss(x, y, y_pred, None, training=True)
    assert np.array_equal(door.compute_loss(model, x, y, y_pred, None), expected)


def test_initial_epoch(door):
    class Goes(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            door.set_initial_epoch(self.model, 2)

    model = compiled()
    assert door.initial_epoch(model) is None
    history = model.fit(np.ones((2, 3)), np.ones((2, 2)), epochs=3, callbacks=[Goes()], verbose=0)
    assert history.epoch == [door.initial_epoch(model)] == [2]


def test_builds_on_workers_is_asked_by_fit(door):
    asked = []

    class Model(door.BuildsOnWorkers, keras.Model):
        def call(self, inputs):
            return inputs * self.scale

        def build(self, input_shape=None):
            asked.append(input_shape)
            self.scale = self.add_weight()

    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        model = Model()
        model.compile("sgd", "mse")
    model.fit(np.ones((2, 3)), np.ones((2, 3)), verbose=0)
    assert asked == [(2, 3)]


@pytest.mark.parametrize("compiles", [False, True])
def test_in_xla(door, compiles):
    seen = []

    @tf.function(jit_compile=compiles)
    def function(x):
        seen.append(door.in_xla())
        return x

    function(tf.constant(1.0))
    assert seen == [compiles]


def test_allow_lambdas(door):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda x: x + 1)])
    with pytest.raises(ValueError, match="ambda"):
        type(model).from_config(model.get_config())
    with door.allow_lambdas():
        copy = type(model).from_config(model.get_config())
    assert np.array_equal(copy(np.ones((1, 3))), model(np.ones((1, 3))))


def test_input_signature(door):
    class Model(keras.Model):
        def build(self, input_shape=None):
            self.built = True

        def call(self, inputs):
            return inputs

    model = Model()
    model.build((None, 3))
    for each in (model, compiled(), INSTANCES["keras.models.Sequential"]()):
        (spec,) = door.input_signature(each)
        assert tuple(spec.shape) == (None, 3)


def test_saved_model(door, tmp_path):
    class Module(tf.Module):
        def __init__(self):
            super().__init__()
            self.large = tf.Variable(tf.zeros(10_000))

        @tf.function(input_signature=[tf.TensorSpec([], name="b"), tf.TensorSpec([], name="a")])
        def sums(self, first, second):
            return first + second

    sizes = []
    for leaves_out in (False, True):
        module, place = Module(), tmp_path / str(leaves_out)
        if leaves_out:
            door.leave_value_out(module.large)
        tf.saved_model.save(module, place)
        assert tf.saved_model.load(place).sums(tf.constant(1.0), tf.constant(2.0)).numpy() == 3
        sizes.append(sum(file.stat().st_size for file in place.rglob("*") if file.is_file()))
    assert sizes[0] - sizes[1] > 30_000
    assert door.argument_names(Module().sums.get_concrete_function()) == ["b", "a"]
