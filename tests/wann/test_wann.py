"""Weight-agnostic networks, against plain Python."""

import math

import hypothesis.strategies as st
import keras
import numpy as np
import pytest
from hypothesis import given, settings

import tf_rigl
from tf_rigl import wann
from tf_rigl.wann import activations, mutations, network, ranking
from tf_rigl.wann.population import Stack

some = settings(max_examples=30, deadline=None, derandomize=True, database=None)

# Written from the paper's list, with the standard library alone.
FUNCTIONS = {
    "linear": lambda x: x,
    "step": lambda x: float(x > 0),
    "sin": lambda x: math.sin(math.pi * x),
    "gaussian": lambda x: math.exp(-x * x / 2),
    "tanh": math.tanh,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "inverse": lambda x: -x,
    "absolute": abs,
    "relu": lambda x: max(x, 0.0),
    "cos": lambda x: math.cos(math.pi * x),
}


def outputs_of(net, row, weight):
    """Outputs by recursion, a node at a time."""
    edges = [tuple(edge) for edge in net.edges[net.enabled]]

    def value(node):
        if node < net.inputs:
            return float(row[node])
        if node == net.inputs:
            return 1.0
        total = sum(weight * value(source) for source, target in edges if target == node)
        return FUNCTIONS[activations.NAMES[net.kinds[node]]](total)

    return [value(net.inputs + 1 + number) for number in range(net.outputs)]


@st.composite
def networks(draw, least=0):
    rng = np.random.default_rng(draw(st.integers(0, 9999)))
    sizes = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    net = network.start(*sizes, draw(st.sampled_from([0.0, 0.5, 1.0])), rng)
    for _ in range(draw(st.integers(least, 25))):
        net = mutations.mutated(net, rng)
    return net


@some
@given(networks(), st.sampled_from([-2.0, -0.5, 1.0, 1.7]))
def test_a_network_computes_what_its_graph_says(net, weight):
    x = np.random.default_rng(0).normal(size=(3, net.inputs))
    expected = [outputs_of(net, row, weight) for row in x]
    found = Stack([net]).outputs_of(x, weight)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


@some
@given(st.integers(0, 99))
def test_networks_side_by_side_are_each_by_itself(seed):
    rng = np.random.default_rng(seed)
    nets = []
    for count in (0, 3, 20, 40):
        net = network.start(3, 2, 0.5, rng)
        for _ in range(count):
            net = mutations.mutated(net, rng)
        nets.append(net)
    x = rng.normal(size=(5, 3))
    together = Stack(nets).outputs_of(x, -1.3)
    for net, outputs in zip(nets, together, strict=True):
        np.testing.assert_allclose(
            Stack([net]).outputs_of(x, -1.3)[0], outputs, rtol=1e-5, atol=1e-6
        )


@some
@given(networks(), st.integers(0, 99))
def test_mutations_change_one_thing_and_keep_the_graph_forward(net, seed):
    rng = np.random.default_rng(seed)
    for function in mutations.MUTATIONS:
        child = function(net, rng)
        if child is None:
            continue
        nodes, edges = (
            len(child.kinds) - len(net.kinds),
            len(child.edges) - len(net.edges),
        )
        flipped = int(np.sum(child.enabled[: len(net.edges)] != net.enabled))
        retyped = int(np.sum(child.kinds[: len(net.kinds)] != net.kinds))
        expected = {
            mutations.insert_node: (1, 2, 1, 0),
            mutations.add_connection: (0, 1, 0, 0),
            mutations.enable_connection: (0, 0, 1, 0),
            mutations.change_activation: (0, 0, 0, 1),
        }[function]
        assert (nodes, edges, flipped, retyped) == expected
        check_graph(child)
    assert sum(mutations.MUTATIONS.values()) == pytest.approx(1)


