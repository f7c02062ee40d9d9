"""Whole configurations at random: refused before training, or every invariant holds after it."""

import collections
import math
import re
import tempfile

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from references import patterns_numpy as reference

import tf_rigl
from tests.helpers import (
    BATCH,
    CLASSES,
    FEATURES,
    LAYER_CASES,
    MODEL_KINDS,
    compiled,
    equal_masks,
    layer_model,
    model_data,
    random_data,
    uniform,
)
from tests.soak import record, times
from tf_rigl import methods, schedules
from tf_rigl.block_sparse.weight import BlockSparseWeight
from tf_rigl.patterns import NM, Block

BATCHES = 6
EXAMPLES = times(24, 400)
# How messages begin that say what is wrong with a configuration. Those of layers stand in what
# Keras says of the call.
DELIBERATE = re.compile(
    r"^(\x1b\[1m)?(Argument `|Pattern '|The (overall )?sparsity cannot be met|\w+ begins with )",
    re.MULTILINE,
)

# Models.


def cnn():
    return keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            keras.layers.Conv2D(8, 3, name="conv"),
            keras.layers.BatchNormalization(),
            keras.layers.DepthwiseConv2D(3, activation="relu"),
            keras.layers.Conv2D(12, 1, name="pointwise"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(CLASSES, name="head"),
        ]
    )


def wide():
    """Large enough for blocks of several sizes."""
    hidden = [keras.layers.Dense(24, "tanh", name=f"hidden_{n}") for n in range(2)]
    return keras.Sequential([keras.Input((32,)), *hidden, keras.layers.Dense(CLASSES, name="head")])


@keras.saving.register_keras_serializable(package="configurations")
class OwnModel(tf_rigl.SparseModel):
    """A subclass with masked layers, one of them called twice."""

    def __init__(self, masked, **kwargs):
        super().__init__(**kwargs)
        self.masked = masked
        hidden = keras.layers.Dense(FEATURES, "tanh", name="hidden")
        self.hidden = tf_rigl.MaskedLayer(hidden, **masked)
        self.head = tf_rigl.MaskedLayer(keras.layers.Dense(CLASSES, name="head"), **masked)

    def call(self, x):
        return self.head(self.hidden(self.hidden(x)))

    def get_config(self):
        return {**super().get_config(), "masked": self.masked}


def masked_graph(layer_case, masked, **kwargs):
    """A functional model of layers wrapped by hand."""
    shape, dtype, make, _ = LAYER_CASES[layer_case]
    inputs = keras.Input(shape, dtype=dtype)
    x = keras.layers.Flatten()(tf_rigl.MaskedLayer(make(), **masked)(inputs))
    head = keras.layers.Dense(CLASSES, name="head")
    return tf_rigl.SparseModel(inputs, tf_rigl.MaskedLayer(head, **masked)(x), **kwargs)


def blocks_by_hand(masked, **kwargs):
    """A functional model with a layer that stores its blocks, and a masked one."""
    inputs = keras.Input((32,))
    layer = tf_rigl.block_sparse.Dense(24, "tanh", block_size=(4, 3), density=0.4)
    head = keras.layers.Dense(CLASSES, name="head")
    return tf_rigl.SparseModel(inputs, tf_rigl.MaskedLayer(head, **masked)(layer(inputs)), **kwargs)


OWN = {"cnn": (cnn, (6, 6, 3)), "wide": (wide, (32,))}
WRAPPED = ("Dense", "EinsumDense", "Conv2D", "Conv2DTranspose", "SeparableConv2D", "Embedding")
WRAPPED += ("SimpleRNN", "GRU", "Bidirectional", "RNN-cells", "TimeDistributed")
KINDS = [
    *(("own", name) for name in OWN),
    *(("layer", name) for name in LAYER_CASES),
    *(("model", name) for name in MODEL_KINDS),
    *(("by hand", name) for name in WRAPPED),
    ("by hand", "subclass"),
    ("by hand", "blocks"),
]


