"""Damaged files and those of other models are refused, or what they hold is loaded exactly."""

import random
import zipfile

import h5py
import keras
import numpy as np
import pytest

import tf_rigl
from tests.helpers import (
    FEATURES,
    check_equal_models,
    compiled,
    equal_masks,
    mlp,
    random_data,
    rigl,
    sparsify,
)
from tests.soak import record, times
from tf_rigl.training import loop

EAGER = {"run_eagerly": True}
X, Y = random_data(batches=3)
MARK = 22  # Bytes at the end of a file of weights: "tf_rigl crc32 " and eight digits.


def model(method=None, dense=mlp, **kwargs):
    """A compiled sparse model with slots, that has trained for nothing yet."""
    keras.utils.set_random_seed(0)
    method = tf_rigl.methods.SNFS(update_interval=2, end_step=1000) if method is None else method
    made = compiled(sparsify(dense(), method, **kwargs), **EAGER)
    made.optimizer.build(made.trainable_variables)
    return made


def train(made, callbacks=()):
    made.fit(X, Y, batch_size=8, shuffle=False, verbose=0, callbacks=[*callbacks])
    return made


def everything(made):
    """All that files hold of a model, as bytes."""
    arrays = [keras.ops.convert_to_numpy(v) for v in (*made.weights, *made.optimizer.variables)]
    return [(a.shape, a.dtype, a.tobytes()) for a in [*arrays, np.array(made.step)]]


def write(folder, ending):
    """A file of a trained model, and what is in it."""
    made = model()
    path = folder / f"good{ending}"
    if ending == ".keras":
        train(made).save(path)
    elif "backup" in ending:
        backup = tf_rigl.callbacks.BackupAndRestore(folder, save_freq=3, delete_checkpoint=False)
        train(made, [backup])
        (folder / "latest.weights.h5").rename(path)
    else:
        train(made).save_weights(path)
    return path, everything(made)


class Loaded(Exception):
    """Ends a run that has begun with a backup."""


class End(keras.callbacks.Callback):
    """Keeps what the model is when a run begins, and ends it."""

    def on_train_begin(self, logs=None):
        raise Loaded


def load_backup(made, path):
    """Has a run begin with a backup."""
    path.rename(path.parent / "latest.weights.h5")
    backup = tf_rigl.callbacks.BackupAndRestore(path.parent)
    with pytest.raises(Loaded):
        train(made, [backup, End()])
    # After three of three batches.
    assert (made._initial_epoch, loop.of(made).length.skip) == (1, 0)


# Damage, to a bytearray. Each is done at a random place.


def cut(content, rng):
    del content[rng.randrange(len(content)) :]


def flip_a_bit(content, rng):
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def flip_bytes(content, rng):
    for _ in range(rng.randrange(1, 30)):
        content[rng.randrange(len(content))] ^= rng.randrange(1, 256)


def empty_a_block(content, rng):
    first, size = rng.randrange(len(content)), rng.choice([16, 512, 4096])
    content[first : first + size] = bytes(len(content[first : first + size]))


def overwrite_a_block(content, rng):
    first, size = rng.randrange(len(content)), rng.choice([16, 512, 4096])
    content[first : first + size] = rng.randbytes(len(content[first : first + size]))


def insert(content, rng):
    first = rng.randrange(len(content))
    content[first:first] = rng.randbytes(rng.randrange(1, 100))


DAMAGES = [cut, flip_a_bit, flip_bytes, empty_a_block, overwrite_a_block, insert]
# What `keras.models.load_model` raises of itself for a damaged archive.
ARCHIVE = (zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError, EOFError)


def trials(path, number, damages=DAMAGES):
    """Paths of so many damaged files."""
    good = path.read_bytes()
    for trial in range(number):
        rng = random.Random(trial)
        content = bytearray(good)
        damage = damages[trial % len(damages)]
        damage(content, rng)
        # Another name each time: HDF5 knows files that are still open.
        bad = path.with_name(f"bad-{trial}-{damage.__name__}-{path.name}")
        bad.write_bytes(content)
        yield bad
        bad.unlink(missing_ok=True)


