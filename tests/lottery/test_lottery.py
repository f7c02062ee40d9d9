"""Lottery tickets: the search against NumPy, cut off and taken up again; controls; scratch."""

import dataclasses
import math
import os
import pathlib
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from references import lottery_numpy

import tf_rigl
from tests.helpers import CLASSES, FEATURES, Subclassed, check_invariants, mlp, random_data
from tf_rigl import lottery

X, Y = random_data(batches=6)
RATE = 0.2
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
KERNELS = ["hidden/kernel", "head/kernel"]


def fit(model):
    """Trains on the batches that are left after the step where the model is."""
    model.compile(keras.optimizers.SGD(RATE), LOSS, run_eagerly=True)
    seen = 8 * model.step
    return model.fit(X[seen:], Y[seen:], batch_size=8, shuffle=False, verbose=0)


def double():
    """The model of the NumPy reference, in float64."""
    dense = keras.layers.Dense
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            dense(8, activation="relu", name="hidden", dtype="float64"),
            dense(CLASSES, name="head", dtype="float64"),
        ]
    )


def noisy(seed=3):
    """A model with statistics, and with randomness in its training."""
    keras.utils.set_random_seed(seed)
    k = keras.layers
    hidden = k.Dense(8, activation="relu", name="hidden")
    return keras.Sequential(
        [
            keras.Input((FEATURES,)), hidden, k.BatchNormalization(), k.Dropout(0.3),
            k.Dense(CLASSES, name="head"),
        ]
    )  # fmt: skip


def noisy_fit(model, callbacks=()):
    model.compile(keras.optimizers.Adam(0.01), LOSS, run_eagerly=True)
    return model.fit(X, Y, batch_size=8, verbose=0, callbacks=list(callbacks))


def same_arrays(one, other):
    return len(one) == len(other) and all(map(np.array_equal, one, other))


def check_equal(one, other):
    """Two tickets are the same, bit for bit."""
    assert list(one.masks) == list(other.masks)
    assert same_arrays(one.masks.values(), other.masks.values())
    assert same_arrays(one.weights, other.weights)
    assert (one.trained is None) == (other.trained is None)
    assert same_arrays(one.trained or [], other.trained or [])
    assert (one.round, one.rewind_step, one.history) == (
        other.round,
        other.rewind_step,
        other.history,
    )


class Cut(Exception):
    """What ends a training in its middle."""


def weights_of(model):
    return [np.array(keras.ops.convert_to_numpy(w)) for w in model.weights]


@pytest.fixture(scope="module")
def found():
    """A search of three rounds, for tests that only look at it: its model, its tickets."""
    model = noisy()
    return model, lottery.find_ticket(model, noisy_fit, rounds=3, rates={"head": 0.1}, seed=5)


# The search.


@pytest.mark.parametrize(
    ("arguments", "fractions"),
    [
        ({"rounds": 3}, (0.2, 0.2)),
        ({"rounds": 3, "scope": "global", "prune_fraction": 0.35}, (0.35, 0.35)),
        ({"rounds": 3, "rates": {"head": 0.1, "hidden/kernel": 0.3}}, (0.3, 0.1)),
        ({"rounds": 1, "prune_fraction": 0.8}, (0.8, 0.8)),
        ({"rounds": 2, "rewind_step": 2}, (0.2, 0.2)),
        ({"rounds": 2, "rewind_step": 5, "scope": "global"}, (0.2, 0.2)),
    ],
    ids=["layer", "global", "rates", "one-shot", "rewound", "rewound-global"],
)
def test_tickets_are_those_of_the_reference(arguments, fractions):
    model = double()
    before = weights_of(model)
    tickets = lottery.find_ticket(model, fit, **arguments)
    arguments = {"scope": "layer", "rewind_step": 0, **arguments}
    expected = lottery_numpy.search(
        before,
        [(X[i : i + 8].astype("float64"), Y[i : i + 8]) for i in range(0, len(X), 8)],
        learning_rate=np.float64(np.float32(RATE)),
        rounds=arguments["rounds"],
        scope=arguments["scope"],
        rewind_step=arguments["rewind_step"],
        fractions=fractions,
    )
    assert same_arrays(weights_of(model), before)
    assert len(tickets) == len(expected) == arguments["rounds"] + 1
    earlier = None
    for number, (ticket, (masks, weights, end)) in enumerate(zip(tickets, expected, strict=True)):
        assert (ticket.round, ticket.rewind_step) == (number, arguments["rewind_step"])
        assert list(ticket.masks) == KERNELS
        assert same_arrays(ticket.masks.values(), masks)
        sizes = [mask.size for mask in masks]
        counts = [lottery_numpy.kept(f, number, n) for f, n in zip(fractions, sizes, strict=True)]
        left = [np.count_nonzero(mask) for mask in ticket.masks.values()]
        if arguments["scope"] == "global":
            assert sum(left) == lottery_numpy.kept(fractions[0], number, sum(sizes))
        else:
            assert left == counts
        assert ticket.density == pytest.approx(sum(left) / sum(sizes))
        assert earlier is None or all((m <= e).all() for m, e in zip(masks, earlier, strict=True))
        earlier = masks
        for values, references in ((ticket.weights, weights), (ticket.trained, end)):
            for value, reference in zip(values, references, strict=True):
                np.testing.assert_allclose(value, reference, rtol=1e-6, atol=1e-8)
        assert len(ticket.history["loss"]) == 1
    if not arguments["rewind_step"]:
        assert same_arrays(tickets[-1].weights, before)