def data_of(kind, name):
    """Features and labels that a kind of model takes."""
    if kind == "model":
        return model_data(name, batches=BATCHES)
    if kind == "own":
        return random_data(OWN[name][1], BATCHES)
    if kind == "by hand" and name not in LAYER_CASES:
        return random_data((FEATURES,) if name == "subclass" else (32,), BATCHES)
    shape, dtype, *_ = LAYER_CASES[name]
    return random_data(shape, BATCHES, dtype=dtype)


def dense_model(kind, name):
    if kind == "own":
        return OWN[name][0]()
    return MODEL_KINDS[name][0]() if kind == "model" else layer_model(name)[0]


# What a configuration is made of.

OPTIMIZERS = {
    "SGD": {"momentum": 0.9, "nesterov": True},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Adam": {"amsgrad": True},
    "AdamW": {},
    "Adadelta": {},
    "Adagrad": {},
    "Adamax": {},
    # By default it divides by zero where a row and a column have no gradient, dense too.
    "Adafactor": {"epsilon_1": 1e-12},
    "Nadam": {},
    "Ftrl": {"l1_regularization_strength": 0.01},
    "Lion": {},
    "Lamb": {},
    "Muon": {},
    "ScheduleFreeAdamW": {},
}
OPTIMIZERS = {
    name: kwargs for name, kwargs in OPTIMIZERS.items() if hasattr(keras.optimizers, name)
}
EXTRAS = (
    {},
    {"weight_decay": 0.01},
    {"clipnorm": 0.1},
    {"global_clipnorm": 0.1},
    {"clipvalue": 0.01},
    {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2},
    {"gradient_accumulation_steps": 2},
)
EAGER = {"run_eagerly": True}
WAYS = (  # How to run: mostly eagerly, because to compile takes its time.
    *([EAGER] * 6),
    {"run_eagerly": True, "steps_per_execution": 4},
    {"jit_compile": False},
    {"jit_compile": False, "steps_per_execution": 4},
    {"jit_compile": True},
)
PATTERNS = (
    "unstructured",
    "litert",
    "2:4",
    "1:4",
    "3:5",
    "block_4x1",
    "block_1x4",
    "block_3x2",
    "channels_2x3",
    "constant_fan_in_4x4",
    "constant_fan_in_2x1",
)
DISTRIBUTIONS = ("uniform", "uniform_all", "erdos_renyi", "erk", uniform, {"head": 0.5})

sparsities = st.one_of(
    st.sampled_from([0.0, 0.001, 0.5, 0.75, 0.9, 0.999]), st.floats(0.3, 0.95), st.floats(0, 0.999)
)
steps = st.integers(0, BATCHES - 1)


@st.composite
def moving(draw, name):
    """The arguments of a method that drops and grows."""
    arguments = {
        "drop_fraction": draw(st.sampled_from([0.01, 0.3, 0.5, 1.0])),
        "update_interval": draw(st.integers(1, 3)),
        "start_step": draw(st.one_of(st.none(), steps)),
        "end_step": draw(st.sampled_from([0, 3, 100, 0.5, 1.0])),
        "decay": draw(st.sampled_from(list(schedules.DECAYS))),
        "grow_initializer": draw(st.sampled_from(["zeros", "random_normal", "glorot_uniform"])),
        "apply_optimizer_on_update": draw(st.booleans()),
    }
    if name in ("rigl", "srigl"):
        arguments["gradient_batches"] = draw(st.integers(1, 3))
    if name == "snfs":
        arguments["momentum"] = draw(st.sampled_from([0.0, 0.5, 0.99]))
    return arguments


