"""Counts the products of layers that no rule knows, by the operations that they run.

These are custom layers, models with a `call` of their own, operations of `keras.ops` between
layers, and layers such as `keras.layers.Dot`.
"""

import collections
import math
from typing import NamedTuple

from tf_rigl.accounting import operations
from tf_rigl.weights import products


class Custom(NamedTuple):
    """The products of layers that no rule knows, over the whole batch."""

    kernels: set  # id of each variable that products with data use, and nothing else.
    uses: dict  # id(variable) -> number of multiply-adds of each of its entries.
    outputs: dict  # id(variable) -> number of outputs of its products.
    products: dict  # id(layer) -> FLOPs of all other products with data.
    uncounted: set  # id of each layer with products that cannot be counted.


def variables(walked) -> list:
    """Returns the variables of layers that may be kernels, and that no rule knows.

    Args:
        walked: list of layers.
    """
    return [variable for layer in walked for variable in products.candidates(layer)]


def count(trace, variables) -> Custom:
    """Counts the products of layers that no rule knows.

    Args:
        trace: `tf_rigl.weights.tracing.Trace`.
        variables: list of `keras.Variable`, for which the trace has stand-ins.
    """
    found = products.uses(trace)
    by_name = {each.operation: each for each in found.products}
    counters: list[collections.Counter] = [collections.Counter() for _ in range(3)]
    adds, outputs, flops = counters
    uncounted, hidden = set(), _Hidden()
    for call in trace.calls:
        layer = id(call.layer)
        times = None if None in call.times else math.prod(call.times)
        for operation in call.operations:
            product = by_name.get(operation.name)
            is_kernel = product is not None and product.variable in found.kernels
            if operations.is_known(call.layer) and not is_kernel:
                continue
            if product is None:
                if hidden.products_in(operation):
                    uncounted.add(layer)
            elif times is None or None in (product.multiply_adds, product.outputs):
                uncounted.add(layer)
            elif is_kernel:
                adds[product.variable] += times * product.multiply_adds
                outputs[product.variable] += times * product.outputs
            else:
                flops[layer] += 2 * times * product.multiply_adds
    entries = {id(variable): math.prod(variable.shape) for variable in variables}
    uses = {key: _quotient(number, entries[key]) for key, number in adds.items()}
    return Custom(found.kernels, uses, dict(outputs), dict(flops), uncounted)


def _quotient(number, divisor):
    return number / divisor if number % divisor else number // divisor


class _Hidden:
    """Tells which operations run functions with products: loops, branches, compiled functions."""

    def __init__(self):
        self._functions = None

    def products_in(self, operation):
        if operation.type not in products.FUNCTIONS:
            return False
        if self._functions is None:
            library = operation.graph.as_graph_def().library.function
            self._functions = {each.signature.name: each.node_def for each in library}
        return any(map(self._holds, _called(operation.node_def)))

    def _holds(self, name, seen=frozenset()):
        nodes = () if name in seen else self._functions.get(name, ())
        return any(
            node.op in products.PRODUCTS
            or any(self._holds(inner, seen | {name}) for inner in _called(node))
            for node in nodes
        )


def _called(node) -> list:
    """Returns the names of the functions that a node of a graph runs."""
    values = node.attr.values()
    single = [value.func.name for value in values if value.HasField("func")]
    return single + [function.name for value in values for function in value.list.func]
