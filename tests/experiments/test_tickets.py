"""`tf-rigl tickets`: one real small run; the rest on trainings that are made up."""

import dataclasses
import json

import keras
import numpy as np
import pytest

from tf_rigl import data, lottery, models, plots
from tf_rigl.experiments import cli, ticket_table, ticket_training
from tf_rigl.experiments import tickets as experiment
from tf_rigl.experiments.ticket_settings import CONTROLS
from tf_rigl.experiments.tickets import TicketSettings, compared_rounds, tickets

COMMAND = ["tickets", "--rounds", "3", "--seeds", "2", "--densities", "0.64", "0.5"]
COMMAND += ["--output", "out"]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(keras.backend, "clear_session", lambda **_: None)
    return tmp_path


@pytest.fixture
def trainings(monkeypatch):
    """Replaces training; collects the densities, in percent, and seeds of what is trained."""
    done = []

    def train(model, settings, images, seed):
        density = 1 - model.sparsity
        for item in model.masked_weights:
            item.weight.assign(1.01 * item.weight)
        done.append((round(100 * density), seed))
        # The least loss is at the second of three evaluations.
        step = round(1000 * density) + 10 * seed
        return {
            "step": [1, step, 2000],
            "val_loss": [0.5, 0.2, 0.3],
            "val_accuracy": [0.6, 0.7, 0.8],
            "test_loss": [0.5, 0.4, 0.1 + seed],
            "test_accuracy": [0.1, 0.8 + seed / 10, 0.4],
        }

    arrays = tuple(np.zeros((24, 2, 2, 1), "float32") for _ in "ab"), np.arange(24) % 3
    images = {"train": (arrays[0][0], arrays[1]), "test": (arrays[0][1], arrays[1])}
    monkeypatch.setattr(ticket_training, "arrays", lambda *_: images)
    monkeypatch.setattr(ticket_training, "train", train)
    monkeypatch.setattr(plots, "draw_tickets", lambda rows, path: path.write_text("drawn"))
    return done


def test_a_real_run(in_empty_folder, capsys):
    command = ["tickets", "--rounds", "2", "--seeds", "2", "--epochs", "2", "--every", "20"]
    command += ["--rewind-step", "20", "--warm-up", "30", "--densities", "0.64"]
    command += ["--controls", "reinitialised", "random", "shuffled", "--output", "out"]
    assert cli.main(command) == 0
    folder = in_empty_folder / "out"
    names = {"result.json", "table.md", "tickets.png", "tickets", "runs"}
    assert {path.name for path in folder.iterdir()} == names
    assert (folder / "tickets.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((folder / "result.json").read_text())
    assert result["command"].startswith("tf-rigl tickets --rounds 2")
    rows = {(row["kind"], row["round"]): row for row in result["rows"]}
    assert list(rows) == [
        ("ticket", 0), ("ticket", 1), ("ticket", 2),
        ("reinitialised", 2), ("random", 2), ("shuffled", 2),
    ]  # fmt: skip
    sizes, rates = (64 * 300, 300 * 100, 100 * 10), (0.2, 0.2, 0.1)
    left = sum(n * (1 - p) ** 2 for n, p in zip(sizes, rates, strict=True)) / sum(sizes)
    assert rows["ticket", 2]["density"] == pytest.approx(left, abs=1e-4)
    for row in rows.values():
        assert row["seeds"] == [0, 1]
        assert all(0.2 < accuracy <= 1 for accuracy in row["accuracy"]["values"])
        assert set(row["stop_step"]["values"]) <= {20, 40, 60}
    text = capsys.readouterr().out
    assert (folder / "table.md").read_text() in text
    assert f"[12/12, 0 min left] shuffled of {left:.1%}, seed 1: 0." in text

    ticket = lottery.Ticket.load(folder / "tickets" / "seed1" / "round_01.npz")
    history, dense = ticket.history, ticket.load(folder / "tickets" / "seed1" / "round_00.npz")
    assert history["step"] == [40, 60]
    assert dense.history["step"] == [20, 40, 60]
    # The last figures are those of the trained weights, by Keras on all test data.
    images = data.load("digits", 360)
    keras.utils.set_random_seed(0)
    model = ticket.model(models.lenet_300_100((8, 8, 1), 10), trained=True)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss, metrics=["accuracy"])
    figures = model.evaluate(images.test, verbose=0)
    expected = [history["test_loss"][-1], history["test_accuracy"][-1]]
    np.testing.assert_allclose(figures, expected, rtol=1e-4)

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.npz")}
    assert cli.main(command) == 0
    assert "min left" not in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.npz")} == before