@st.composite
def pruning(draw, name, sparsity):
    """The arguments of a method that prunes, in time to have done so at the end."""
    arguments = {"scope": draw(st.sampled_from(["layer", "global"]))}
    if name == "snip":
        return {**arguments, "batches": draw(st.integers(1, 3))}
    begin, length = draw(st.integers(1, 3)), draw(st.integers(0, 2))
    final = draw(st.sampled_from([None, sparsity]))
    often = {"begin_step": begin, "frequency": draw(st.integers(1, 3))}
    if draw(st.booleans()):
        schedule = schedules.ConstantSparsity(final, **often)
    else:
        initial = draw(st.sampled_from([0.0, 0.3]))
        end = draw(st.sampled_from([begin + length, 1.0]))
        if final is not None:
            initial = min(initial, final)
        schedule = schedules.PolynomialDecay(initial, final, end_step=end, **often)
    return {**arguments, "schedule": schedule}


@st.composite
def newer(draw, name):
    """The arguments of a method that changes counts, so that the target is reached at the end."""
    often = {"update_interval": 1, "end_step": draw(st.sampled_from([3, 1.0]))}
    if name == "granet":
        begin = draw(st.sampled_from([0.0, 0.0, 0.3]))
        often |= {"start_step": draw(st.integers(0, 1)), "prune_end": draw(st.integers(2, 3))}
        return {**often, "initial_sparsity": begin, "drop_fraction": draw(st.floats(0.01, 0.99))}
    if name == "mest":
        soft = draw(st.booleans())
        return {**often, "soft": soft, "margins": draw(st.sampled_from([(0.3, 0), (0.9, 0.1, 0)]))}
    if name == "acdc":
        times = {"warm_up": draw(st.integers(0, 2)), "phase": draw(st.integers(1, 2))}
        scope = draw(st.sampled_from(["layer", "global"]))
        return {"scope": scope, **times, "last_dense": draw(st.sampled_from([(2, 3), (3, 5)]))}
    if name == "sr_ste":
        return {"decay": draw(st.sampled_from([0.0, 2e-4, 0.1]))}
    return {"scope": draw(st.sampled_from(["layer", "global"]))} if name == "grasp" else {}


@st.composite
def configurations(draw):
    sparsity = draw(sparsities)
    method = draw(st.sampled_from(list(methods.NAMES)))
    arguments = {}
    if method in ("set", "rigl", "snfs", "srigl"):
        arguments = draw(moving(method))
    elif method in ("snip", "magnitude"):
        arguments = draw(pruning(method, sparsity))
    else:
        arguments = draw(newer(method))
    return {
        "kind": draw(st.sampled_from(KINDS)),
        "method": (method, arguments),
        "sparsity": sparsity,
        "pattern": draw(st.sampled_from(PATTERNS)),
        "compute": draw(st.sampled_from(["masked", "masked", "sparse"])),
        "distribution": draw(st.sampled_from(DISTRIBUTIONS)),
        "exclude": draw(st.sampled_from([(), (), ("head",)])),
        "optimizer": (draw(st.sampled_from(list(OPTIMIZERS))), draw(st.sampled_from(EXTRAS))),
        "precision": draw(
            st.sampled_from(["float32", "float32", "mixed_float16", "mixed_bfloat16"])
        ),
        "way": draw(st.sampled_from(WAYS)),
        "saved": draw(st.sampled_from([False, False, True])),
        "seed": draw(st.integers(0, 99)),
    }


# From a configuration to a trained model.


def make_sparse(c):
    name, arguments = c["method"]
    method = methods.NAMES[name](**arguments)
    kind, case = c["kind"]
    if kind == "by hand":
        masked = {key: c[key] for key in ("sparsity", "pattern", "seed")}
        masked["initial_mask"] = "ones" if method.begins_dense else "random"
        if case == "subclass":
            return OwnModel(masked, method=method, seed=c["seed"])
        if case == "blocks":
            return blocks_by_hand(masked, method=method, seed=c["seed"])
        return masked_graph(case, masked, method=method, seed=c["seed"])
    given = ("sparsity", "distribution", "pattern", "exclude", "seed", "compute")
    return tf_rigl.sparsify(dense_model(kind, case), method, **{key: c[key] for key in given})


