"""Training goes on exactly where a saved model stopped; `strip` needs no tf_rigl to load."""

import io
import os
import subprocess
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest

import tf_rigl
from tests.helpers import (
    BATCH,
    CLASSES,
    FEATURES,
    MODEL_KINDS,
    Subclassed,
    check_equal_models,
    check_invariants,
    compiled,
    equal_masks,
    fit,
    mlp,
    model_data,
    random_data,
    rigl,
    sparsify,
)


@keras.saving.register_keras_serializable(package="tests")
class Own(tf_rigl.SparseModel):
    """A subclass of `SparseModel` with masked layers made by hand."""

    def __init__(self, method="rigl", **kwargs):
        super().__init__(method=method, **kwargs)
        hidden, head = (keras.layers.Dense(n, name=f"dense_{n}") for n in (8, CLASSES))
        self.hidden = tf_rigl.MaskedLayer(hidden, sparsity=0.5, seed=1)
        self.head = tf_rigl.MaskedLayer(head, sparsity=0.5, seed=2)

    def call(self, x):
        return self.head(keras.ops.tanh(self.hidden(x)))


def by_hand():
    inputs = keras.Input((FEATURES,))
    x = tf_rigl.MaskedLayer(keras.layers.Dense(8, name="hidden"), sparsity=0.5, seed=1)(inputs)
    x = tf_rigl.MaskedLayer(keras.layers.Dense(CLASSES, name="head"), sparsity=0.5, seed=2)(x)
    return tf_rigl.SparseModel(inputs, x, method=rigl(), seed=3)


KINDS = {
    **{kind: (lambda make=make: sparsify(make())) for kind, (make, _) in MODEL_KINDS.items()},
    "masked layers": by_hand,
    "own subclass": lambda: Own(rigl(), seed=3),
}


def save_and_load(model, path):
    model.save(path / "model.keras")
    return keras.models.load_model(path / "model.keras")


def part(data, first, last):
    """Batches `first` to `last` of a structure of arrays."""
    return keras.tree.map_structure(lambda a: a[first * BATCH : last * BATCH], data)