def test_the_numbers_of_the_rows(trainings, in_empty_folder):
    rows = tickets(TicketSettings(), 1, (0, 1), ["random"], [0.8], folder="out")
    assert [(row["kind"], row["round"]) for row in rows] == [
        ("ticket", 0), ("ticket", 1), ("random", 1),
    ]  # fmt: skip
    dense = rows[0]
    assert dense["accuracy"]["values"] == [0.8, 0.9]
    assert dense["accuracy"]["mean"] == pytest.approx(0.85)
    assert dense["accuracy"]["std"] == pytest.approx(0.1 / np.sqrt(2))
    assert dense["stop_step"]["values"] == [1000, 1010]
    assert dense["last_accuracy"]["values"] == [0.4, 0.4]
    assert dense["last_loss"]["values"] == [0.1, 1.1]
    text = (in_empty_folder / "out" / "table.md").read_text()
    assert "| 100.0 | dense | 85.00 ± 7.07 | 1005 ± 7 | 40.00 ± 0.00 | 2 |" in text
    assert "| random | 85.00 ± 7.07 |" in text
    one = experiment.table(tickets(TicketSettings(), 0, [0], folder="one", controls=[]))
    assert "| 100.0 | dense | 80.00 | 1000 | 40.00 | 1 |" in one


def test_a_sweep_of_learning_rates(trainings, in_empty_folder, capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "draw_tickets", lambda rows, path: drawn.append(rows))
    command = ["tickets", "--rounds", "1", "--seeds", "1", "--controls", "--output", "out"]
    assert cli.main([*command, "--learning-rates", "0.1", "0.001"]) == 0
    assert trainings == [(100, 0), (80, 0)] * 2
    out = in_empty_folder / "out"
    assert {"rate-0.1", "rate-0.001", "sweep.json", "table.md"} <= {p.name for p in out.iterdir()}
    rows = json.loads((out / "sweep.json").read_text())["rows"]
    assert [(row["learning_rate"], row["round"]) for row in rows] == [
        (0.1, 0), (0.1, 1), (0.001, 0), (0.001, 1),
    ]  # fmt: skip
    assert [(row["kind"], row["round"]) for row in drawn[-1]] == [
        ("rate 0.1", 1), ("rate 0.1", 1), ("rate 0.001", 1), ("rate 0.001", 1),
    ]  # fmt: skip
    assert "**Learning rate 0.001**" in capsys.readouterr().out
    assert cli.main([*command, "--learning-rates", "0.1", "0.001", "0.01"]) == 0
    assert len(trainings) == 6  # Only what is new.
    assert cli.main([*command, "--learning-rates", "0.1", "-1"]) == 2
    assert "learning_rate" in capsys.readouterr().err


def test_a_loss_that_is_no_number_is_never_the_least():
    history = {"val_loss": [np.nan, 0.5, np.nan], "test_accuracy": [1, 2, 3], "step": [4, 5, 6]}
    assert ticket_table.stopped(history) == (2, 5)


def test_cut_off_in_the_middle_it_goes_on(trainings, monkeypatch, in_empty_folder, capsys):
    train = ticket_training.train

    def until(number):
        def one(*args, **kwargs):
            if len(trainings) == number:
                raise KeyboardInterrupt
            return train(*args, **kwargs)

        return one

    for number in (2, 6, 9):  # In a search, in the controls, in the search of the next seed.
        monkeypatch.setattr(ticket_training, "train", until(number))
        assert cli.main(COMMAND) == 130
        assert "same command continues" in capsys.readouterr().err
        assert len(trainings) == number
    monkeypatch.setattr(ticket_training, "train", train)
    assert cli.main(COMMAND) == 0
    assert len(trainings) == 16
    assert [seed for _, seed in trainings] == 8 * [0] + 8 * [1]
    rows = json.loads((in_empty_folder / "out" / "result.json").read_text())["rows"]
    assert [row["round"] for row in rows] == [0, 1, 2, 2, 2, 3, 3, 3]


def test_only_what_is_new_is_done(trainings):
    settings = TicketSettings()
    tickets(settings, 1, [0], ["random"], [0.8], folder="out")
    assert len(trainings) == 3
    tickets(settings, 2, [0, 1], ["random"], [0.8], folder="out")
    assert len(trainings) == 3 + 1 + 4
    tickets(settings, 2, [0, 1], ["random", "shuffled"], [0.8], folder="out")
    assert len(trainings) == 8 + 2


def test_densities_left_out_are_those_that_are_reached(trainings):
    rows = tickets(TicketSettings(), 3, [0], ["random"], folder="out")
    assert [row["round"] for row in rows if row["kind"] == "random"] == [3]
    with pytest.raises(ValueError, match=r"0\.21 needs 7 rounds"):
        tickets(TicketSettings(), 3, [0], ["random"], [0.21], folder="out")


def test_rows_stay_while_further_ones_are_made(trainings, monkeypatch, in_empty_folder):
    tickets(TicketSettings(), 1, [0], [], folder="out")
    path = in_empty_folder / "out" / "result.json"
    rows = json.loads(path.read_text())["rows"]

    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(ticket_training, "train", fail)
    with pytest.raises(KeyboardInterrupt):
        tickets(TicketSettings(), 2, [0], [], folder="out")
    assert json.loads(path.read_text())["rows"] == rows != []


def test_a_control_of_another_ticket_is_trained_again(trainings, in_empty_folder):
    settings = TicketSettings(), 1, [0], ["random"], [0.8]
    tickets(*settings, folder="out")
    tickets(*settings, folder="out")
    assert len(trainings) == 3
    path = in_empty_folder / "out" / "runs" / "random-round01-seed0.json"
    path.write_text(path.read_text().replace('"mask": "', '"mask": "0'))
    tickets(*settings, folder="out")
    assert len(trainings) == 4


