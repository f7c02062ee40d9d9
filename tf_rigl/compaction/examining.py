"""Which layers of a model have a compact form, and what holds the others back."""

import dataclasses

import keras
import numpy as np

from tf_rigl._base.keras_internals import all_layers, carries_mask, nodes_of, projection
from tf_rigl.block_sparse import conversion, layers
from tf_rigl.compaction import attention, choosing, columns, parts
from tf_rigl.convert import copies
from tf_rigl.weights import maskable
from tf_rigl.weights.masked_layer import MaskedLayer

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_KINDS = (keras.layers.Dense, keras.layers.EinsumDense, *_CONVOLUTIONS)
_OTHERS = tuple(
    getattr(keras.layers, name)
    for name in ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose", "SeparableConv1D")
    + ("SeparableConv2D", "DepthwiseConv1D", "DepthwiseConv2D")
)


@dataclasses.dataclass
class Entry:
    """A layer with a kernel, and its form.

    Attributes:
        path: str, the names of the models around it and its own, joined by "/".
        layer: `keras.layers.Layer`, without a wrapper.
        part: `tf_rigl.compaction.parts.Part`, or None if the layer stays as it is.
        form: str, "dense" if the layer stays as it is.
        reason: str, why it stays as it is; else "".
        around: the attention layer whose projection the layer stands for, and the graph that
            computes the same with it; or None.
    """

    path: str
    layer: keras.layers.Layer
    part: parts.Part | None = None
    form: str = "dense"
    reason: str = ""
    around: tuple | None = None

    @property
    def stored(self) -> int:
        """How many entries of the kernel the compact form stores."""
        assert self.part is not None
        columns = self.part.columns
        return columns.stored if self.form == "split" else columns.padded

    def make(self):
        """Returns what replaces the layer, and a function that sets its weights."""
        new, fill = choosing.possible(self.part)[self.form](self.part)
        new.trainable = self.layer.trainable
        return new, fill


def examine(graph, form="auto", quantization=None, weights=()) -> list[Entry]:
    """Decides the form of each layer with a kernel.

    Args:
        graph: `keras.Model` that is a graph of layers.
        form: str, one of `tf_rigl._base.registry.FORMS`.
        quantization: str or None, see `choosing.fastest`.
        weights: list of `SparseWeight` whose masks tell of blocks.
    """
    masks = {id(item.weight): item for item in weights}
    entries = []
    for path, layer in _layers(graph):
        examined = _attention if attention.is_attention(layer) else _plain
        entries += examined(path, layer, form, quantization, masks)
    return entries


def _layers(graph, route=()):
    """Yields the path and each layer with a kernel, in nested graphs and other layers too."""
    for layer in graph.layers:
        layer = layer.layer if isinstance(layer, MaskedLayer) else layer
        path = (*route, layer.name)
        if isinstance(layer, keras.Model) and copies.is_graph(layer):
            yield from _layers(layer, path)
        elif isinstance(layer, (*_KINDS, *_OTHERS)) or attention.is_attention(layer):
            yield "/".join(path), layer
        else:
            for inner in all_layers(layer, include_self=False):
                if isinstance(inner, _KINDS):
                    yield "/".join((*path, inner.name)), _Inside(inner)


class _Inside:
    """A layer that another layer holds, which no graph can replace."""

    def __init__(self, layer):
        self.layer = layer


def _plain(path, layer, form, quantization, masks):
    if isinstance(layer, _Inside):
        return [Entry(path, layer.layer, reason="inside another layer")]
    return [_entry(path, layer, form, quantization, masks)]


def _attention(path, layer, form, quantization, masks):
    """Returns the entries of the projections of an attention layer."""
    reason = attention.obstacle(layer)
    if reason:
        projections = [(name, projection(layer, name)) for name in attention.NAMES]
        return [Entry(f"{path}/{name}", each, reason=reason) for name, each in projections]
    graph, pairs = attention.unfolded(layer)
    stored = [(masks.get(id(maskable.stored(old, "kernel")[0])), new) for old, new in pairs]
    masks = {id(new.kernel): item for item, new in stored if item is not None}
    entries = [_entry(f"{path}/{old.name}", new, form, quantization, masks) for old, new in pairs]
    return [dataclasses.replace(entry, around=(layer, graph)) for entry in entries]


def _entry(path, layer, form, quantization, masks):
    reason = _obstacle(layer)
    if reason:
        return Entry(path, layer, reason=reason)
    part = _part(layer, masks)
    forms = choosing.possible(part)
    found, reason = choosing.fastest(part, forms, quantization)
    if form != "auto" and forms and (found or not reason.startswith("no zeros")):
        found = form if form in forms else None
        reason = "" if found else f"it has no form {form!r}, but {', '.join(sorted(forms))}"
    if found is None:
        return Entry(path, layer, reason=reason)
    return Entry(path, layer, part, found)


def _obstacle(layer):
    """Returns the reason why a layer has no compact form, or None."""
    if isinstance(layer, _OTHERS):
        return f"no compact form of {type(layer).__name__}"
    blocks = isinstance(layer, layers.BlockSparseLayer)
    if type(layer) not in _KINDS and not blocks:
        return f"{type(layer).__name__} may use its kernel in another way"
    if isinstance(layer, keras.layers.EinsumDense) and not layers.projects_last_axes(layer):
        return f"the equation {layer.equation!r} does not project the last axes"
    if isinstance(layer, keras.layers.EinsumDense) and len(layer.kernel.shape) != 2:
        return "its kernel has several input or output axes"
    if getattr(layer, "bias", None) is not None and layer.bias.shape[:-1] != ():
        return "its bias has several axes"
    if getattr(layer, "groups", 1) != 1:
        return f"it has {layer.groups} groups"
    if reason := parts.obstacle(layer, layer.trainable):
        return reason
    if not nodes_of(layer):
        return "no graph calls it"
    if len({len(node.output_tensors[0].shape) for node in nodes_of(layer)}) > 1:
        return "it is called with inputs of several ranks"
    if any(map(carries_mask, _inputs(layer))):
        return "a mask of timesteps passes through it"
    return None


def _inputs(layer):
    return [t for node in nodes_of(layer) for t in keras.tree.flatten(node.input_tensors)]


def _part(layer, masks):
    bias = parts.bias_of(layer)
    if isinstance(layer, layers.BlockSparseLayer):
        return parts.Part(layer, columns.of_blocks(layer), bias)
    kernel, item = layer.kernel.numpy(), masks.get(id(layer.kernel))
    mask = None if item is None else np.reshape(item.mask, kernel.shape).astype(bool)
    return parts.Part(layer, columns.of_zeros(kernel, mask), bias)


def makers(model, entries) -> dict:
    """Returns what replaces each layer in a copy, by its id, as `copies.copied` takes it.

    Compact forms, attention as a graph around them, and ordinary layers in place of the
    block-sparse ones that have no compact form.
    """
    compact = {id(entry.layer): entry.make for entry in entries if entry.part is not None}
    around = {id(e.around[0]): e.around for e in entries if e.around and e.part is not None}
    for number, (layer, graph) in around.items():
        compact[number] = lambda layer=layer, graph=graph: _in_graph(layer, graph, compact)
    return {
        id(layer): (lambda layer=layer: conversion.ordinary(layer))
        for layer in conversion.replacements(model)
    } | compact


def _in_graph(layer, graph, compact):
    """Returns the graph that replaces an attention layer; its weights are set already."""
    new = copies.try_copy(graph, compact, exact=False)
    new.trainable = layer.trainable
    return new, lambda: None