@pytest.mark.parametrize("ending", [".weights.h5", ".keras"])
def test_damaged_weights_are_refused_and_leave_the_model_as_it_was(ending, tmp_path):
    (path, expected), made = write(tmp_path, ending), model()
    before, refused, number = everything(made), 0, times(48, 3_000)
    for bad in trials(path, number):
        try:
            made.load_weights(bad)
        except (ValueError, OSError):
            refused += 1
            assert everything(made) == before, bad
        else:
            assert everything(made) == expected, bad
            before = expected
    assert refused > number / 2
    record("damaged weights", ending=ending, files=number, refused=refused)
    made.load_weights(path)
    assert everything(made) == expected


def test_damaged_models_are_refused(tmp_path):
    path, expected = write(tmp_path, ".keras")
    refused, number = 0, times(48, 3_000)
    for bad in trials(path, number):
        try:
            made = keras.models.load_model(bad)
        except (ValueError, OSError, *ARCHIVE):
            refused += 1
        else:
            assert everything(made) == expected, bad
    assert refused > number / 2
    record("damaged models", files=number, refused=refused)


def test_damaged_backups_are_refused(tmp_path):
    (path, expected), number = write(tmp_path, "backup.weights.h5"), times(40, 3_000)
    fresh, made, messages = everything(model()), model(), []
    for bad in trials(path, number):
        try:
            load_backup(made, bad)
        except ValueError as error:
            messages.append(str(error))
        else:
            assert everything(made) == expected, bad
            made = model()
        assert everything(made) == fresh, bad
    assert all("cannot be used: it is damaged" in message for message in messages)
    assert len(messages) > number / 2
    record("damaged backups", files=number, refused=len(messages))


def test_a_backup_that_has_lost_its_checksum_is_refused(tmp_path):
    path, _ = write(tmp_path, "backup.weights.h5")
    path.write_bytes(path.read_bytes()[:-MARK])
    with pytest.raises(ValueError, match="cannot be used: it is damaged"):
        load_backup(model(), path)


def test_what_is_changed_in_a_file_without_checksum_is_found_after_loading(tmp_path):
    """Such as that within a `.keras` file: the seal is all there is for the arrays in it."""
    (path, expected), made = write(tmp_path, ".weights.h5"), model()
    path.write_bytes(path.read_bytes()[:-MARK])
    fresh, refused, number = everything(made), 0, times(16, 1_500)
    for bad in trials(path, number, [flip_a_bit]):
        try:
            made.load_weights(bad)
        except (ValueError, OSError):
            refused += 1
        else:
            assert everything(made) == expected, bad
            made = model()
        assert everything(made) == fresh, bad
    assert refused
    record("flipped bits in HDF5", files=number, refused=refused)


@pytest.mark.parametrize("part", ["optimizer/vars/2", "_masks/vars/0_gradient", "vars/step"])
def test_a_changed_array_is_named(part, tmp_path):
    path, _ = write(tmp_path, ".weights.h5")
    with h5py.File(path, "r+") as file:
        node = file[part]
        node[...] = node[...] + 1
    with pytest.raises(ValueError, match=r"The file is damaged: '.*' differs from the values"):
        model().load_weights(path)


def test_a_moved_connection_is_found(tmp_path):
    """A mask and its weights that fit each other, but not what was written."""
    path, _ = write(tmp_path, ".weights.h5")
    with h5py.File(path, "r+") as file:
        mask = file["_masks/vars/0"]
        mask[...] = mask[...] | True
    with pytest.raises(ValueError, match="The file is damaged: 'masks/hidden_kernel'"):
        model().load_weights(path)