def check_graph(net):
    """Edges lead to deeper nodes, never from outputs or to inputs, and none is twice there."""
    source, target = net.edges.T
    assert (net.depths[source] < net.depths[target]).all()
    is_output = (source >= net.first_output) & (source < net.first_hidden)
    assert not is_output.any()
    assert (target > net.inputs).all()
    assert len(set(map(tuple, net.edges))) == len(net.edges)
    assert (net.kinds[: net.first_hidden] == activations.LINEAR).all()


@some
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_fronts_are_those_of_pairs(rows):
    goals, left, expected = np.array(rows, float), set(range(len(rows))), {}
    number = 0
    while left:
        front = {
            i
            for i in left
            if not any(
                all(a >= b for a, b in zip(rows[j], rows[i], strict=True)) and rows[j] != rows[i]
                for j in left
            )
        }
        expected |= dict.fromkeys(front, number)
        left, number = left - front, number + 1
    assert ranking.fronts(goals).tolist() == [expected[i] for i in range(len(rows))]
    order = ranking.order(goals)
    assert sorted(order) == list(range(len(rows)))
    assert (np.diff([expected[i] for i in order]) >= 0).all()


def test_crowding_by_hand():
    goals = np.array([[0.0, 4.0], [1.0, 3.0], [3.0, 1.0], [4.0, 0.0]])
    np.testing.assert_allclose(ranking.crowding(goals), [np.inf, 0.75 + 0.75, 1.5, np.inf])


RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 4)).astype("float32")
Y = (X[:, 0] > 0).astype(int) + 2 * (X[:, 1] > 0)
TASK = wann.Classification(X, Y)


def same(one, other):
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("kinds", "edges", "enabled")
    )


def test_a_search_finds_better_networks_and_goes_on_where_it_was_cut_off(tmp_path, capsys):
    whole = wann.search(TASK, population=20, generations=12, seed=1, verbose=False)
    means = [row["mean"] for row in whole.history]
    assert means[-1] > means[0]
    assert (np.diff(means) >= 0).all()
    np.testing.assert_allclose(whole.best.scores(TASK, wann.searching.WEIGHTS).mean(), means[-1])
    folder = tmp_path / "search"
    wann.search(TASK, population=20, generations=5, seed=1, folder=folder, verbose=False)
    rest = wann.search(TASK, population=20, generations=12, seed=1, folder=folder)
    assert capsys.readouterr().out.count("connections") == 7
    assert [row["mean"] for row in rest.history] == means
    assert same(rest.best, whole.best)
    assert all(map(same, rest.population, whole.population))
    again = wann.search(TASK, population=20, generations=3, seed=1, folder=folder, verbose=False)
    assert len(again.history) == 12  # Nothing is thrown away.
    with pytest.raises(ValueError, match="`folder` must be absent, empty, or that of the same"):
        wann.search(TASK, population=20, generations=12, seed=2, folder=folder, verbose=False)


@pytest.mark.parametrize(
    "other",
    [
        wann.Classification(X, 3 - Y),
        wann.Classification(2 * X, Y),
        wann.Classification(X[1:], Y[1:]),
        wann.Classification(X, Y, score="accuracy"),
        wann.Classification(X, Y, classes=5),
    ],
)
def test_a_search_does_not_go_on_with_another_task(other, tmp_path):
    wann.search(TASK, population=5, generations=1, folder=tmp_path, verbose=False)
    with pytest.raises(ValueError, match="with other arguments or another task"):
        wann.search(other, population=5, generations=2, folder=tmp_path, verbose=False)


def test_other_wrong_uses_are_told():
    net = network.start(4, 4, 1.0, RNG)
    with pytest.raises(ValueError, match="`task` must be a `Classification`"):
        wann.search((X, Y), verbose=False)
    with pytest.raises(ValueError, match="`weights` must not be empty"):
        TASK.accuracy(net, [])
    for weight in (np.nan, [1, 2]):
        with pytest.raises(ValueError, match="`weight`"):
            net.to_keras(weight=weight)