def test_a_rewind_step_after_the_end_is_seen_before_anything_is_trained(trainings):
    # 22 examples that are not held out are a step an epoch, made up to 100.
    with pytest.raises(ValueError, match="less than the 100 steps of a training"):
        tickets(TicketSettings(rewind_step=100), 1, [0], [], folder="out")
    tickets(TicketSettings(rewind_step=0), 0, [0, 0], [], folder="out")
    assert len(trainings) == 1


def test_a_folder_with_other_settings_is_refused(trainings):
    tickets(TicketSettings(), 1, [0], [], folder="out")
    other = TicketSettings(learning_rate=0.1, epochs=3)
    with pytest.raises(
        ValueError, match=r"learning_rate \(0\.0012 there, 0\.1 here\), epochs \(60 there"
    ):
        tickets(other, 1, [0], [], folder="out")
    assert len(trainings) == 2


@pytest.mark.parametrize("content", ["", "[]", '{"step": [1]}', '{"val_loss": []}'])
def test_stored_trainings_that_are_not_right(content, trainings, in_empty_folder):
    tickets(TicketSettings(), 1, [0], ["random"], [0.8], folder="out")
    path = in_empty_folder / "out" / "runs" / "random-round01-seed0.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"random-round01-seed0\.json' cannot be used"):
        tickets(TicketSettings(), 1, [0], ["random"], [0.8], folder="out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--densities", "0.036", "--rounds", "12"], "0.036 needs 15 rounds. Received: rounds=12"),
        (["--densities", "1.5"], "`densities`"),
        (["--controls", "randm"], "Did you mean 'random'"),
        (["--rounds", "-1"], "rounds=-1"),
        (["--seeds", "0"], "seeds=0"),
        (["--prune-fraction", "1"], "prune_fraction=1.0"),
        (["--learning-rate", "0"], "learning_rate=0.0"),
        (["--optimizer", "adm"], "Did you mean 'adam'"),
        (["--scope", "local"], "`scope`"),
        (["--rewind-step", "50"], "must be a multiple of `every`"),
        (["--warm-up", "-1"], "warm_up=-1"),
        (["--every", "0"], "every=0"),
        (["--model", "lenet"], "lenet-300-100"),
        (["--dataset", "digit"], "Did you mean 'digits'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments, message, in_empty_folder, capsys):
    assert cli.main(["tickets", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("tf-rigl: error: ")
    assert not list(in_empty_folder.iterdir())


def test_rounds_that_are_nearest_to_densities():
    assert compared_rounds([0.51, 0.21, 0.07, 0.036], 0.2, 15) == [3, 7, 12, 15]
    assert compared_rounds([0.26, 0.5, 0.24, 0.99], 0.5, 2) == [1, 2]


def test_a_rewind_step_that_training_does_not_reach():
    settings = TicketSettings(epochs=1, every=20, rewind_step=100)
    with pytest.raises(ValueError, match="Argument `rewind_step`"):
        tickets(settings, 1, [0], [], folder="out")


def test_what_is_held_out_is_not_trained_on():
    x, y = np.arange(120), np.arange(120) % 7
    parts = ticket_training.split({"train": (x, y), "test": (x[:5], y[:5])}, seed=3)
    assert len(parts["val"][0]) == 10
    assert sorted([*parts["val"][0], *parts["train"][0]]) == list(range(120))
    for images, labels in parts.values():
        np.testing.assert_array_equal(labels, images % 7)
    other = ticket_training.split({"train": (x, y), "test": (x[:5], y[:5])}, seed=4)
    assert set(other["val"][0]) != set(parts["val"][0])


def test_weights_are_glorots_normal_and_the_output_layer_is_pruned_half_as_fast():
    images = {"train": (np.zeros((3, 8, 8, 1)), np.array([0, 9, 1]))}
    model = ticket_training.dense(TicketSettings(), images)
    assert [type(layer.kernel_initializer) for layer in model.layers[1:]] == 3 * [
        keras.initializers.GlorotNormal
    ]
    assert model.output_shape == (None, 10)
    assert experiment._rates(model, TicketSettings()) == {"logits/kernel": 0.1}
    assert experiment._rates(model, dataclasses.replace(TicketSettings(), scope="global")) is None


def test_pictures_of_one_seed_and_of_the_dense_network_alone(in_empty_folder):
    def spread(value, std=None):
        return {"values": [value], "mean": value, "std": std}

    shared = {"accuracy": spread(0.9), "stop_step": spread(300, 20.0)}
    dense = {"kind": "ticket", "round": 0, "density": 1.0, **shared}
    others = [
        {"kind": kind, "round": n, "density": 0.8**n, **shared}
        for kind in ("ticket", *CONTROLS)
        for n in (1, 3)
    ]
    for number, rows in enumerate([[dense], [dense, *others]]):
        path = in_empty_folder / f"{number}.png"
        plots.draw_tickets(rows, path)
        assert path.read_bytes().startswith(b"\x89PNG")
