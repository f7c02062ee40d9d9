"""The sparse model of a model that trains in its own way: own `train_step`, `compile` or `fit`."""

import contextlib
import functools
import inspect
import operator

import keras
import tensorflow as tf

from tf_rigl._base import registering
from tf_rigl._base.keras_internals import InitialEpochOfModel, all_layers
from tf_rigl.convert.sparsified import SparsifiedModel
from tf_rigl.training import loop
from tf_rigl.training.own_step import check_method, optimizers_of, without_decorator

# What a class may define, and a sparse model then leaves to the wrapped model.
_STEPS = ("train_step", "test_step", "predict_step", "compute_loss", "compute_metrics", "metrics")
_LOOPS = ("compile", "fit", "evaluate", "predict", "train_on_batch", "test_on_batch")
_OWN = (*_STEPS, *_LOOPS, "predict_on_batch", "reset_metrics", "get_metrics_result")


def own_parts(model) -> list:
    """Returns the names of the parts of training that the class of a model defines itself."""
    return [name for name in _OWN if getattr(type(model), name) is not getattr(keras.Model, name)]


def _of_model(name):
    """Makes a property that is an attribute of the wrapped model."""

    def get(self):
        return getattr(self.model, name)

    def put(self, value):
        if "model" in vars(self):  # Keras sets defaults before the model is there.
            setattr(self.model, name, value)

    return property(get, put)


def _by_model(name):
    """Makes a method that calls that of the wrapped model."""

    def call(self, *args, **kwargs):
        return getattr(self.model, name)(*args, **kwargs)

    call.__name__, call.__doc__ = name, f"Calls `{name}` of the wrapped model."
    return call


