"""Files of a `SparseModel`: its counters, loading all or nothing, and writing whole files."""

import contextlib
import gc
import json

import keras
import numpy as np

from tf_rigl._base import checkpoints, files, keras_internals
from tf_rigl.training import integrity, loop
from tf_rigl.training.integrity import seed_states
from tf_rigl.training.own_step import optimizers_of
from tf_rigl.training.slots import find_slots
from tf_rigl.weights import masks

NO_HDF5 = (
    "Argument `filepath` must end in `.keras`: sparse models cannot be read from HDF5. "
    "(`save_weights` writes `.weights.h5`.)"
)
COUNTERS = ("step", "seed", "seeds")  # Names in a file.


def counters(model) -> dict:
    """Returns the step counter, the seed, and states of random seeds, which Keras leaves out."""
    stored: dict = {"step": np.int64(model.step), "seed": np.int64(model.seed)}
    states = seed_states(model)
    if states:
        stored["seeds"] = np.stack([state.numpy() for state in states])
    return stored


def take_counters(model, stored):
    """Restores the result of `counters`; the file of a dense model has none."""
    if "step" in stored:
        loop.of(model).steps_taken = int(np.asarray(stored["step"]))
    if "seed" in stored:
        set_seed(model, int(np.asarray(stored["seed"])))
    states, stored = seed_states(model), stored.get("seeds", ())
    if len(stored) == len(states):
        for state, value in zip(states, np.asarray(stored), strict=True):
            state.assign(value)


def join_tensorflow(model):
    """Has a `tf.train.Checkpoint` store the step, the seed and states of random seeds too."""

    def write():
        return json.dumps({k: np.asarray(v).tolist() for k, v in counters(model).items()}).encode()

    def read(state):
        if not model.built:
            raise ValueError(f"The model {model.name!r} is not built. {checkpoints.BUILD_FIRST}")
        loop.of(model).plan = None
        take_counters(model, json.loads(state))

    checkpoints.store_state(model, write, read)


def set_seed(model, seed):
    """Sets the seed of a model, which continues with the random numbers of that seed."""
    if seed != model.seed:
        model.seed = seed
        if model.train_function is not None:
            model.make_train_function(force=True)  # The compiled steps hold the seed.


def forget_refusals(model):
    """Allows masks to be loaded again after a file was refused."""
    for layer in masks.layers(model):
        layer.refusal = None


@contextlib.contextmanager
def undone_on_error(model, path):
    """Restores the model if loading weights from a file, within this context, fails.

    Raises:
        ValueError: if the file is damaged.
    """
    integrity.check_file(path)
    model._add_state()  # Variables that loading adds could not be removed again.
    masks.find(model)  # Draws the pending masks.
    variables = [*model.weights, *seed_states(model)]
    built = [each for each in optimizers_of(model) if each.built]
    model.build_optimizer()  # Keras skips the state of an unbuilt one.
    optimizers = [each for each in optimizers_of(model) if each.built]
    variables += [variable for each in optimizers for variable in each.variables]
    before = [(variable, keras.ops.convert_to_numpy(variable)) for variable in variables]
    step, seed = model.step, model.seed
    try:
        yield
        for optimizer in optimizers:
            if optimizer not in built:
                _copy_again(optimizer, {id(variable): value for variable, value in before})
    except Exception as error:
        for variable, value in before:
            variable.assign(value)
        loop.of(model).steps_taken, loop.of(model).loading = step, False
        set_seed(model, seed)
        # Closes the file that Keras left open. HDF5 would else read it again instead of a new
        # file at the same path.
        gc.collect()
        if isinstance(error, (ValueError, OSError)):
            raise
        # An error of HDF5, for example.
        raise ValueError(f"The file {str(path)!r} is damaged: {error}") from error


def _copy_again(optimizer, before):
    """Sets slots that are copies of weights to the loaded weights, if the file has no slots.

    Args:
        optimizer: `keras.optimizers.Optimizer`, built before the file was loaded.
        before: dict of `id` of a variable to its value before the file was loaded.
    """
    weights = {id(weight): weight for weight in keras_internals.built_on(optimizer)}
    for key, found in find_slots(optimizer).items():
        for variable, empty, _ in found:
            value = keras.ops.convert_to_numpy(variable)
            if empty is None and np.array_equal(value, before[id(variable)], equal_nan=True):
                variable.assign(weights[key])


@contextlib.contextmanager
def written_whole(path, ending, wanted=True, seals=False):
    """Yields a temporary path to write a file to, then moves the whole file to `path`.

    Args:
        path: str or path, the final place.
        ending: str; files with another ending are written in place.
        wanted: bool, False to write in place.
        seals: bool, whether to append a checksum to the file.
    """
    own = wanted and str(path).endswith(ending)
    with files.beside_local(path, own) as scratch:
        yield scratch
        if seals and own and "://" not in str(scratch):
            integrity.close_file(scratch)
