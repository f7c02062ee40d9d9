"""The models that `sparsify` makes. They hold masks beside their layers."""

import dataclasses
import functools

import keras

from tf_rigl import patterns
from tf_rigl._base import keras_internals, registering, tensors
from tf_rigl._base.delegation import show_call_of
from tf_rigl.convert import initializing
from tf_rigl.training.sparse_model import FunctionalSparseModel, SparseModel
from tf_rigl.weights import adapters, maskable, places, targets, unmasked
from tf_rigl.weights.masks import Masks

# Attributes that Keras gives a model when it is compiled, trained or evaluated.
_OF_TRAINING = ("optimizer", "history", "stop_training", "stop_evaluating", "stop_predicting")


class _Sparsified:
    """Base of both classes: a model that holds the masks of its weights.

    A recipe, a dict, says how to make the masks. When they are made, the configuration holds
    their paths and sparsities instead.
    """

    def _create_masks(self, recipe):
        recipe = dict(recipe)
        names = recipe.pop("names", None)
        scaling = initializing.get(recipe.pop("initialization", "model"))
        found = maskable.find(self, include_self=False)
        found = maskable.named(found, names) if names else found
        by_path, starts = {m.path: m for m in found}, {}
        if "masked" in recipe:  # The caller has chosen the number and `Target` of each weight.
            numbered = recipe["masked"]
        else:
            resolved = targets.resolve(found, **recipe, scope=self.method.scope)
            starts = targets.starts(found, resolved, self.method.initial_sparsity, **recipe)
            shapes = {m.path: tuple(m.weight.shape) for m in found}
            targets.warn_of_rounding(resolved, shapes)
            targets.warn_of_first_layer(resolved, shapes, recipe)
            numbered = {path: (n, resolved[path]) for n, path in enumerate(resolved)}
            left = [(m.path, m.weight) for m in found if m.is_frozen and m.path not in numbered]
            self._masks.note_frozen(left)
            masked = [by_path[path].weight for path in resolved]
            unmasked.warn(vars(self).get("model", self), masked)
        with self.distribute_strategy.scope():
            for path, (index, target) in numbered.items():
                draw = functools.partial(self._initial_mask, starts.get(path), index)
                draw = draw if scaling is None else scaling.drawing(draw)
                self._masks.add(by_path[path], target.sparsity, target.pattern, draw)
            self._add_state()  # `settle` draws masks, which may depend on the state.
            self._masks.settle()

    def _initial_mask(self, start, index, item):
        """Returns the mask that a weight starts with, at its target or at a sparsity `start`."""
        if start is not None:
            item = dataclasses.replace(item, target_sparsity=start)
        return self.method.initial_mask(item, seed=self.seed, index=index)

    def _recreate_masks(self, masked):
        for entry, found in zip(masked, places.find(self, masked), strict=True):
            if "lora" in entry:
                adapters.enable(found.layer, *entry["lora"])
            pattern = patterns.get(keras.saving.deserialize_keras_object(entry["pattern"]))
            self._masks.add(found, entry["sparsity"], pattern)
        self._add_state()

    def _sparse_config(self):
        items = self._masks.items
        masked = [
            {
                **entry,
                "sparsity": item.target_sparsity,
                "pattern": keras.saving.serialize_keras_object(item.pattern),
                **adapters.config(item),
            }
            for item, entry in zip(items, places.entries(self, items), strict=True)
        ]
        return {**super()._sparse_config(), "masked": masked}


@registering.model
class SparsifiedGraph(_Sparsified, FunctionalSparseModel):
    """A `SparseModel` that is a graph of layers, and holds the masks of their weights."""

    def __init__(self, *args, recipe=None, masked=(), **kwargs):
        super().__init__(*args, **kwargs)
        self._masks = Masks(name="masks")
        keras_internals.track_layer(self, self._masks)
        if recipe is not None:
            self._create_masks(recipe)
        self._recreate_masks(masked)


@registering.model
class SparsifiedModel(_Sparsified, SparseModel):
    """A `SparseModel` that wraps a model without a graph.

    Args:
        model: a subclassed `keras.Model`, or a model that is not built yet. Then the first
            call makes the masks.
    """

    def __new__(cls, model, *args, **kwargs):
        self = super().__new__(cls, model, *args, **kwargs)
        show_call_of(self, model)
        return self

    def __init__(self, model, *, recipe=None, masked=(), **kwargs):
        kwargs.setdefault("name", model.name)
        kwargs.setdefault("dtype", model.dtype_policy)
        super().__init__(**kwargs)
        self.autocast = model.autocast
        self.model = model
        self._masks = Masks(name="masks")
        self._recipe = recipe
        self._masked = list(masked)
        if model.built:
            self._make_masks()
            self.built = True

    def _make_masks(self):
        if self._masks.items:
            return
        if self._masked:
            self._recreate_masks(self._masked)
        elif self._recipe is not None:
            self._create_masks(self._recipe)

    @property
    def layers(self):
        """Returns the layers of the wrapped model."""
        return self.model.layers

    def __getattr__(self, name):
        # The public attributes of the user's class: `sparse.generator`, `sparse.generate()`.
        if name.startswith("_") or "model" not in vars(self):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.model, name)

    def __setattr__(self, name, value):
        # Those are also set there: `sparse.preprocessor = None`.
        known = name in (*vars(self), *_OF_TRAINING) or hasattr(type(self), name)
        if known or name.startswith("_") or not hasattr(vars(self).get("model"), name):
            super().__setattr__(name, value)
        else:
            setattr(self.model, name, value)

    @keras_internals.default_build  # `call` may take several arguments.
    def build(self, input_shape=None):
        if not self.model.built:
            self.model.build(input_shape)
        if self.model.built:
            self._make_masks()

    def __call__(self, *args, **kwargs):
        if not self._masks.items:
            if not self.model.built:
                super().__call__(*tensors.symbolic(args), **tensors.symbolic(kwargs))
            self._make_masks()
        self._masks.settle()
        return super().__call__(*args, **kwargs)

    def get_build_config(self):
        return {"model": self.model.get_build_config()} if self.model.built else None

    def build_from_config(self, config):
        if config.get("model") and not self.model.built:
            self.model.build_from_config(config["model"])
        if self.model.built:
            self._make_masks()
            self.built = True

    def get_config(self):
        config = {"name": self.name, "trainable": self.trainable}
        config["model"] = keras.saving.serialize_keras_object(self.model)
        config["model"].pop("compile_config", None)  # This model stores its own.
        if not self._masks.items and self._recipe is not None:
            config["recipe"] = keras.saving.serialize_keras_object(self._recipe)
        return {**config, **self._sparse_config()}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        for key in {"model", "method", "recipe"} & set(config):
            config[key] = keras.saving.deserialize_keras_object(
                config[key], custom_objects=custom_objects
            )
        return cls(**config)