def test_rewound_weights_are_those_of_the_step_bit_for_bit():
    """Those of an ordinary Keras model after three batches, its statistics too."""
    model = noisy()
    twin = noisy()
    assert same_arrays(weights_of(model), weights_of(twin))
    tickets = lottery.find_ticket(model, noisy_fit, rounds=1, rewind_step=3, seed=5)
    keras.utils.set_random_seed(5)
    order = []

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            order.append(batch)
            if len(order) == 3:
                raise Cut

    with pytest.raises(Cut):
        noisy_fit(twin, [Stop()])
    expected = weights_of(twin)
    moved = [not np.array_equal(a, b) for a, b in zip(expected, weights_of(model), strict=True)]
    assert all(moved)  # The statistics of normalisation are among them.
    for ticket in tickets:
        assert same_arrays(ticket.weights, expected)
    sparse = tickets[1].model(model)
    assert sparse.step == 3
    check_invariants(sparse)
    for item in sparse.masked_weights:
        mask = tickets[1].masks[item.path]
        (start,) = (w for w in expected if w.shape == mask.shape)
        np.testing.assert_array_equal(item.dense().numpy(), start * mask)


def test_a_ticket_makes_models_that_train_on_under_its_mask(found):
    model, tickets = found
    before = weights_of(model)
    for ticket in tickets:
        sparse, trained = ticket.model(model), ticket.model(model, trained=True)
        check_invariants(sparse)
        check_invariants(trained)
        assert all(np.array_equal(sparse.masks[path], ticket.masks[path]) for path in KERNELS)
        assert sparse.sparsity == pytest.approx(1 - ticket.density)
        assert same_arrays(
            lottery.ticket.values(lottery.ticket.dense_weights(trained)), ticket.trained
        )
        noisy_fit(sparse)
        check_invariants(sparse)
    assert same_arrays(weights_of(model), before)
    assert repr(tickets[2]) == f"Ticket(round=2, density={tickets[2].density:.4f}, rewind_step=0)"


def test_a_ticket_is_trained_again_to_the_same_weights(found):
    model, tickets = found
    sparse = tickets[2].model(model)
    keras.utils.set_random_seed(5)
    noisy_fit(sparse)
    values = lottery.ticket.values(lottery.ticket.dense_weights(sparse))
    assert same_arrays(values, tickets[2].trained)


def test_layers_left_out_have_no_mask():
    tickets = lottery.find_ticket(mlp(), fit, rounds=1, exclude=["head"])
    assert list(tickets[1].masks) == ["hidden/kernel"]
    assert tickets[1].density == pytest.approx(64 / 80)


def test_subclassed_models():
    model = Subclassed()
    model(X)
    before = weights_of(model)
    tickets = lottery.find_ticket(model, fit, rounds=2, rewind_step=2)
    assert same_arrays(weights_of(model), before)
    assert tickets[2].density == 68 / 104
    check_invariants(tickets[2].model(model))


def test_a_global_search_may_empty_a_layer():
    model = mlp()
    model.get_layer("head").kernel.assign(np.full((8, CLASSES), 1e-6))

    def grow(sparse):
        for item in sparse.masked_weights:
            item.weight.assign(1.5 * item.weight)

    with pytest.warns(UserWarning, match=r"Round 1 leaves no weights in \['head/kernel'\]"):
        tickets = lottery.find_ticket(model, grow, rounds=1, prune_fraction=0.5, scope="global")
    assert not tickets[1].masks["head/kernel"].any()
    assert tickets[1].history == {}
    check_invariants(tickets[1].model(model), {"hidden/kernel": 52, "head/kernel": 0})


def train_a_copy(sparse):
    """Trains, but not what it is given."""
    copy = tf_rigl.strip(sparse)
    copy.compile("sgd", LOSS)
    copy.train_on_batch(X[:8], Y[:8])