def compile_model(model, c):
    name, extra = c["optimizer"]
    arguments = {**OPTIMIZERS[name], **extra, "learning_rate": 0.01}
    return compiled(model, getattr(keras.optimizers, name)(**arguments), **c["way"])


def fit(model, c, **kwargs):
    x, y = data_of(*c["kind"])
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, **kwargs)


def keras_itself_fails(c, error):
    """Whether the dense model cannot be trained either, for the same reason."""
    kind, case = c["kind"]
    if kind == "by hand":
        kind, case = ("layer", case) if case in LAYER_CASES else ("own", "wide")
    try:
        fit(compile_model(dense_model(kind, case), c), {**c, "kind": (kind, case)})
    except type(error):
        return True
    return False


def train(c):
    """The trained model, or None and what there is to say against the configuration."""
    model = None
    try:
        model = compile_model(make_sparse(c), c)
        fit(model, c, callbacks=[CheckEveryStep()])
    except Exception as error:
        if isinstance(error, ValueError) and DELIBERATE.search(str(error)):
            assert model is None or model.step == 0, "refused after training has begun"
            return None, "refused"
        if keras_itself_fails(c, error):
            return None, "fails in Keras"
        raise
    return model, "trained"


# What has to hold.


def value_of(item):
    return keras.ops.convert_to_numpy(item.dense())


class CheckEveryStep(keras.callbacks.Callback):
    """Weights are zero under boolean masks, which only shrink where the method prunes."""

    masks = None

    def on_train_batch_end(self, batch, logs=None):
        masks = {}
        for item in self.model.masked_weights:
            mask = masks[item.path] = item.mask.numpy()
            value = value_of(item)
            assert mask.dtype == bool
            assert np.isfinite(value).all(), item.path
            assert (value[~mask] == 0).all(), item.path
        method = self.model.method
        if self.masks and method.begins_dense and method.keeps_counts:
            assert not any((mask & ~self.masks[path]).any() for path, mask in masks.items())
        self.masks = masks


def where(item):
    pattern = item.pattern
    axes = (*(pattern.axes or ()), "all") if pattern.taps == "all" else pattern.axes
    return pattern.rows, pattern.cols, axes


def units_of(item):
    if isinstance(item.pattern, Block):
        return len(reference.members(item.shape, *where(item)))
    return math.prod(item.shape)


def kept_in(item, mask):
    if isinstance(item.pattern, Block):
        return reference.blocks_kept(mask, *where(item))
    return np.count_nonzero(mask)


def has_pattern(item, mask):
    """Whether a mask is one that the pattern allows, by the reference."""
    pattern = item.pattern
    if isinstance(pattern, Block):
        equal = len({*reference.kept_in_columns(mask, *where(item))}) == 1
        return reference.are_whole(mask, *where(item)) and (equal or not pattern.constant_fan_in)
    if isinstance(pattern, NM) and item.target_sparsity > 0:
        return reference.holds_nm(mask, pattern.n, pattern.m, pattern.axes)
    return True


def wanted(item, method):
    """How many units are to be kept at the end, and by how many the count may be off."""
    units, off = units_of(item), 0
    count = units - math.floor(item.target_sparsity * units + 1e-9 * units)
    if method.final_sparsity is not None and item.target_sparsity > 0:
        # Rounded as tensorflow-model-optimization does it, in float32.
        count, off = max(1, round(units * (1 - item.target_sparsity))), 1
    if getattr(item.pattern, "constant_fan_in", False) and item.target_sparsity > 0:
        columns = len(reference.kept_in_columns(np.zeros(item.shape, bool), *where(item)))
        count, off = max(1, round(count / columns)) * columns, off * columns
    return count, off


