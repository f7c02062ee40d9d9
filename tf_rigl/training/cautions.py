"""Warnings about a run of `fit`: when it begins, and when it ends before its method has."""

from tf_rigl._base import notices
from tf_rigl.weights import maskable, masks

_IDLE = 0.05  # The share of a weight's outputs above which idle ones are told.


def before(model):
    """Warns of what the method cannot do in the run that begins now."""
    length = model._sparse_loop.length
    if thawed := [path for layer in masks.layers(model) for path in layer.left_frozen()]:
        shown = ", ".join(map(repr, thawed[:3])) + (", ..." if len(thawed) > 3 else "")
        notices.warn(
            f"{len(thawed)} weights were frozen when the model was made sparse, so they have no "
            f"masks, and now train dense: {shown}. To have them sparse, unfreeze them before "
            "`tf_rigl.sparsify`, or name them in `fixed`."
        )
    for text in model.method.cautions(length.first_step, length.steps):
        notices.warn(text)


def after(model):
    """Warns of what the run that ends now leaves behind."""
    _of_idle_units(model)
    _of_unpruned(model)


def _of_idle_units(model):
    """Warns if many outputs have active entries, all of which are zero.

    Blocks that updates have moved start from zeros. With ReLU, a unit all of whose blocks have
    moved gets no gradient, if its bias is not above 0.
    """
    method, length = model.method, model._sparse_loop.length
    grows = method.changes_masks and hasattr(method, "last_step")
    if not grows or not method.begins_at_zero:
        return
    if model.step < method.last_step(length.first_step, length.steps):  # They may yet be trained.
        return
    found = {}
    for weight in model.masked_weights:
        inputs = maskable.input_axes(weight.layer, weight.shape)
        alive = weight.alive(inputs)
        idle = int((alive & ~weight.used(inputs)).sum())
        if idle > _IDLE * alive.size:
            found[weight.path] = f"{weight.path!r} ({idle} of {alive.size})"
    if found:
        shown = ", ".join(list(found.values())[:3]) + (", ..." if len(found) > 3 else "")
        notices.warn(
            f"Units have no weights but zeros: {shown}. Updates moved all their blocks, which "
            "start from zeros, and units with ReLU then may get no gradient. Pass smaller blocks, "
            "or `grow_initializer='glorot_normal'` to the method."
        )


def _of_unpruned(model):
    """Warns if the model is less sparse than it was to become."""
    loop, method = model._sparse_loop, model.method
    prunes = method.begins_dense or not method.keeps_counts
    if not prunes or not method.ends_at_target or _goes_on(model):
        return
    weights = [
        weight
        for number, weight in enumerate(model.masked_weights)
        if weight.is_sparse and weight.weight.trainable and number not in loop.traces.unreached
    ]
    units = sum(weight.pattern.units(weight.shape) for weight in weights)
    rounding = sum(weight.pattern.step(weight.shape) for weight in weights)
    active, wanted = (sum(each) for each in _counts(weights))
    if active - wanted > rounding:
        notices.warn(
            f"The model is not pruned to its target: its sparsity is {1 - active / units:.3g}, not "
            f"{1 - wanted / units:.3g}. The run ended at step {model.step}, before the pruning "
            "did, or weights of an earlier epoch were restored. Train on, or pass a smaller "
            f"`{method.pruning_ends}`. Received: method={method!r}"
        )


def _counts(weights):
    """Returns the active units of weights now, and at their targets."""
    return [w.active() for w in weights], [w.target_active() for w in weights]


def _goes_on(model):
    """Returns True if this run is one of several, and ended where it was to end.

    An `end_step` that is a step may lie in a later run. The first run warns all the same: it
    may be the only one.
    """
    length = model._sparse_loop.length
    if model.method.needs_length or length.steps is None or length.first_step == 0:
        return False
    return model.step >= length.first_step + length.steps