@registering.model
class SparsifiedTrainer(InitialEpochOfModel, SparsifiedModel):
    """A `SparseModel` that wraps a model with its own training, and trains it by that.

    `compile`, `fit`, `evaluate`, `predict` and the metrics are those of the wrapped model. Its
    `train_step` runs as written; where it applies an optimizer, gradients are masked, or masks
    change.

    Args:
        model: a `keras.Model`.
    """

    compiled = _of_model("compiled")
    optimizer = _of_model("optimizer")
    loss = _of_model("loss")
    metrics = _of_model("metrics")
    metrics_names = _of_model("metrics_names")
    history = _of_model("history")
    stop_training = _of_model("stop_training")
    run_eagerly = _of_model("run_eagerly")
    jit_compile = _of_model("jit_compile")
    steps_per_execution = _of_model("steps_per_execution")

    test_step = _by_model("test_step")
    predict_step = _by_model("predict_step")
    compute_loss = _by_model("compute_loss")
    compute_metrics = _by_model("compute_metrics")
    reset_metrics = _by_model("reset_metrics")
    get_metrics_result = _by_model("get_metrics_result")
    evaluate = _by_model("evaluate")
    predict = _by_model("predict")
    test_on_batch = _by_model("test_on_batch")
    predict_on_batch = _by_model("predict_on_batch")

    def __init__(self, model, **kwargs):
        super().__init__(model, **kwargs)
        if type(model).train_step is not keras.Model.train_step:
            check_method(self.method)
        if not self.built and _is_whole(model):
            self._make_masks()
            self.built = True

    def train_step(self, data):
        """Runs the step of the wrapped model."""
        return without_decorator(self.model.train_step)(data)

    def build_optimizer(self):
        """Builds the optimizer if there is one alone; of several only the step knows for what."""
        optimizers = optimizers_of(self.model)
        if self.built and len(optimizers) == 1 and not optimizers[0].built:
            with self.distribute_strategy.scope():
                optimizers[0].build(self._trained(self.model.trainable_variables))

    def _check_own_step(self):
        pass  # The wrapped model differentiates by its weights, with all methods.

    def compile(self, *args, **kwargs):
        """Compiles the wrapped model; the arguments are those of its `compile`."""
        with self.distribute_strategy.scope():
            self.model.compile(*args, **kwargs)
        self.train_function = None

    def fit(self, *args, **kwargs):
        """Trains the model; the arguments are those of `fit` of the wrapped model."""
        bound = inspect.signature(self.model.fit).bind(*args, **kwargs)
        given = {**bound.arguments, **bound.arguments.get("kwargs", {})}
        callbacks = loop.with_own(given.get("callbacks"), self, given.get("initial_epoch", 0))
        if "callbacks" in inspect.signature(self.model.fit).parameters:
            bound.arguments["callbacks"] = callbacks
        else:
            bound.arguments.setdefault("kwargs", {})["callbacks"] = callbacks
        self._begin_run()
        with self._in_charge(), _told_of(self, callbacks):
            history = self.model.fit(*bound.args, **bound.kwargs)
        self._end_run()
        return history

    def train_on_batch(self, *args, **kwargs):
        """Trains on a batch; the arguments are those of the wrapped model's."""
        with self._in_charge():
            return self.model.train_on_batch(*args, **kwargs)

    @contextlib.contextmanager
    def _in_charge(self):
        """Has the wrapped model run the sparse train function, within this context."""
        model, before = self.model, self.model.train_function
        earlier = vars(model).get("make_train_function")  # Set if a callback trains as well.

        def make(force=False):
            model.train_function = self._current_function()
            return model.train_function

        vars(model)["make_train_function"] = make
        make()
        try:
            yield
        finally:
            model.train_function = before
            if earlier is None:
                del vars(model)["make_train_function"]
            else:
                vars(model)["make_train_function"] = earlier

    def _current_function(self):
        """Returns the train function, made anew if the wrapped model was compiled by itself."""
        settings = self.run_eagerly, self.jit_compile, self.steps_per_execution
        compiled = [*optimizers_of(self.model), *settings]
        state = loop.of(self)  # Keras would save optimizers in an attribute of the model.
        last, state.compiled_for = state.compiled_for, compiled
        same = len(last) == len(compiled) and all(map(operator.is_, last, compiled))
        return self.make_train_function(force=not same)

    def _build_on(self, data):
        """Builds the model for the shapes of a batch: by its `call`, or by tracing its step."""
        if type(self.model).call is not keras.Model.call:
            return super()._build_on(data)
        specs = keras.tree.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), data)
        tf.function(self.model.train_step, autograph=False).get_concrete_function(specs)
        self._make_masks()
        self.built = True

    def get_compile_config(self):
        """Returns the arguments of `compile` of the wrapped model, if it stores them."""
        return self.model.get_compile_config()

    def compile_from_config(self, config):
        """Compiles the wrapped model by a result of `get_compile_config`."""
        own = any(
            getattr(type(self.model), name) is not getattr(keras.Model, name)
            for name in ("compile", "compile_from_config")
        )
        if own:
            self.model.compile_from_config(config)
        else:  # Keras would build the optimizer on other variables than some methods train.
            self.compile(**keras.saving.deserialize_keras_object(config))
        self.build_optimizer()


def _is_whole(model):
    """Returns whether all layers in a model are built, so that no weights are to come."""
    inner = all_layers(model, include_self=False)
    return bool(inner) and all(layer.built for layer in inner)


@contextlib.contextmanager
def _told_of(model, callbacks):
    """Has callbacks see a model in place of the one that runs them, within this context."""
    told = [] if isinstance(callbacks, keras.callbacks.CallbackList) else callbacks
    told = list({id(callback): callback for callback in told}.values())
    own = [vars(callback).get("set_model") for callback in told]
    for callback in told:
        set_model = callback.set_model
        vars(callback)["set_model"] = functools.partial(_set_model, set_model, model)
    try:
        yield
    finally:
        for callback, set_model in zip(told, own, strict=True):
            del vars(callback)["set_model"]
            if set_model is not None:
                vars(callback)["set_model"] = set_model


def _set_model(set_model, model, inner):
    del inner
    set_model(model)