def same_slots(one, other):
    for a, b in zip(one.optimizer.variables, other.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


@pytest.mark.parametrize(
    "kind",
    [
        "sequential",
        "sequential-unbuilt",
        "functional",
        "dict",
        "shared",
        "sequential-in-functional",
        "composite",
        "subclassed",
        "subclassed-unbuilt",
        "subclassed-dict",
        "masked layers",
        "own subclass",
    ],
)
def test_loaded_model_goes_on_as_the_saved_one_does(kind, tmp_path):
    """The same masks at every step, and in the end the same weights and slots, to the bit."""
    data = model_data(kind, batches=5)
    model = compiled(KINDS[kind](), keras.optimizers.Adam(0.05), run_eagerly=True)
    fit(model, *part(data, 0, 3))
    loaded = save_and_load(model, tmp_path)
    assert type(loaded) is type(model)
    check_equal_models(loaded, model)
    same_slots(loaded, model)

    expected, received = (fit(m, *part(data, 3, 5)) for m in (model, loaded))

    assert not equal_masks(received[0], received[1])  # At step 4, the next update.
    assert all(equal_masks(a, b) for a, b in zip(expected, received, strict=True))
    check_equal_models(loaded, model)
    same_slots(loaded, model)
    assert loaded.step == 5


@pytest.mark.parametrize("cls", [tf_rigl.methods.RigL, tf_rigl.methods.SET])
def test_six_steps_a_file_and_six_more_are_twelve_in_one_go(cls, tmp_path):
    """Compiled to a graph; updates at steps 2, 4, ..., by a cosine that ends at 11."""
    method = cls(0.5, update_interval=2, end_step=11)
    x, y = random_data(batches=12)
    keras.utils.set_random_seed(1)
    whole = compiled(sparsify(mlp(), method))
    expected = fit(whole, x, y)
    keras.utils.set_random_seed(1)
    model = compiled(sparsify(mlp(), method))
    received = fit(model, *part((x, y), 0, 6))
    model = save_and_load(model, tmp_path)
    received += fit(model, *part((x, y), 6, 12))
    assert all(equal_masks(a, b) for a, b in zip(expected, received, strict=True))
    check_equal_models(model, whole, exact=False)
    assert model.step == 12


@pytest.mark.filterwarnings("error:You are saving a model")
@pytest.mark.parametrize("kind", ["functional", "subclassed", "masked layers"])
def test_configuration_survives(kind, tmp_path):
    model = KINDS[kind]()
    loaded = save_and_load(model, tmp_path)
    assert repr(loaded.method) == repr(model.method)
    assert loaded.seed == model.seed
    for a, b in zip(loaded.masked_weights, model.masked_weights, strict=True):
        assert (a.path, a.target_sparsity, a.pattern) == (b.path, b.target_sparsity, b.pattern)


@pytest.mark.parametrize("kind", ["sequential-unbuilt", "subclassed-unbuilt"])
def test_model_saved_before_it_is_built_is_sparse_when_it_is(kind, tmp_path):
    model = KINDS[kind]()
    with pytest.warns(UserWarning, match="not yet been built"):
        loaded = save_and_load(model, tmp_path)
    fit(compiled(loaded, run_eagerly=True), *model_data(kind, batches=3))
    assert list(loaded.masks) == MODEL_KINDS[kind][1]
    assert loaded.sparsity == 0.5


def test_weights_file_carries_masks_and_step(tmp_path):
    """Into a model of another seed, and with the optimizer into a compiled one."""
    path = tmp_path / "sparse.weights.h5"
    one = compiled(sparsify(mlp(), seed=1), run_eagerly=True)
    fit(one, *random_data(batches=5))
    one.save_weights(path)
    other = compiled(sparsify(mlp(), seed=2), run_eagerly=True)
    assert not equal_masks(one.masks, other.masks)
    other.optimizer.build(other.trainable_variables)
    other.load_weights(path)
    check_equal_models(one, other)
    other.seed = one.seed
    x, y = random_data(batches=3, seed=1)
    fit(one, x, y)
    fit(other, x, y)
    check_equal_models(one, other)


@pytest.mark.parametrize("kind", ["sequential", "functional", "sequential-in-functional"])
def test_weights_of_a_dense_model_are_masked_when_loaded(kind, tmp_path):
    path = tmp_path / "dense.weights.h5"
    dense = MODEL_KINDS[kind][0]()
    dense.save_weights(path)
    sparse = sparsify(MODEL_KINDS[kind][0]())
    masks = sparse.masks
    sparse.load_weights(path)
    check_invariants(sparse)
    assert equal_masks(sparse.masks, masks)
    assert sparse.step == 0
    expected = tf_rigl.maskable.find(dense, include_self=False)
    for item, found in zip(sparse.masked_weights, expected, strict=True):
        kept = np.where(item.mask.numpy(), found.weight.numpy(), 0)
        np.testing.assert_array_equal(item.weight.numpy(), kept)


def test_weights_of_another_model_are_refused(tmp_path):
    path = tmp_path / "other.weights.h5"
    sparsify(MODEL_KINDS["shared"][0]()).save_weights(path)
    with pytest.raises(ValueError, match=r"shape|[Ll]ayer"):
        sparsify(mlp()).load_weights(path)


# `strip`.

PLAIN_KERAS = """
import pathlib, sys
sys.modules["tf_rigl"] = None  # Importing it fails.
import keras, numpy as np
folder = pathlib.Path(sys.argv[1])
data = np.load(folder / "data.npz")
for path in sorted(folder.glob("*.keras")):
    model = keras.models.load_model(path)
    x = [data[i.name] if i.name in data else data[f"x{n}"] for n, i in enumerate(model.inputs)]
    outputs = keras.tree.flatten(model.predict_on_batch(x if len(x) > 1 else x[0]))
    np.savez(folder / f"{path.stem}.npz", *outputs)
"""


def test_stripped_files_load_without_tf_rigl(tmp_path):
    """In a process that cannot import it, and predict the same bits.

    All kinds of models but those of classes of a user's own, which the process lacks.
    """
    kinds = [kind for kind in KINDS if "subclassed" not in kind and kind != "composite"]
    x = random_data()[0]
    np.savez(tmp_path / "data.npz", x0=x, x1=x[:, ::-1], a=x, b=x[:, ::-1])
    expected = {}
    for kind in kinds:
        sparse = KINDS[kind]()
        inputs = model_data(kind)[0]
        expected[kind] = keras.tree.flatten(sparse.predict_on_batch(inputs))
        stripped = tf_rigl.strip(sparse)
        assert not any("tf_rigl" in type(i).__module__ for i in stripped._flatten_layers())
        stripped.save(tmp_path / f"{kind}.keras")

    command = [sys.executable, "-I", "-c", PLAIN_KERAS, str(tmp_path)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    for kind in kinds:
        with np.load(tmp_path / f"{kind}.npz") as received:
            assert len(received) == len(expected[kind])
            for number, outputs in enumerate(expected[kind]):
                np.testing.assert_array_equal(received[f"arr_{number}"], outputs)


def test_stripped_model_of_a_users_class_loads_with_that_class(tmp_path):
    sparse = sparsify(MODEL_KINDS["subclassed"][0]())
    stripped = tf_rigl.strip(sparse)
    assert type(stripped) is Subclassed
    loaded = save_and_load(stripped, tmp_path)
    x = random_data()[0]
    np.testing.assert_array_equal(loaded(x), sparse(x))


def test_stripped_model_trains_dense_and_leaves_the_sparse_one_alone():
    sparse = sparsify(mlp())
    before = sparse.get_weights()
    stripped = compiled(tf_rigl.strip(sparse), run_eagerly=True)
    stripped.fit(*random_data(batches=4), batch_size=BATCH, verbose=0)
    assert np.count_nonzero(stripped.get_layer("hidden").kernel.numpy()) == 80
    for a, b in zip(sparse.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_stripped_model_can_be_made_sparse_again():
    sparse = sparsify(mlp(), "static", seed=1)
    again = sparsify(tf_rigl.strip(sparse), "static", seed=1)
    check_equal_models(again, sparse)


# Files whose masks do not fit.


def edit(path, change):
    """Rewrites the weights inside a `.keras` file."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    buffer = io.BytesIO(parts["model.weights.h5"])
    with h5py.File(buffer, "r+") as file:
        nodes = []
        file.visititems(lambda _, node: nodes.append(node))
        masks = {n.name: n for n in nodes if isinstance(n, h5py.Dataset) and n.dtype == bool}
        assert len(masks) == 2
        change(file, masks)
    parts["model.weights.h5"] = buffer.getvalue()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def replace(file, name, value):
    del file[name]
    file[name] = value


def shorten_mask(file, masks):
    name, node = next(iter(masks.items()))
    replace(file, name, node[:-1])


def float_mask(file, masks):
    name, node = next(iter(masks.items()))
    replace(file, name, node[:].astype("float32"))


def remove_mask(file, masks):
    del file[list(masks)[-1]]


def fill_weights(file, masks):
    def fill(_, node):
        if isinstance(node, h5py.Dataset) and node.dtype == np.float32:
            node[...] = 1.0

    file.visititems(fill)


REFUSALS = {
    "shape": (shorten_mask, r"mask of '.*kernel' does not fit its weight: mask.shape=\(\d+, \d\)"),
    "type": (float_mask, "mask of '.*kernel' is not boolean: float32"),
    "number": (remove_mask, "file holds 1 masks, the model has 2 masked weights"),
    "zeros": (fill_weights, "mask of '.*kernel' does not fit its weight: some weights are not z"),
}
BY_LAYER = [(k, c) for k in ("masked layers", "own subclass") for c in ("shape", "type", "zeros")]
WHOLE = [(k, c) for k in ("functional", "subclassed") for c in REFUSALS]


@pytest.mark.parametrize(("kind", "case"), [*WHOLE, *BY_LAYER])
def test_file_whose_masks_do_not_fit_is_refused(kind, case, tmp_path):
    change, message = REFUSALS[case]
    model, path = KINDS[kind](), tmp_path / "model.keras"
    model(random_data()[0])
    model.save(path)
    keras.models.load_model(path)
    edit(path, change)
    with pytest.raises(ValueError, match=message):
        keras.models.load_model(path)


def test_file_that_names_a_weight_the_model_lacks_is_refused(tmp_path):
    path = tmp_path / "model.keras"
    sparsify(mlp()).save(path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    # A weight is found by its place and shape, or else by its path.
    known, other = b'"path": "head/kernel", "place": 2', b'"path": "tail/kernel", "place": 7'
    assert known in parts["config.json"]
    parts["config.json"] = parts["config.json"].replace(known, other)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises((ValueError, TypeError), match="mask for 'tail/kernel', but the model"):
        keras.models.load_model(path)
