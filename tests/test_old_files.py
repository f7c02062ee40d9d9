"""Files of version 0.1.0 load, predict what they did, and train on to the same masks.

`tests/files/write.py` tells what is in them; they are never written again.
"""

import pathlib
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest

import tf_rigl
from tests.files import write
from tf_rigl.training import step

FOLDER = pathlib.Path(write.__file__).parent
FILES = [f"{name}{ending}" for name, case in write.CASES.items() for ending in case.files]
# Random growth has other seeds since (those of weights under neighbouring seeds were equal). With
# the old ones, these too train on to the same masks.
GROW_AT_RANDOM = ("set", "two_of_four")
FURTHER_CLASSES = ("subclassed.keras", "own_subclass.keras")  # Files with classes of the tests.

# What a process does that knows no more than the names of the packages.
LOAD = """
import sys
import keras
import tf_rigl
for path in sys.argv[1:]:
    keras.models.load_model(path)
"""


def expected(name):
    """What the old version noted of a file, by key."""
    with np.load(FOLDER / "expected" / f"{name}.npz") as file:
        return dict(file)


def load(file, x):
    """The model in a file; one of weights goes into a model that has others."""
    name, _, ending = file.partition(".")
    if f".{ending}" == write.KERAS:
        return keras.models.load_model(FOLDER / file)
    keras.utils.set_random_seed(7)
    model = write.CASES[name].model()
    model(x[:1])  # Some are built by their first call.
    model.load_weights(FOLDER / file)
    return model


def check_masks(model, noted, when):
    """The step and all masks are those that were noted."""
    masks = {key: noted[key] for key in noted if key.startswith(f"{when}_mask/")}
    assert model.step == noted[f"{when}_step"]
    assert [f"{when}_mask/{path}" for path in model.masks] == list(masks)
    for path, mask in model.masks.items():
        np.testing.assert_array_equal(mask, masks[f"{when}_mask/{path}"], err_msg=path)


def check_predictions(model, noted, key="predictions"):
    """The predictions are those that were noted."""
    received = write.predict(model, noted["x"])
    np.testing.assert_allclose(received, noted[key], rtol=1e-5, atol=1e-5)


def check_end(model, noted):
    """Step, masks and weights are those that the old version's training ended with."""
    check_masks(model, noted, "last")
    weights = model.get_weights()
    assert len(weights) == sum(key.startswith("weight/") for key in noted)
    for number, (weight, variable) in enumerate(zip(weights, model.weights, strict=True)):
        old = noted[f"weight/{number}"]
        assert weight.dtype == old.dtype
        np.testing.assert_allclose(weight, old, rtol=1e-4, atol=1e-5, err_msg=variable.path)


def test_all_files_are_read():
    """No file lies there that no test reads."""
    found = {str(p.relative_to(FOLDER)) for p in FOLDER.rglob("*") if p.is_file()}
    found = {path for path in found if not path.startswith("__pycache__")}
    names = {*write.CASES, "backup", "rounded", "ticket"}
    others = {"backup/latest.weights.h5", "rounded.keras", "ticket.npz", "write.py"}
    assert found == {*FILES, *others, *(f"expected/{name}.npz" for name in names)}


@pytest.mark.parametrize("file", FILES)
def test_a_model_predicts_what_it_did_and_trains_on_to_the_same_masks(file, monkeypatch):
    name = file.partition(".")[0]
    noted = expected(name)
    if name in GROW_AT_RANDOM:
        monkeypatch.setattr(step, "mixed", lambda seed, number: (seed + number) % 2**31)
    model = load(file, noted["x"])
    check_masks(model, noted, "first")
    check_predictions(model, noted)
    write.train(model, noted["x"], noted["y"])
    check_end(model, noted)


def test_models_load_in_a_process_that_has_imported_nothing_else():
    """Each class is found by its name, whatever module it is in by now."""
    files = [f for f in FILES if f.endswith(write.KERAS) and f not in FURTHER_CLASSES]
    files.append("rounded.keras")
    paths = [str(FOLDER / file) for file in files]
    subprocess.run([sys.executable, "-c", LOAD, *paths], check=True)


def test_a_run_goes_on_from_a_backup(tmp_path):
    """It was cut off within its second epoch, in front of a mask update."""
    noted, steps = expected("backup"), []
    shutil.copytree(FOLDER / "backup", tmp_path / "backup")
    model = write.backed_up_model(seed=7)
    count = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: steps.append(model.step)
    )
    callbacks = [write.backup(tmp_path / "backup"), count]
    write.train(model, noted["x"], noted["y"], epochs=write.BACKUP_EPOCHS, callbacks=callbacks)
    assert min(steps) == write.BACKUP_LAST_STEP // write.BACKUP_FREQUENCY * write.BACKUP_FREQUENCY
    check_end(model, noted)


def test_a_ticket_is_what_it_was_and_trains_to_the_same_weights():
    noted = expected("ticket")
    ticket = tf_rigl.lottery.Ticket.load(FOLDER / "ticket.npz")
    assert (ticket.round, ticket.rewind_step) == (2, 2)
    assert ticket.history["loss"] == noted["loss"].tolist()
    check_predictions(ticket.model(write.ticket_model(seed=7), trained=True), noted, "trained")
    model = ticket.model(write.ticket_model(seed=7))
    check_masks(model, noted, "first")
    check_predictions(model, noted)
    write.compile_dense(model)
    write.train(model, noted["x"], noted["y"])
    check_end(model, noted)


def test_a_model_of_rounded_kernels_predicts_what_it_did():
    model = keras.models.load_model(FOLDER / "rounded.keras")
    check_predictions(model, expected("rounded"))