def test_the_checksum_is_no_hindrance_to_others(tmp_path):
    """HDF5 reads the file, and takes the checksum away when it changes it."""
    path, expected = write(tmp_path, ".weights.h5")
    assert path.read_bytes()[-MARK:].startswith(b"tf_rigl crc32 ")
    with h5py.File(path, "r+") as file:
        file.attrs["mine"] = 1
    assert b"tf_rigl crc32" not in path.read_bytes()
    made = model()
    made.load_weights(path)
    assert everything(made) == expected


def test_a_whole_file_is_read_where_a_refused_one_was(tmp_path):
    """At the same place on the disk, which HDF5 would keep open and not read anew."""
    path, expected = write(tmp_path, ".weights.h5")
    other = tmp_path / "other.weights.h5"
    model(rigl()).save_weights(other)
    made = model()
    with pytest.raises(ValueError, match="trained by RigL"):
        made.load_weights(other)
    other.write_bytes(path.read_bytes())
    made.load_weights(other)
    assert everything(made) == expected


# Files of other models.


def wide():
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(9, name="hidden"),
            keras.layers.Dense(3, name="head"),
        ]
    )


def deep():
    layers = [keras.layers.Dense(8, name=f"hidden_{n}") for n in range(2)]
    return keras.Sequential([keras.Input((FEATURES,)), *layers, keras.layers.Dense(3)])


OTHERS = {
    "units": ({"dense": wide}, "shape"),
    "layers": ({"dense": deep}, "[Ll]ayer|masks|expected"),
    "method": ({"method": rigl()}, "model trained by SNFS, this model trains by RigL"),
    "static": ({"method": "static"}, "model trained by SNFS, this model trains by Static"),
    "sparsity": ({"sparsity": 0.75}, "masks for other sparsities or patterns: 'hidden/kernel'"),
    "pattern": ({"pattern": "block_2x1"}, r"(?s)other sparsities or patterns.*Block"),
    "excluded": ({"exclude": ["head"]}, "holds 2 masks, the model has 1"),
}
SOME = ("units", "method", "sparsity")


@pytest.mark.parametrize(
    ("ending", "other"),
    [
        *((".weights.h5", other) for other in OTHERS),
        *((ending, other) for ending in (".keras", "backup.weights.h5") for other in SOME),
    ],
)
def test_files_of_other_models_are_refused(ending, other, tmp_path):
    arguments, message = OTHERS[other]
    (path, _), made = write(tmp_path, ending), model(**arguments)
    before = everything(made)
    with pytest.raises(ValueError, match=message):
        load_backup(made, path) if "backup" in ending else made.load_weights(path)
    assert everything(made) == before


