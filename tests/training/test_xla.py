"""Whole training steps compile for XLA: static shapes, and nothing that runs on the host.

That is what a TPU asks of them; none was there to run them on.
"""

import os
import pathlib
import re
import subprocess
import sys

import keras
import pytest
import tensorflow as tf

import tf_rigl
from tests.helpers import METHODS, compiled, mlp, random_data, sparsify
from tests.soak import times
from tf_rigl.training.begin import begin

# Pattern and compute; where a method has one pool, or begins dense, not all are possible.
FORMS = [("unstructured", "masked"), ("block_2x1", "masked"), ("2:4", "masked")]
FORMS_OF_SOME = [("constant_fan_in_2x2", "masked"), ("block_2x2", "sparse")]
# They select by what the others select by; SRigL has a pattern of its own.
NEWER = ("granet", "srigl", "mest", "mest-soft", "acdc", "ste", "sr-ste", "grasp-global")
OLDER = [*METHODS][: [*METHODS].index("granet")]
CASES = [(name, *form) for name in OLDER for form in FORMS]
CASES += [(name, *FORMS[0]) for name in NEWER] + [("ste", *FORMS[2])]
CASES += [
    (name, *form) for name in ("static", "set", "rigl", "rigl-after") for form in FORMS_OF_SOME
]
# Of HLO: sizes that are known at run time only, and ways to the host.
FORBIDDEN = r"\[[^\]]*<=\d|\b(infeed|outfeed|send|recv|custom-call)\("


def as_hlo(step, *args):
    """A step as XLA sees it."""
    function = tf.function(lambda *args: step(*args), jit_compile=True, autograph=False)
    return function.experimental_get_compiler_ir(*args)(stage="hlo")


@pytest.mark.parametrize(("name", "pattern", "compute"), CASES)
def test_every_step_is_static_and_stays_on_the_device(name, pattern, compute):
    method = METHODS[name]()
    model = compiled(sparsify(mlp(), method, pattern=pattern, compute=compute), "adam")
    x, y = random_data(batches=1)
    batch = tf.constant(x), tf.constant(y)
    model._symbolic_build(data_batch=batch)
    begin(model, iter(()))
    past = [tf.constant(0.5)] if "gradient" in method.state_names else []
    steps = [as_hlo(model.train_step, batch)]
    if past:
        steps.append(as_hlo(model.observing_step, batch, *past))
    plan = model._sparse_loop.plan
    counts = next(filter(None, map(plan.counts, range(9))), None)
    if name not in (
        "static",
        "edge-popup",
        "ste",
        "sr-ste",
    ):  # Their only step is the ordinary one.
        counts = tf.constant(counts)
        steps.append(as_hlo(model.update_step, batch, counts, tf.constant(3), *past))
    for hlo in steps:
        assert "dot(" in hlo
        assert not re.search(FORBIDDEN, hlo)


def test_what_is_forbidden_would_be_found():
    def dynamic(x):
        return keras.ops.sum(tf.boolean_mask(x, x > 0))

    assert re.search(FORBIDDEN, as_hlo(dynamic, tf.ones([4])))


def test_no_selection_holds_a_bincount():
    """XLA of TensorFlow 2.22 takes minutes to compile one: see `patterns/selection.py`."""
    select = tf.function(tf_rigl.patterns.Unstructured().select, jit_compile=True)
    shape, count = tf.TensorSpec([300, 300]), tf.TensorSpec([], tf.int32)
    graph = select.get_concrete_function(shape, count).graph.as_graph_def()
    bodies = [graph.node, *(function.node_def for function in graph.library.function)]
    assert not any("Bincount" in node.op for nodes in bodies for node in nodes)


THREADS = """
import sys
import keras, tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[1]))
tf.config.threading.set_inter_op_parallelism_threads(int(sys.argv[1]))
from tests.helpers import compiled, random_data, rigl, sparsify
hidden = [keras.layers.Dense(300, activation="relu") for _ in range(3)]
model = keras.Sequential([keras.Input((300,)), *hidden, keras.layers.Dense(3)])
sparse = compiled(sparsify(model, rigl(), sparsity=0.9), "adam")
sparse.fit(*random_data((300,), batches=5), batch_size=8, verbose=0)
print(sparse.step)
"""


@pytest.mark.parametrize("threads", times([1], [1, 2, 4]))
def test_an_update_of_large_weights_ends_with_few_threads(threads):
    root = str(pathlib.Path(__file__).parents[2])
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": root}
    command = [sys.executable, "-c", THREADS, str(threads)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=200, check=True
    )
    assert done.stdout.split() == ["5"]