def test_scores_that_are_no_numbers_are_the_worst():
    class Task:
        inputs, outputs = 2, 1

        def scores(self, networks, weights):
            found = np.ones((len(networks), len(weights)))
            found[::2] = np.nan
            found[1] = -np.inf
            found[3, 0] = 2
            return found

    found = wann.search(Task(), population=6, generations=3, verbose=False)
    assert np.isfinite(found.history[-1]["mean"])
    assert found.history[-1]["mean"] > 1


def test_scores_of_classification():
    net = network.start(4, 4, 1.0, RNG)
    logits = np.array([outputs_of(net, row, 0.5) for row in X])
    odds = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = np.log(odds[np.arange(len(Y)), Y]).mean()
    assert net.evaluate(TASK, 0.5) == pytest.approx(expected, rel=1e-5)
    by_accuracy = wann.Classification(X, Y, score="accuracy")
    assert net.evaluate(by_accuracy, 0.5) == pytest.approx((logits.argmax(1) == Y).mean())
    each, ensemble = TASK.accuracy(net, [0.5, 1.0])
    assert each[0] == pytest.approx((logits.argmax(1) == Y).mean())
    assert 0 <= ensemble <= 1


@some
@given(networks(least=5), st.sampled_from([-1.5, 0.7]))
def test_the_keras_model_computes_the_same(net, weight):
    keras.backend.clear_session(free_memory=False)
    x = np.random.default_rng(0).normal(size=(4, net.inputs)).astype("float32")
    model = net.to_keras(weight)
    np.testing.assert_allclose(
        model(x), Stack([net]).outputs_of(x, weight)[0], rtol=1e-4, atol=1e-4
    )
    kernels = [layer.kernel.numpy() for layer in model.layers if hasattr(layer, "kernel")]
    assert sum(map(np.count_nonzero, kernels)) == net.connections


def test_the_weights_of_connections_can_be_trained_and_exported(tmp_path):
    found = wann.search(TASK, population=20, generations=10, seed=0, verbose=False)
    sparse = found.best.to_keras(1.0, trainable=True)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    sparse.compile(keras.optimizers.Adam(0.05), loss, metrics=["accuracy"])
    before = sparse.evaluate(X, Y, verbose=0)
    sparse.fit(X, Y, epochs=20, verbose=0)
    assert sparse.evaluate(X, Y, verbose=0)[0] < before[0]
    weights = [item.weight.numpy() for item in sparse.masked_weights]
    assert sum(map(np.count_nonzero, weights)) <= found.best.connections
    info = tf_rigl.export_tflite(tf_rigl.strip(sparse), tmp_path / "net.tflite")
    assert info.max_abs_error < 1e-4


def test_a_picture(tmp_path):
    net = network.start(4, 2, 1.0, RNG)
    for _ in range(20):
        net = mutations.mutated(net, RNG)
    tf_rigl.plots.draw_network(net, tmp_path / "net.png")
    assert (tmp_path / "net.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"population": 4}, "`population` must be an integer of at least 5"),
        ({"generations": 0}, "`generations` must be an integer of at least 1"),
        ({"tournament": 0}, "`tournament`"),
        ({"density": 2}, "`density`"),
        ({"weights": []}, "`weights` must not be empty"),
        ({"seed": -1}, "`seed`"),
    ],
)
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        wann.search(TASK, verbose=False, **kwargs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: wann.Classification(X, Y[:5]), "`x` and `y` must have shapes"),
        (lambda: wann.Classification(X, Y.astype(float)), "`y` integers"),
        (lambda: wann.Classification(X, Y, score="loss"), "`score` must be one of"),
        (lambda: wann.Classification(X, Y - 1), "`y` must hold classes from 0 to 2"),
        (lambda: wann.Classification(X, Y, classes=3), "`y` must hold classes from 0 to 2"),
        (lambda: wann.Classification(X, Y, classes=0), "`classes`"),
        (lambda: wann.Classification(X[:0], Y[:0]), "`x` must have examples"),
        (lambda: wann.Classification(X + [np.nan, 0, 0, 0], Y), "`x` must .* be finite"),
    ],
)
def test_bad_data_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