@pytest.mark.parametrize("wrong", [lambda sparse: None, train_a_copy])
def test_a_fit_that_trains_something_else(wrong, tmp_path):
    with pytest.raises(ValueError, match="`fit` must train the model that it is called with"):
        lottery.find_ticket(mlp(), wrong, rounds=1, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["search.json"]


def test_no_rounds_are_the_dense_network():
    (ticket,) = lottery.find_ticket(mlp(), fit, rounds=0)
    assert ticket.density == 1


# What is stored.


class CutOff(keras.callbacks.Callback):
    """Ends a training in its middle, by a function."""

    def __init__(self, end):
        super().__init__()
        self.end = end

    def on_train_batch_end(self, batch, logs=None):
        if batch == 3:
            self.end()


def cut():
    raise Cut


def search(folder, end=None, at=None, rewind_step=0, done=None):
    """A search of two rounds, which may be ended in the middle of one."""
    done = [] if done is None else done

    def one(model):
        done.append(model.sparsity)
        return noisy_fit(model, [CutOff(end)] if len(done) - 1 == at else [])

    return lottery.find_ticket(
        noisy(), one, rounds=2, rewind_step=rewind_step, seed=1, folder=folder
    )


@pytest.mark.parametrize(("rewind_step", "at"), [(0, 0), (2, 1), (0, 2)])
def test_a_search_that_was_cut_off_goes_on_to_the_same_tickets(rewind_step, at, tmp_path):
    whole = search(None, rewind_step=rewind_step)
    with pytest.raises(Cut):
        search(tmp_path, cut, at, rewind_step)
    assert len(list(tmp_path.glob("round_*.npz"))) == at
    done = []
    for one, other in zip(whole, search(tmp_path, None, None, rewind_step, done), strict=True):
        check_equal(one, other)
    assert len(done) == 3 - at
    again = []
    for one, other in zip(whole, search(tmp_path, None, None, rewind_step, again), strict=True):
        check_equal(one, other)
    assert again == []


# What is forked has imported TensorFlow, which takes longest, but not used it yet: there is but one
# thread.
PROCESS = """
import os, signal, sys
import tensorflow as tf
from tests.lottery.test_lottery import check_equal, search
folder, again = sys.argv[1], []
assert len(os.listdir("/proc/self/task")) == 1
pid = os.fork()
tf.config.experimental.enable_op_determinism()
if pid == 0:
    search(folder, lambda: os.kill(os.getpid(), signal.SIGKILL), at=1)
    os._exit(1)
assert os.waitpid(pid, 0)[1] == signal.SIGKILL
assert sorted(os.listdir(folder)) == ["round_00.npz", "search.json"]
for one, other in zip(search(folder, done=again), search(None), strict=True):
    check_equal(one, other)
assert len(again) == 2
"""


def test_a_process_that_was_killed_goes_on_to_the_same_tickets(tmp_path):
    root = pathlib.Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), str(root / "tests")])
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": paths}
    environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROCESS, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def stored(folder, **changes):
    keras.utils.set_random_seed(0)
    arguments = {"rounds": 2, "folder": folder, "fit": fit, "model": mlp(), **changes}
    return lottery.find_ticket(**arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A search that has ended."""
    place = tmp_path_factory.mktemp("search")
    return place, stored(place)


def test_more_rounds_are_done_in_the_same_folder(folder, tmp_path):
    shutil.copytree(folder[0], tmp_path, dirs_exist_ok=True)
    calls = []
    tickets = stored(tmp_path, rounds=3, fit=lambda model: calls.append(model) or fit(model))
    assert len(calls) == 1
    for one, other in zip(folder[1], tickets, strict=False):
        check_equal(one, other)
    assert tickets[3].density == 54 / 104


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"seed": 1}}, "differs in weights"),
        ({"model": {"activation": "relu"}}, "differs in layers"),
        ({"prune_fraction": 0.3}, r"fractions\['hidden/kernel'\] \(0.2 there, 0.3 here\)"),
        ({"rates": {"head": 0.1}}, r"fractions\['head/kernel'\] \(0.2 there, 0.1 here\)"),
        ({"exclude": ["head"]}, r"fractions\['head/kernel'\] \(0.2 there, None here\)"),
        ({"scope": "global"}, r"differs in scope \('layer' there, 'global' here\)"),
        (
            {"rewind_step": 1, "seed": 2},
            r"differs in rewind_step \(0 there, 1 here\), seed \(0 there, 2 here\)",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_a_folder_of_another_search_is_refused(changes, message, folder):
    before = {path: path.read_bytes() for path in folder[0].iterdir()}
    if "model" in changes:
        keras.utils.set_random_seed(changes["model"].get("seed", 0))
        model = mlp()
        name = changes["model"].get("activation", "tanh")
        model.get_layer("hidden").activation = keras.activations.get(name)
        changes = {"model": model}
    with pytest.raises(ValueError, match=rf"Argument `folder` .*{message}\. Received: folder='"):
        stored(folder[0], **changes)
    assert {path: path.read_bytes() for path in folder[0].iterdir()} == before


@pytest.mark.parametrize("name", ["round_00.npz", "thesis.txt"])
def test_folders_of_others_are_left_alone(name, tmp_path):
    (tmp_path / name).write_text("all of it")
    with pytest.raises(ValueError, match="something other than an earlier run"):
        stored(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_rounds_of_another_search_are_refused(folder, tmp_path):
    shutil.copytree(folder[0], tmp_path, dirs_exist_ok=True)
    for one, other in (("round_02.npz", "round_01.npz"), ("round_01.npz", "round_02.npz")):
        shutil.copy(folder[0] / one, tmp_path / other)
        with pytest.raises(ValueError, match=f"{other}' cannot be used: it holds another"):
            stored(tmp_path)
        shutil.copy(folder[0] / other, tmp_path / other)
    path = tmp_path / "round_00.npz"
    dataclasses.replace(lottery.Ticket.load(path), trained=None).save(path)
    with pytest.raises(ValueError, match="holds another ticket"):
        stored(tmp_path)


def test_damaged_rounds_are_refused(folder, tmp_path):
    shutil.copytree(folder[0], tmp_path, dirs_exist_ok=True)
    path = tmp_path / "round_01.npz"
    content = path.read_bytes()
    for damaged in (b"", b"nonsense", content[: len(content) // 2], content[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"round_01\.npz' holds no ticket"):
            stored(tmp_path)


def test_a_changed_byte_is_seen_or_does_no_harm(folder, tmp_path):
    content = (folder[0] / "round_01.npz").read_bytes()
    path, refused = tmp_path / "ticket.npz", 0
    places = np.random.default_rng(0).choice(len(content), 200, replace=False)
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(place) % 8
        path.write_bytes(damaged)
        try:
            check_equal(lottery.Ticket.load(path), folder[1][1])
        except ValueError:
            refused += 1
    assert refused > len(places) / 4


def test_tickets_of_all_types_are_read_as_they_were_written(tmp_path):
    rng = np.random.default_rng(0)
    bfloat16 = keras.ops.convert_to_numpy(keras.ops.ones((2, 3), "bfloat16"))
    ticket = lottery.Ticket(
        {"a/kernel": rng.random((3, 5)) < 0.5, "b": rng.random((2, 1, 3)) < 0.5},
        [rng.normal(size=(3, 5)), np.float32(2).reshape(()), bfloat16],
        rewind_step=7,
        round=12,
        history={"loss": [1.0, math.inf]},
    )
    ticket.save(tmp_path / "a" / "t.npz")
    again = lottery.Ticket.load(tmp_path / "a" / "t.npz")
    check_equal(ticket, again)
    assert [w.dtype for w in again.weights] == [w.dtype for w in ticket.weights]
    with pytest.raises(FileNotFoundError):
        lottery.Ticket.load(tmp_path / "b.npz")


# Errors.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rounds": -1}, "Argument `rounds` must be an integer of at least 0"),
        ({"rounds": 1.5}, "Argument `rounds`"),
        ({"rewind_step": -1}, "Argument `rewind_step`"),
        ({"seed": None}, "Argument `seed`"),
        ({"prune_fraction": 0}, r"Argument `prune_fraction` must be a number in \(0, 1\)"),
        ({"prune_fraction": 1.0}, "Argument `prune_fraction`"),
        ({"prune_fraction": True}, "Argument `prune_fraction`"),
        ({"prune_fraction": "0.2"}, "Argument `prune_fraction`"),
        ({"scope": "globl"}, "Argument `scope` .*Did you mean 'global'"),
        ({"rates": {"head": 1.0}}, r"Argument `rates\['head'\]`"),
        ({"rates": {"heat": 0.1}}, "Argument `rates` .*Did you mean 'head"),
        ({"rates": [0.1]}, "Argument `rates` must be a mapping"),
        ({"rates": {"head": 0.1}, "scope": "global"}, "Argument `rates` must be a mapping"),
        ({"rates": {"head": 0.1}, "exclude": ["head"]}, "Argument `rates`"),
        ({"exclude": "head"}, "Argument `exclude`"),
        ({"exclude": ["nothing"]}, "'nothing' matches no maskable layer"),
        ({"rewind_step": 7}, "Argument `rewind_step` .*ended at step 6"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=f"{message}.*Received"):
        lottery.find_ticket(mlp(), fit, **{"rounds": 1, **arguments})


def test_models_that_cannot_be_searched():
    for model in (keras.Sequential([keras.layers.Dense(3)]), "mlp"):
        with pytest.raises(ValueError, match="Argument `model` must be a built"):
            lottery.find_ticket(model, fit)
    with pytest.raises(ValueError, match="Argument `model` must be dense"):
        lottery.find_ticket(tf_rigl.sparsify(mlp(), "static", sparsity=0.5), fit)


def test_a_fit_that_returns_something_else():
    with pytest.raises(ValueError, match="Argument `fit` must be a function that returns"):
        lottery.find_ticket(mlp(), lambda model: 3.0, rounds=1)


def test_a_history_is_kept_as_far_as_json_can_hold_it(tmp_path):
    history = {
        "loss": [np.float32(1.5), None],
        "by_class": {"a": [np.int64(1)]},
        "ragged": [[1], [1, 2]],
        "confusion": [keras.ops.ones((2, 2))],
        "when": [object()],
    }
    with pytest.warns(UserWarning, match="History 'when' is left out"):
        (ticket,) = lottery.find_ticket(mlp(), lambda model: history, rounds=0, folder=tmp_path)
    assert ticket.history == {
        "loss": [1.5, None],
        "by_class": {"a": [1]},
        "ragged": [[1], [1, 2]],
        "confusion": [[[1.0, 1.0], [1.0, 1.0]]],
    }
    assert lottery.Ticket.load(tmp_path / "round_00.npz").history == ticket.history


def test_weights_that_are_not_finite_are_told_of():
    def diverge(model):
        model.masked_weights[0].weight.assign(np.full((FEATURES, 8), np.nan))

    model = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(8, name="only")])
    with pytest.warns(UserWarning, match=r"round 0 .*not finite.*only/kernel"):
        lottery.find_ticket(model, diverge, rounds=1)


def test_models_with_losses_that_keras_cannot_find_again():
    model = mlp()
    model.compile("sgd", lambda y, prediction: keras.ops.mean(prediction**2))
    tickets = lottery.find_ticket(model, fit, rounds=1)
    assert model.compiled
    lottery.scratch_e(tickets[1], model, trainer([]), 1)


@pytest.mark.filterwarnings("ignore:Keras cannot clone")
def test_a_model_that_cannot_be_cloned_has_its_weights_back(tmp_path):
    class Own(keras.Model):
        def __init__(self, units):
            super().__init__()
            self.hidden = keras.layers.Dense(units, name="hidden")
            self.dropout = keras.layers.Dropout(0.3, seed=1)

        def call(self, x, training=False):
            return self.dropout(self.hidden(x), training=training)

        def get_config(self):
            raise NotImplementedError("none")

    model = Own(CLASSES)
    model(X[:1])
    before = weights_of(model)
    whole = lottery.find_ticket(model, fit, rounds=2, folder=tmp_path / "whole")
    assert same_arrays(weights_of(model), before)
    (tmp_path / "cut").mkdir()
    for name in ("search.json", "round_00.npz"):
        shutil.copy(tmp_path / "whole" / name, tmp_path / "cut" / name)
    for one, other in zip(
        whole, lottery.find_ticket(model, fit, rounds=2, folder=tmp_path / "cut"), strict=True
    ):
        check_equal(one, other)
    with pytest.raises(ValueError, match="Argument `model` must be a model that Keras can clone"):
        lottery.reinitialised(whole[1], model)


def test_a_model_with_a_step_of_its_own_is_searched_by_it():
    traces, rounds = [], []

    class Stepping(Subclassed):
        def train_step(self, data):
            traces.append(self)
            return super().train_step(data)

    model = Stepping()
    model(X[:1])

    def counted(model):
        before = len(traces)
        history = fit(model)
        rounds.append(len(traces) - before)
        return history

    assert len(lottery.find_ticket(model, counted, rounds=1)) == 2
    assert len(rounds) == 2
    assert all(rounds)


def test_a_rewind_step_within_an_execution_of_several():
    def several(model):
        model.compile("sgd", LOSS, steps_per_execution=2)
        return model.fit(X, Y, batch_size=8, verbose=0)

    with pytest.raises(ValueError, match="must be a multiple of `steps_per_execution`"):
        lottery.find_ticket(mlp(), several, rounds=1, rewind_step=3)


def test_tickets_of_other_models(found):
    other = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(8, name="hidden")])
    with pytest.raises(ValueError, match="`model` must have a weight for each mask"):
        found[1][1].model(other)
    with pytest.raises(ValueError, match="`model` must be a dense"):
        found[1][1].model(found[1][1].model(found[0]))
    with pytest.raises(ValueError, match="Argument `model` must have the weights"):
        found[1][1].model(mlp())
    with pytest.raises(ValueError, match="has not been trained"):
        lottery.random_mask(found[1][1]).model(found[0], trained=True)


# The controls.


def counts(ticket):
    return {path: np.count_nonzero(mask) for path, mask in ticket.masks.items()}


def test_a_random_mask_has_the_numbers_of_each_layer_and_the_same_weights(found):
    ticket = found[1][3]
    one, other, again = (lottery.random_mask(ticket, seed) for seed in (0, 1, 0))
    for control in (one, other):
        assert counts(control) == counts(ticket)
        assert same_arrays(control.weights, ticket.weights)
        assert (control.trained, control.history) == (None, {})
        assert control.round == 3
    check_equal(one, again)
    different = [one, other, ticket]
    for n, a in enumerate(different):
        for b in different[n + 1 :]:
            assert not np.array_equal(a.masks["hidden/kernel"], b.masks["hidden/kernel"])
    # By chance as many of each unit's would be left only rarely.
    assert not np.array_equal(*(t.masks["hidden/kernel"].sum(0) for t in (one, ticket)))


def test_a_random_mask_is_drawn_evenly(found):
    masks = [lottery.random_mask(found[1][3], seed).masks["hidden/kernel"] for seed in range(400)]
    share = np.mean(masks, axis=0)
    # Five standard deviations of a mean of 400 draws.
    np.testing.assert_allclose(share, masks[0].mean(), atol=5 * 0.5 / 20)


def test_a_shuffled_mask_has_the_numbers_of_each_unit(found):
    model, ticket = found[0], found[1][3]
    one, other, again = (lottery.shuffled(ticket, model, seed) for seed in (0, 1, 0))
    check_equal(one, again)
    for path, mask in ticket.masks.items():
        for control in (one, other):
            np.testing.assert_array_equal(control.masks[path].sum(0), mask.sum(0))
    assert not np.array_equal(one.masks["hidden/kernel"], other.masks["hidden/kernel"])
    assert not np.array_equal(one.masks["hidden/kernel"], ticket.masks["hidden/kernel"])
    assert same_arrays(one.weights, ticket.weights)


def test_resampled_weights_are_of_those_that_the_mask_keeps(found):
    model, ticket = found[0], found[1][3]
    one, other, again = (lottery.resampled(ticket, model, seed) for seed in (0, 1, 0))
    check_equal(one, again)
    assert same_arrays(one.masks.values(), ticket.masks.values())
    masks = [ticket.masks.get(w.path.partition("/")[2]) for w in model.weights]
    assert sum(mask is not None for mask in masks) == len(ticket.masks)
    for mask, old, new, newer in zip(
        masks, ticket.weights, one.weights, other.weights, strict=True
    ):
        if mask is None:
            np.testing.assert_array_equal(new, old)
            continue
        assert set(new[mask]) < set(old[mask])  # Some are drawn twice, so others are not.
        assert not np.array_equal(new[mask], newer[mask])
        np.testing.assert_array_equal(new[~mask], old[~mask])
    with pytest.raises(ValueError, match="Argument `model` must be the one that was searched"):
        lottery.resampled(ticket, keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))


@pytest.mark.parametrize(
    ("layer", "axes"),
    [
        (keras.layers.Conv2D(5, 3, name="layer"), (0, 1, 2)),
        (keras.layers.Conv2DTranspose(5, 3, name="layer"), (0, 1, 3)),
        (keras.layers.EinsumDense("abcd,dhk->abchk", (None, None, 5, 3), name="layer"), (0,)),
    ],
)
def test_shuffling_keeps_the_units_of_every_layer(layer, axes):
    model = keras.Sequential([keras.Input((6, 6, 8)), layer])
    mask = np.random.default_rng(0).random(tuple(layer.kernel.shape)) < 0.3
    ticket = lottery.Ticket({"layer/kernel": mask}, [])
    (new,) = lottery.shuffled(ticket, model).masks.values()
    np.testing.assert_array_equal(new.sum(axes), mask.sum(axes))
    assert not np.array_equal(new, mask)
    with pytest.raises(ValueError, match="Argument `model` must be the one that was searched"):
        lottery.shuffled(ticket, mlp())


def test_new_weights_under_the_same_mask(found):
    model, tickets = found
    one, other, again = (lottery.reinitialised(tickets[2], model, seed) for seed in (0, 1, 0))
    check_equal(one, again)
    assert same_arrays(one.masks.values(), tickets[2].masks.values())
    paths = [w.path for w in model.weights]
    for path, new, newer, old in zip(
        paths, one.weights, other.weights, weights_of(model), strict=True
    ):
        if "kernel" in path:
            assert not np.array_equal(new, old)
            assert not np.array_equal(new, newer)
            limit = math.sqrt(6 / sum(new.shape))  # Glorot's uniform distribution.
            assert limit / 2 < np.abs(new).max() <= limit
        else:  # Biases and statistics begin where they began.
            np.testing.assert_array_equal(new, old)
    assert one.model(model).step == 0


def test_new_weights_are_not_those_of_a_model_made_by_the_same_seed():
    keras.utils.set_random_seed(0)
    model = mlp()
    (ticket,) = lottery.find_ticket(model, lambda model: None, rounds=0)
    new = lottery.reinitialised(ticket, model, seed=0)
    assert not np.array_equal(new.weights[0], ticket.weights[0])


def test_what_is_not_trained_keeps_its_values():
    normalise = keras.layers.Normalization()
    normalise.adapt(X)
    frozen = keras.layers.Dense(4, name="frozen", trainable=False)
    model = keras.Sequential([keras.Input((FEATURES,)), normalise, frozen, keras.layers.Dense(3)])
    (ticket,) = lottery.find_ticket(model, lambda model: None, rounds=0)
    before, new = weights_of(model), lottery.reinitialised(ticket, model).weights
    assert len(before) == 7
    changed = [not np.array_equal(a, b) for a, b in zip(before, new, strict=True)]
    assert [model.weights[n].path for n in np.flatnonzero(changed)] == [
        model.layers[-1].kernel.path
    ]


def test_initializers_with_seeds_of_their_own_are_refused():
    layer = keras.layers.Dense(3, kernel_initializer=keras.initializers.HeNormal(seed=1))
    model = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(4), layer])
    (ticket,) = lottery.find_ticket(model, lambda model: None, rounds=0)
    with pytest.raises(ValueError, match=f"draws the same weights again.*{layer.kernel.path}"):
        lottery.reinitialised(ticket, model)


def test_initializers_without_chance_are_no_hindrance():
    layers = [keras.Input((4, FEATURES)), keras.layers.LSTM(3), keras.layers.Dense(3)]
    model = keras.Sequential(layers)
    (ticket,) = lottery.find_ticket(model, lambda model: None, rounds=0)
    new = lottery.reinitialised(ticket, model)
    assert not np.array_equal(new.weights[0], ticket.weights[0])
    np.testing.assert_array_equal(new.weights[2], ticket.weights[2])  # The forget gate's ones.


def test_new_weights_come_with_new_statistics_unless_they_are_frozen():
    k = keras.layers
    layers = [k.BatchNormalization(trainable=False), k.Dense(CLASSES), k.BatchNormalization()]
    model = keras.Sequential([keras.Input((FEATURES,)), *layers])
    for layer in (layers[0], layers[2]):
        layer.moving_mean.assign(keras.ops.full_like(layer.moving_mean, 3.0))
        layer.moving_variance.assign(keras.ops.full_like(layer.moving_variance, 2.0))
    new = lottery.scratch_e(model, model, lambda model, epochs: None, 1).model
    kept, _, fresh = new.layers
    assert (kept.moving_mean[0], kept.moving_variance[0]) == (3.0, 2.0)
    assert (fresh.moving_mean[0], fresh.moving_variance[0]) == (0.0, 1.0)


def test_a_mask_found_elsewhere(found):
    _, tickets = found
    other = noisy(seed=9)
    (elsewhere,) = lottery.find_ticket(other, lambda model: None, rounds=0)
    control = lottery.transplanted(elsewhere, tickets[2])
    assert same_arrays(control.masks.values(), tickets[2].masks.values())
    assert same_arrays(control.weights, weights_of(other))
    assert (control.round, control.trained) == (2, None)
    check_invariants(control.model(other))
    (wider,) = lottery.find_ticket(
        keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)]), lambda model: None, rounds=0
    )
    with pytest.raises(ValueError, match="Argument `other` must be a ticket"):
        lottery.transplanted(wider, tickets[2])


def test_warm_up_rises_in_equal_steps():
    rates = [float(lottery.warm_up(0.4, 4)(step)) for step in range(6)]
    np.testing.assert_allclose(rates, [0.1, 0.2, 0.3, 0.4, 0.4, 0.4], rtol=1e-6)
    cosine = keras.optimizers.schedules.CosineDecay(0.4, 8)
    rates = [float(lottery.warm_up(cosine, 2)(step)) for step in range(9)]
    expected = [0.2 * (1 + math.cos(math.pi * t / 8)) for t in range(9)]
    expected[0] /= 2
    np.testing.assert_allclose(rates, expected, atol=1e-6)
    assert float(lottery.warm_up(0.4, 0)(0)) == pytest.approx(0.4)
    steps = keras.optimizers.schedules.PiecewiseConstantDecay([2], [0.4, 0.2])
    rates = [float(lottery.from_step(steps, 1)(step)) for step in range(3)]
    np.testing.assert_allclose(rates, [0.4, 0.4, 0.2], rtol=1e-6)
    with pytest.raises(ValueError, match="Argument `steps`"):
        lottery.warm_up(0.4, -1)


def test_schedules_are_saved_with_their_optimizer(tmp_path):
    cosine = keras.optimizers.schedules.CosineDecay(0.4, 8)
    schedule = lottery.from_step(lottery.warm_up(cosine, 4), 1)
    sparse = tf_rigl.sparsify(mlp(), "static", sparsity=0.5, seed=0)
    sparse.compile(keras.optimizers.SGD(schedule), LOSS)
    sparse.fit(X, Y, batch_size=8, verbose=0)
    sparse.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    for step in range(8):
        assert float(again.optimizer._learning_rate(step)) == float(schedule(step))
    assert float(again.optimizer.learning_rate) == pytest.approx(float(schedule(6)))


# From scratch, or fine-tuned.


def trainer(calls):
    """A `fit` that notes what it is given."""

    def train(model, epochs):
        calls.append((weights_of(model), epochs))
        model.compile("sgd", LOSS, run_eagerly=True)
        return model.fit(X, Y, batch_size=24, epochs=epochs, verbose=0).history["loss"]

    return train


def test_a_ticket_from_scratch_and_fine_tuned(found):
    model, tickets = found
    before, calls = weights_of(model), []
    ticket = tickets[3]
    equal = lottery.scratch_e(ticket, model, trainer(calls), 2, seed=4)
    budget = lottery.scratch_b(ticket, model, trainer(calls), 2, seed=4)
    tuned = lottery.fine_tune(ticket, model, trainer(calls), 1, before=tickets[2])
    again = lottery.scratch_e(ticket, model, trainer(calls), 2, seed=4)
    assert same_arrays(weights_of(model), before)
    # 41 of 80 and 17.5 of 24 multiplications: 2 x 104 / 59 is 3.5.
    left = sum(counts(ticket).values())
    assert [each.epochs for each in (equal, budget, tuned)] == [2, round(2 * 104 / left), 1]
    assert [epochs for _, epochs in calls] == [2, round(2 * 104 / left), 1, 2]
    for each in (equal, budget, tuned):
        assert len(each.result) == each.epochs
        check_invariants(each.model)
        assert all(np.array_equal(each.model.masks[p], m) for p, m in ticket.masks.items())
    assert same_arrays(calls[0][0], calls[1][0])
    assert same_arrays(weights_of(equal.model), weights_of(again.model))
    new = lottery.reinitialised(ticket, model, seed=4).model(model)
    assert same_arrays(calls[0][0], weights_of(new))
    kernels = [n for n, w in enumerate(model.weights) if w.path.endswith("kernel")]
    for value, trained in zip(calls[2][0], tickets[2].trained, strict=False):
        mask = next((m for m in ticket.masks.values() if m.shape == trained.shape), 1)
        np.testing.assert_array_equal(value, trained * mask)
    assert len(kernels) == 2


def test_a_smaller_model_from_scratch_and_fine_tuned():
    def make(units):
        hidden = keras.layers.Dense(units, activation="relu")
        return keras.Sequential([keras.Input((FEATURES,)), hidden, keras.layers.Dense(CLASSES)])

    dense, small, calls = make(12), make(4), []
    before = weights_of(small)
    budget = lottery.scratch_b(small, dense, trainer(calls), 2, at_most=10)
    capped = lottery.scratch_b(small, dense, trainer(calls), 2)
    tuned = lottery.fine_tune(small, dense, trainer(calls), 1)
    assert [each.epochs for each in (budget, capped, tuned)] == [6, 4, 1]
    assert same_arrays(weights_of(small), before)
    assert same_arrays(calls[2][0], before)
    assert not np.array_equal(calls[0][0][0], before[0])
    assert not same_arrays(weights_of(tuned.model), before)


def test_what_has_masks_is_no_smaller_model():
    sparse = tf_rigl.sparsify(mlp(), "static", sparsity=0.5)
    for protocol in (lottery.scratch_e, lottery.scratch_b, lottery.fine_tune):
        with pytest.raises(ValueError, match="Argument `pruned` must be"):
            protocol(sparse, mlp(), trainer([]), 1)


def test_bad_arguments_of_scratch(found):
    model, tickets = found
    train = trainer([])
    for at_most in (0.5, True, "2", math.nan):
        with pytest.raises(ValueError, match="Argument `at_most`"):
            lottery.scratch_b(tickets[1], model, train, 1, at_most=at_most)
    with pytest.raises(ValueError, match="Argument `epochs`"):
        lottery.scratch_e(tickets[1], model, train, 0)
    with pytest.raises(ValueError, match="Argument `pruned`"):
        lottery.fine_tune("ticket", model, train, 1)
    for before in (None, lottery.random_mask(tickets[0]), tickets[1]):
        with pytest.raises(ValueError, match="Argument `before`"):
            lottery.fine_tune(tickets[1], model, train, 1, before=before)
