"""What files of models are checked by: damaged ones, and those of other models, are refused."""

import json
import math
import operator
import os
import zipfile
import zlib

import keras
import numpy as np

from tf_rigl._base import keras_internals

_STORING = ("save_own_variables", "load_own_variables")
_MARK = b"tf_rigl crc32 "  # How a file of weights ends: this, and eight digits.


def close_file(path):
    """Ends a file of weights with a checksum; HDF5 does not mind, and drops it at a change."""
    end = _end(path, os.path.getsize(path))
    with open(path, "ab") as file:
        file.write(end)


def check_file(path, required=False):
    """Raises a `ValueError` if a local file, of weights or of a model, is damaged.

    One of weights without a checksum, as plain Keras writes them, is not looked at, unless
    the checksum is `required`.
    """
    if not os.path.isfile(path):
        return
    try:
        intact = _is_intact(path, required)
    except OSError:
        raise
    except Exception as error:  # `zipfile` raises many kinds.
        raise ValueError(f"The file {str(path)!r} is damaged: {error}") from error
    if not intact:
        raise ValueError(f"The file {str(path)!r} is damaged: its checksum is another.")


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
    marked = sum(map(operator.eq, end, _MARK)) > len(_MARK) // 2  # The mark may be damaged too.
    return end == _end(path, size) if marked or required else True


def _end(path, size):
    """What follows in a file on so many bytes: their checksum."""
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(min(size, 2**20)):
            checksum, size = zlib.crc32(block, checksum), size - len(block)
    return _MARK + b"%08x" % checksum


class Seal(keras.layers.Layer):
    """Stores what a model is and checksums of what it stores, and compares them after loading.

    It is no layer of the model, has no variables, and is loaded last.

    Args:
        model: the `tf_rigl.SparseModel`.
    """

    def __init__(self, model):
        super().__init__(trainable=False, name="seal")
        # Not the model itself: Keras would track it.
        self._parts, self._recipe = lambda: _parts(model), lambda: _recipe(model)
        self._paths = lambda: [item.path for item in model.masked_weights]
        self.built = True

    def save_own_variables(self, store):
        """Stores the recipe; for each array of each part how many bytes it has, and a checksum."""
        store["recipe"] = np.frombuffer(json.dumps(self._recipe()).encode(), np.uint8)
        for part, variables in self._parts().items():
            sums = [_sum(keras.ops.convert_to_numpy(variable)) for _, variable in variables]
            store[part] = np.array(sums, np.uint64).reshape(-1, 3)

    def load_own_variables(self, store):
        """Raises if something is not as it was stored."""
        keys = list(store.keys())
        if "recipe" in keys:
            _compare(
                json.loads(np.asarray(store["recipe"]).tobytes()), self._recipe(), self._paths()
            )
        for part, variables in self._parts().items():
            # A dense model's file has none, one of another optimizer not as many.
            if part not in keys or np.shape(store[part]) != (len(variables), 3):
                continue
            stored = np.asarray(store[part]).tolist()
            for (path, variable), (size, kind, checksum) in zip(variables, stored, strict=True):
                found = _sum(keras.ops.convert_to_numpy(variable))
                # Of another size or type is what has been converted.
                if found[:2] == [size, kind] and found[2] != checksum:
                    raise ValueError(
                        f"The file is damaged: {path!r} is not what was written to it."
                    )


def seed_states(model) -> list:
    """The states of the seeds of dropout and the like, in model order."""
    layers = keras_internals.all_layers(model)
    return [state for layer in layers for state in keras_internals.seed_states(layer)]


def _recipe(model):
    """What a file must have in common with the model that it is loaded into."""
    weights = [[item.target_sparsity, repr(item.pattern)] for item in model.masked_weights]
    return {"method": type(model.method).__name__, "weights": weights}


def _compare(stored, own, paths):
    """Raises if a file is that of a model of another method, or with other sparsities."""
    if stored["method"] != own["method"]:
        raise ValueError(
            f"The file holds a model trained by {stored['method']}, this one trains by "
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
                f"{theirs[0]:.4f}, {theirs[1]}; here it has {ours[0]:.4f}, {ours[1]}."
            )


def _parts(model):
    """What is stored of a model, as lists of (path, array or variable)."""
    kept = {id(v): v for item in model.masked_weights for v in item.state.values()}
    changed = filter(_is_changed, keras_internals.all_layers(model))
    left_out = {id(v) for layer in changed for v in layer.weights}
    weights = [v for v in model.weights if id(v) not in kept and id(v) not in left_out]
    optimizer = getattr(model, "optimizer", None)
    parts = {"weights": weights, "kept": kept.values(), "seeds": seed_states(model)}
    parts["optimizer"] = optimizer.variables if optimizer is not None else ()
    parts = {name: [(v.path, v) for v in variables] for name, variables in parts.items()}
    return {**parts, "step": [("step", np.int64(model.step))]}


def _is_changed(layer):
    """Whether what a layer stores may not be what it has: it merges LoRA, or stores as it likes."""
    if getattr(layer, "lora_enabled", False) or isinstance(layer, keras.Model):
        return getattr(layer, "lora_enabled", False)
    modules = {getattr(type(layer), name).__module__ for name in _STORING}
    return not all(module.startswith(("keras.", "tf_rigl.")) for module in modules)


def _sum(array):
    """How many bytes an array has, and the checksums of its type and of them."""
    content = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
    return [array.nbytes, zlib.crc32(str(array.dtype).encode()), zlib.crc32(content)]