def check_counts(model):
    """Each mask has the pattern, and as many units as were asked for."""
    items, method = model.masked_weights, model.method
    found = [kept_in(item, item.mask.numpy()) for item in items]
    asked = [wanted(item, method) for item in items]
    for item in items:
        assert has_pattern(item, item.mask.numpy()), item
    if method.scope == "global":
        found = [sum(found)]
        asked = [tuple(map(sum, zip(*asked, strict=True)))]
    for count, (exact, off) in zip(found, asked, strict=True):
        assert abs(count - exact) <= off, (found, asked)


def outputs_of(model, c):
    x, _ = data_of(*c["kind"])
    return keras.tree.map_structure(keras.ops.convert_to_numpy, model(x, training=False))


def check_equal(one, other, *, exact=True):
    for a, b in zip(keras.tree.flatten(one), keras.tree.flatten(other), strict=True):
        if exact:
            np.testing.assert_array_equal(a, b)
        else:
            tolerance = {"float16": 2e-2, "bfloat16": 1e-1}.get(str(a.dtype), 1e-4)
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def check_file(model, c):
    """A model that was saved and loaded is the same."""
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        loaded = keras.models.load_model(f"{folder}/model.keras")
    assert equal_masks(loaded.masks, model.masks)
    assert loaded.step == model.step
    check_equal(outputs_of(loaded, c), outputs_of(model, c))


def has_overflowed(model):
    """Whether steps were left out because gradients were too large for float16."""
    optimizer = model.optimizer
    is_scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    return is_scaled and float(optimizer.dynamic_scale) < optimizer.initial_scale


TRIED = collections.Counter()


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,  # The same examples everywhere, and no files left behind.
    database=None,
    phases=[Phase.explicit, Phase.generate],  # To shrink a training would take minutes.
    suppress_health_check=[HealthCheck.too_slow],
)
@given(configurations())
def check_configuration(c):
    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(c["seed"])
    keras.config.set_dtype_policy(c["precision"])
    try:
        model, outcome = train(c)
        TRIED[outcome] += 1
        if model is not None:
            check_trained(model, c)
    finally:
        keras.config.set_dtype_policy("float32")


def check_trained(model, c):
    assert model.step == BATCHES
    if not (model.method.begins_dense and has_overflowed(model)):
        check_counts(model)
    packed = any(isinstance(item, BlockSparseWeight) for item in model.masked_weights)
    check_equal(outputs_of(tf_rigl.strip(model), c), outputs_of(model, c), exact=not packed)
    if c["saved"]:
        check_file(model, c)


def test_any_configuration_is_refused_before_training_or_keeps_every_invariant():
    TRIED.clear()
    check_configuration()
    record("configurations", **TRIED)
    assert TRIED["trained"] >= TRIED.total() / 3, TRIED


GLOBAL = methods.SNIP(scope="global")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: blocks_by_hand({}, method=methods.SNFS(end_step=9)), "`method` must be one that"),
        (
            lambda: blocks_by_hand({"initial_mask": "ones"}, method="snip"),
            "`method` must be one that begins sparse",
        ),
        (
            lambda: masked_graph(
                "Dense", {"pattern": "constant_fan_in_2x1", "initial_mask": "ones"}, method=GLOBAL
            ),
            r"`pattern` must be the same.*\['constant_fan_in_2x1'\]",
        ),
        (
            lambda: masked_graph(
                "Dense", {"pattern": "litert", "initial_mask": "ones"}, method=GLOBAL
            ),
            r"`pattern` must be the same.*\['block_4x1', 'unstructured'\]",
        ),
    ],
)
def test_layers_made_by_hand_that_the_method_cannot_prune_are_refused(make, message):
    model = compiled(make(), **EAGER)
    with pytest.raises(ValueError, match=message):
        model.train_on_batch(*random_data(model.input_shape[1:], batches=1))
    assert model.step == 0