def test_a_file_of_something_else_is_refused(tmp_path):
    made = model()
    before = everything(made)
    for content in (b"", b"x", b"not a file of weights at all", bytes(5000)):
        for name in ("text.weights.h5", "text.keras"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises((ValueError, OSError)):
                made.load_weights(tmp_path / name)
    with h5py.File(tmp_path / "other.weights.h5", "w") as file:
        file["numbers"] = np.arange(5)
    with pytest.raises(ValueError, match="could not be loaded"):
        made.load_weights(tmp_path / "other.weights.h5")
    assert everything(made) == before


def test_masks_that_are_due_are_drawn_though_a_file_is_refused(tmp_path):
    other = sparsify(mlp(), sparsity=0.75)
    other.save_weights(tmp_path / "other.weights.h5")
    keras.utils.set_random_seed(0)
    expected = sparsify(mlp())
    keras.utils.set_random_seed(0)
    made = sparsify(mlp())
    with pytest.raises(ValueError, match="other sparsities"):
        made.load_weights(tmp_path / "other.weights.h5")
    assert equal_masks(made.masks, expected.masks)
    check_equal_models(made, expected)


@keras.saving.register_keras_serializable(package="tests")
class Counter(keras.layers.Layer):
    """Counts its calls, and does not store how many there were."""

    def build(self, shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")

    def call(self, x):
        self.calls.assign_add(1.0)
        return x

    def save_own_variables(self, store):
        """Nothing."""

    def load_own_variables(self, store):
        """Nothing."""


def test_what_a_layer_does_not_store_is_no_damage(tmp_path):
    inputs = keras.Input((FEATURES,))
    x = keras.layers.Dense(8, name="hidden")(Counter()(inputs))
    model = compiled(sparsify(keras.Model(inputs, keras.layers.Dense(3, name="head")(x))))
    model.fit(*random_data(batches=2), batch_size=8, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_equal(loaded.masks, model.masks)


def test_weights_merged_with_lora_are_no_damage(tmp_path):
    model = compiled(sparsify(mlp(), exclude=["head"]))
    model.get_layer("head").enable_lora(2)
    compiled(model).fit(*random_data(batches=2), batch_size=8, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x, _ = random_data(batches=1)
    np.testing.assert_allclose(loaded(x), model(x), atol=1e-5)


def test_a_sparse_model_is_not_written_to_hdf5(tmp_path):
    with pytest.raises(ValueError, match=r"`filepath` must end in `.keras`"):
        sparsify(mlp()).save(tmp_path / "model.h5")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("inside", [False, True])
def test_what_keras_saves_by_itself_is_refused_where_it_could_not_be_read(inside, tmp_path):
    """`keras.saving.save_model` does not call `save`, nor does a model around a sparse one."""
    sparse = sparsify(mlp())
    inputs = keras.Input((FEATURES,))
    model = keras.Model(inputs, sparse(inputs)) if inside else sparse
    if inside:
        keras.saving.save_model(model, tmp_path / "model.h5")
        loaded = keras.models.load_model(tmp_path / "model.h5", compile=False)
        np.testing.assert_equal(loaded.layers[-1].masks, sparse.masks)
    else:
        with pytest.raises(ValueError, match=r"`filepath` must end in `.keras`"):
            keras.saving.save_model(model, tmp_path / "model.h5")
    keras.saving.save_model(model, tmp_path / "model.keras")
    keras.models.load_model(tmp_path / "model.keras")
    item = sparse.masked_weights[0]
    item.weight.assign(np.ones(item.shape))
    with pytest.raises(ValueError, match=f"cannot be saved.*{item.path}"):
        keras.saving.save_model(model, tmp_path / "other.keras")
    with pytest.raises(ValueError, match=f"cannot be saved.*{item.path}"):
        model.save_weights(tmp_path / "other.weights.h5")


def test_weights_skipped_at_loading_leave_zeros_under_masks(tmp_path):
    path = tmp_path / "model.weights.h5"
    other = keras.Sequential(
        [keras.Input((FEATURES,)), keras.layers.Dense(8), keras.layers.Dense(4)]
    )
    sparsify(other, seed=5).save_weights(path)
    model = sparsify(mlp())
    with pytest.warns(UserWarning, match="could not be loaded"):
        model.load_weights(path, skip_mismatch=True)
    for item in model.masked_weights:
        assert (item.weight.numpy()[~item.mask.numpy()] == 0).all()


def test_the_optimizer_goes_on_from_weights_alone(tmp_path):
    """A model that was compiled just now has its state, too."""
    x, y = random_data(batches=8)
    path = tmp_path / "model.weights.h5"
    whole, fresh = (compiled(sparsify(mlp()), "adam", run_eagerly=True) for _ in range(2))
    whole.fit(x[:32], y[:32], batch_size=8, shuffle=False, verbose=0)
    whole.save_weights(path)
    fresh.load_weights(path)
    for model in (whole, fresh):
        model.fit(x[32:], y[32:], batch_size=8, shuffle=False, verbose=0)
    np.testing.assert_equal(fresh.masks, whole.masks)
    for one, other in zip(fresh.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
