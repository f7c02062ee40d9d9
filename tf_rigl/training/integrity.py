"""Checks of files: damaged files and files of other models raise an error."""

import json
import math
import operator
import os
import zipfile
import zlib

import keras
import numpy as np

from tf_rigl._base import keras_internals
from tf_rigl.training.own_step import optimizers_of

_STORING = ("save_own_variables", "load_own_variables")
_MARK = b"tf_rigl crc32 "  # A file of weights ends with this and eight hexadecimal digits.


def close_file(path):
    """Appends a checksum to a file of weights. HDF5 ignores it, and drops it at a change."""
    end = _end(path, os.path.getsize(path))
    with open(path, "ab") as file:
        file.write(end)


def check_file(path, required=False):
    """Raises a `ValueError` if a local file of weights or of a model is damaged.

    It skips files of weights without a checksum, as plain Keras writes them, unless the
    checksum is `required`.
    """
    if not os.path.isfile(path):
        return
    try:
        intact = _is_intact(path, required)
    except OSError:
        raise
    except Exception as error:  # `zipfile` raises errors of many types.
        raise ValueError(f"The file {str(path)!r} is damaged: {error}") from error
    if not intact:
        raise ValueError(f"The file {str(path)!r} is damaged: its checksum does not match.")


def _is_intact(path, required):
    if str(path).endswith(".keras"):
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    size = os.path.getsize(path) - len(_MARK) - 8
    if size < 0:
        return not required
    with open(path, "rb") as file:
        file.seek(size)
        end = file.read()
    # Most bytes of the mark suffice: the mark itself may be damaged.
    marked = sum(map(operator.eq, end, _MARK)) > len(_MARK) // 2
    return end == _end(path, size) if marked or required else True


def _end(path, size):
    """Returns the mark and the checksum of the first `size` bytes of a file."""
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(min(size, 2**20)):
            checksum, size = zlib.crc32(block, checksum), size - len(block)
    return _MARK + b"%08x" % checksum


class Seal(keras.layers.Layer):
    """Stores a model's recipe and the checksums of its arrays, and compares them after loading.

    It is not a layer of the model and has no variables. Keras loads it last.

    Args:
        model: the `tf_rigl.SparseModel`.
    """

    def __init__(self, model):
        super().__init__(trainable=False, name="seal")
        # Functions, as Keras would track the model itself.
        self._parts, self._recipe = lambda: _parts(model), lambda: _recipe(model)
        self._paths = lambda: [item.path for item in model.masked_weights]
        self._loop = lambda: model._sparse_loop
        self.built = True

    def save_own_variables(self, store):
        """Stores the recipe, and `_sum` of each array of each part."""
        store["recipe"] = np.frombuffer(json.dumps(self._recipe()).encode(), np.uint8)
        for part, variables in self._parts().items():
            sums = [_sum(keras.ops.convert_to_numpy(variable)) for _, variable in variables]
            store[part] = np.array(sums, np.uint64).reshape(-1, 3)

    def load_own_variables(self, store):
        """Raises if the recipe or a checksum differs from the stored one."""
        self._loop().loading = False
        keys = list(store.keys())
        if "recipe" in keys:
            _compare(
                json.loads(np.asarray(store["recipe"]).tobytes()), self._recipe(), self._paths()
            )
        for part, variables in self._parts().items():
            # The file of a dense model has no checksums; another optimizer has another number.
            if part not in keys or np.shape(store[part]) != (len(variables), 3):
                continue
            stored = np.asarray(store[part]).tolist()
            for (path, variable), (size, kind, checksum) in zip(variables, stored, strict=True):
                found = _sum(keras.ops.convert_to_numpy(variable))
                # An array of another size or type was converted: its checksum means nothing.
                if found[:2] == [size, kind] and found[2] != checksum:
                    raise ValueError(
                        f"The file is damaged: {path!r} differs from the values that were saved."
                    )


def seed_states(model) -> list:
    """Returns the random seed states of layers such as dropout, in model order."""
    layers = keras_internals.all_layers(model)
    return [state for layer in layers for state in keras_internals.seed_states(layer)]


def _recipe(model):
    """Returns the facts that must be equal in a file and in the model that loads it."""
    weights = [[item.target_sparsity, repr(item.pattern)] for item in model.masked_weights]
    return {"method": type(model.method).__name__, "weights": weights}


def _compare(stored, own, paths):
    """Raises if a file has another method, other sparsities or other patterns than the model.

    Args:
        stored, own: results of `_recipe`, of the file and of the model.
        paths: list of str, the paths of the model's masked weights.
    """
    if stored["method"] != own["method"]:
        raise ValueError(
            f"The file holds a model trained by {stored['method']}, this model trains by "
            f"{own['method']}."
        )
    if len(stored["weights"]) != len(own["weights"]):
        raise ValueError(
            f"The file holds {len(stored['weights'])} masks, the model has {len(own['weights'])}."
        )
    for path, theirs, ours in zip(paths, stored["weights"], own["weights"], strict=True):
        if not math.isclose(theirs[0], ours[0], abs_tol=1e-6) or theirs[1] != ours[1]:
            raise ValueError(
                f"The file holds masks for other sparsities or patterns: {path!r} has "
                f"{theirs[0]:.4f}, {theirs[1]} in the file and {ours[0]:.4f}, {ours[1]} in the "
                "model."
            )


def _parts(model):
    """Returns the stored parts of a model, by name, as lists of (path, array or variable)."""
    kept = {id(v): v for item in model.masked_weights for v in item.state.values()}
    changed = filter(_is_changed, keras_internals.all_layers(model))
    left_out = {id(v) for layer in changed for v in layer.weights}
    weights = [v for v in model.weights if id(v) not in kept and id(v) not in left_out]
    parts = {"weights": weights, "kept": kept.values(), "seeds": seed_states(model)}
    parts["optimizer"] = [v for optimizer in optimizers_of(model) for v in optimizer.variables]
    parts = {name: [(v.path, v) for v in variables] for name, variables in parts.items()}
    return {**parts, "step": [("step", np.int64(model.step))]}


def _is_changed(layer):
    """Returns True if a layer may store other values than its variables hold.

    It does so if it merges LoRA, or if a class outside of Keras and tf_rigl defines how it
    stores or loads.
    """
    if getattr(layer, "lora_enabled", False) or isinstance(layer, keras.Model):
        return getattr(layer, "lora_enabled", False)
    modules = {getattr(type(layer), name).__module__ for name in _STORING}
    return not all(module.startswith(("keras.", "tf_rigl.")) for module in modules)


def _sum(array):
    """Returns the number of bytes of an array, and the checksums of its type and its bytes."""
    content = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
    return [array.nbytes, zlib.crc32(str(array.dtype).encode()), zlib.crc32(content)]
