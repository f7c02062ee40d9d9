"""What files of models are checked by: damaged ones, and those of other models, are refused."""

import json
import zlib

import keras
import numpy as np


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
        self.built = True

    def save_own_variables(self, store):
        """Stores the recipe; for each array of each part how many bytes it has, and a checksum."""
        store["recipe"] = np.frombuffer(json.dumps(self._recipe()).encode(), np.uint8)
        for part, variables in self._parts().items():
            sums = [_sum(keras.ops.convert_to_numpy(variable)) for _, variable in variables]
            store[part] = np.array(sums, np.uint64).reshape(-1, 2)

    def load_own_variables(self, store):
        """Raises if something is not as it was stored."""
        keys = list(store.keys())
        if "recipe" in keys:
            _compare(json.loads(np.asarray(store["recipe"]).tobytes()), self._recipe())
        for part, variables in self._parts().items():
            # A dense model's file has none, one of another optimizer not as many.
            if part not in keys or len(store[part]) != len(variables):
                continue
            stored = np.asarray(store[part]).tolist()
            for (path, variable), (size, checksum) in zip(variables, stored, strict=True):
                found = _sum(keras.ops.convert_to_numpy(variable))
                # Of another size is what has been converted to another type.
                if found[0] == size and found[1] != checksum:
                    raise ValueError(
                        f"The file is damaged: {path!r} is not what was written to it."
                    )


def _recipe(model):
    """What a file must have in common with the model that it is loaded into."""
    weights = [[item.target_sparsity, repr(item.pattern)] for item in model.masked_weights]
    return {"method": type(model.method).__name__, "weights": weights}


def _compare(stored, own):
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
    for number, (theirs, ours) in enumerate(zip(stored["weights"], own["weights"], strict=True)):
        if theirs != ours:
            raise ValueError(
                f"The file holds masks for other sparsities or patterns: masked weight {number} "
                f"has {theirs[0]:.4f}, {theirs[1]}; here it has {ours[0]:.4f}, {ours[1]}."
            )


def _parts(model):
    """What is stored of a model, as lists of (path, array or variable)."""
    kept = {id(v): v for item in model.masked_weights for v in item.state.values()}
    weights = [v for v in model.weights if id(v) not in kept]
    optimizer = getattr(model, "optimizer", None)
    parts = {"weights": weights, "kept": kept.values(), "seeds": model._seed_states()}
    parts["optimizer"] = optimizer.variables if optimizer is not None else ()
    parts = {name: [(v.path, v) for v in variables] for name, variables in parts.items()}
    return {**parts, "step": [("step", np.int64(model.step))]}


def _sum(array):
    """How many bytes an array has, and their checksum."""
    return [array.nbytes, zlib.crc32(np.ascontiguousarray(array).view(np.uint8).reshape(-1))]
