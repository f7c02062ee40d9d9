"""Which variables of a model the optimizer trains: that is for the method to say."""

import keras

from tf_rigl._base import keras_internals


class TrainedByMethod:
    """A base of models, before `keras.Model`: the method says which variables are trained."""

    @property
    def trainable_weights(self):
        """The variables that the optimizer trains: weights, or with some methods their scores."""
        return self._trained(super().trainable_weights)

    @property
    def trainable_variables(self):
        """Equal to `trainable_weights`."""
        return self._trained(super().trainable_variables)

    @property
    def non_trainable_weights(self):
        """The weights that are not in `trainable_weights`."""
        return _without(self.weights, self.trainable_weights)

    @property
    def non_trainable_variables(self):
        """The other variables, those of metrics and random seeds included."""
        return _without(self.variables, self.trainable_variables)

    @property
    def losses(self):
        """The losses of layers and regularizers, those of weights included that are not trained.

        Keras has a regularizer count for trainable variables only. Where a method trains dense
        weights behind the masked ones, the regularizer is that of the masked ones.
        """
        found, method = super().losses, getattr(self, "method", None)
        if method is None or not method.regularizes_masked:
            return found
        weights = [i.weight for i in self.masked_weights if method.trained_state in i.state]
        return found + [
            weight.regularizer(keras.ops.convert_to_tensor(weight))
            for weight in weights
            if weight.trainable and weight.regularizer is not None
        ]

    def _differentiated(self):
        """Returns the weights whose gradients training needs."""
        return self._learned(super().trainable_weights)

    def _learned(self, weights):
        """Leaves out the weights that the method freezes."""
        if not self.method.freezes_others:
            return weights
        masked = {id(item.weight) for item in self.masked_weights if item.is_sparse}
        return [w for w in weights if id(w) in masked]

    def _trained(self, weights):
        """Returns the variable that the method trains for each weight: its scores, or itself."""
        method = getattr(self, "method", None)  # Keras calls this before `__init__` sets it.
        if method is None or method.trained_state is None:
            return weights if method is None else self._learned(weights)
        items = {id(item.weight): item for item in self.masked_weights if item.is_sparse}
        missing = any(method.trained_state not in item.state for item in items.values())
        if missing:
            if keras_internals.in_stateless_scope():
                return self._learned(weights)
            self._add_state()
        return [
            method.trained_variable(items[id(w)]) if id(w) in items else w
            for w in self._learned(weights)
        ]


def _without(variables, others):
    """Returns the variables that are not among `others`."""
    known = {id(v) for v in others}
    return [v for v in variables if id(v) not in known]
