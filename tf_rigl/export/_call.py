"""The call of a model that becomes a LiteRT file: its inputs by name, examples and batches."""

import copy
import itertools
import re

import keras
import numpy as np
import tensorflow as tf

from tf_rigl.export import _source

_MOST_SAMPLES = 200  # More samples of a representative data set change the ranges little.
_CHECKED = 8  # Number of examples in the check batch if the batch axis is free.


class Call:
    """The call of a model, with inputs and outputs by name."""

    def __init__(self, model, batch_size, data=None):
        self.model = model
        self._structure = _source.signature(model, data)
        self._batch_size = batch_size
        specs = keras.tree.flatten(self._structure)
        names = _names(self._structure, specs)
        self.specs = dict(zip(names, specs, strict=True))
        if words := [name for name, spec in self.specs.items() if spec.dtype == "string"]:
            raise ValueError(
                f"LiteRT files of models with inputs of strings are not supported: {words}. Turn "
                "strings into numbers before the model, or export a SavedModel."
            )

    def of(self, model):
        """Returns the call of another model with the same inputs."""
        other = copy.copy(self)
        other.model = model
        return other

    def _outputs(self, inputs):
        arguments = keras.tree.pack_sequence_as(self._structure, list(inputs))
        outputs = self.model(*arguments, training=False)
        if isinstance(outputs, dict) and not any(map(keras.tree.is_nested, outputs.values())):
            return outputs
        return {f"output_{n}": each for n, each in enumerate(keras.tree.flatten(outputs))}

    def outputs(self, batch) -> dict:
        """Returns the outputs of the Keras model, by name."""
        inputs = [keras.ops.convert_to_tensor(x) for x in batch.values()]
        outputs = _source.call(self._outputs, inputs)
        return {name: keras.ops.convert_to_numpy(x) for name, x in outputs.items()}

    def save(self, folder):
        """Writes a SavedModel, the form that TensorFlow converts best."""
        signature = [
            tf.TensorSpec((self._batch_size, *spec.shape[1:]), spec.dtype, name)
            for name, spec in self.specs.items()
        ]
        archive = keras.export.ExportArchive()
        archive.track(self.model)
        archive.add_endpoint("serve", lambda *inputs: self._outputs(inputs), signature)
        _source.write(archive, folder)

    def samples(self, argument, data) -> list:
        """Returns the examples in data of any kind, as dicts of arrays with a batch axis of 1."""
        samples = []
        for flat in _flat(argument, data, self._structure):
            samples += self._split(argument, flat)
            if len(samples) >= _MOST_SAMPLES:
                break
        if data is not None and not samples:
            raise ValueError(f"Argument `{argument}` must hold at least one example.")
        return samples[:_MOST_SAMPLES]

    def _split(self, argument, flat):
        """Splits a batch into single examples."""
        arrays = [np.asarray(x) for x in flat]
        shapes = [array.shape for array in arrays]
        expected = [(None, *spec.shape[1:]) for spec in self.specs.values()]
        fits = len(shapes) == len(expected) and all(
            len(has) == len(needs) and all(m in (None, n) for n, m in zip(has, needs, strict=True))
            for has, needs in zip(shapes, expected, strict=True)
        )
        if not fits or len({shape[0] for shape in shapes}) != 1:
            raise ValueError(
                f"Argument `{argument}` must hold batches of the model's inputs, of shapes "
                f"{expected}. Received: a batch of shapes {shapes}"
            )
        pairs = list(zip(self.specs.items(), arrays, strict=True))
        return [
            {name: array[n : n + 1].astype(spec.dtype) for (name, spec), array in pairs}
            for n in range(min(len(arrays[0]), _MOST_SAMPLES))
        ]

    def batches(self, samples) -> list:
        """Joins examples to batches of the fixed size, or of 1. The last one repeats examples."""
        size = self._batch_size or 1
        groups = [samples[n : n + size] for n in range(0, len(samples), size)]
        return [_joined(list(itertools.islice(itertools.cycle(g), size))) for g in groups]

    def check_batches(self, samples) -> list:
        """Returns the batches of the check. If the batch axis is free, they have two sizes."""
        size = self._batch_size or _CHECKED
        if not samples:
            random = keras.tree.flatten(_source.check_batch(self.model, size))
            samples = self._split("check_data", [array[:size] for array in random])
        if self._batch_size:
            return self.batches(samples[: max(size, _CHECKED)])
        return [samples[0], _joined(samples[:_CHECKED])]


def _names(structure, specs):
    """Returns a name for each input: its Keras name, if a signature allows it."""
    keys = [path[-1] for path, _ in keras.tree.flatten_with_path(structure)]
    names = []
    for number, (key, spec) in enumerate(zip(keys, specs, strict=True)):
        name = key if isinstance(key, str) else spec.name or ""
        name = re.sub(r"\W", "_", name)
        # Keras numbers default names over the whole process, so they vary.
        if re.fullmatch(r"((keras_tensor|input_layer)(_\d+)?)?", name) or name in names:
            name = f"input_{number}"
        names.append(name)
    return names


def _flat(argument, data, structure):
    """Yields the batches in data of any kind, as lists of arrays in the order of the inputs."""
    if data is None:
        return
    if callable(data) and not isinstance(data, tf.data.Dataset):
        data = data()
    whole = isinstance(data, (list, tuple, dict)) or hasattr(data, "__array__")
    if not whole and not hasattr(data, "__iter__"):
        raise ValueError(f"Argument `{argument}` must be a batch or batches. Received: {data!r}")
    keys = [path[-1] for path, _ in keras.tree.flatten_with_path(structure)]
    for x in [data] if whole else data:
        # As in Keras, a tuple holds inputs and labels; a list holds several inputs.
        x = keras.utils.unpack_x_y_sample_weight(x)[0] if isinstance(x, tuple) else x
        if isinstance(x, dict) and all(isinstance(key, str) for key in keys):
            yield [x[key] for key in keys if key in x]
        else:
            yield keras.tree.flatten(x)


def _joined(samples):
    return {name: np.concatenate([sample[name] for sample in samples]) for name in samples[0]}
