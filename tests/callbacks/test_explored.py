"""The column "explored" of `SparsityLogger`: entries that were active at least once."""

import shutil

import keras
import numpy as np
import pytest

from tests.callbacks.test_callbacks import (
    EAGER,
    Kill,
    block_sparse,
    explored,
    of,
    read,
    train,
    union,
)
from tests.helpers import (
    METHODS,
    CheckEveryStep,
    compiled,
    mlp,
    random_data,
    rigl,
    sparsify,
)
from tf_rigl.block_sparse.weight import BlockSparseWeight
from tf_rigl.callbacks import BackupAndRestore, SparsityLogger
from tf_rigl.callbacks.explored import Exploration


class Keep(keras.callbacks.Callback):
    """Keeps the masks before training and after each step."""

    def __init__(self):
        super().__init__()
        self.masks = []

    def on_train_begin(self, logs=None):
        self.masks.append(self.model.masks)

    def on_train_batch_end(self, batch, logs=None):
        self.masks.append(self.model.masks)


def check(rows, masks, steps):
    """Compares the column with a union in NumPy; `masks` are those after 0, 1, 2, ... steps."""
    assert [row["step"] for row in of(rows, "(all)")] == steps
    for step in steps:
        seen = masks[: step + 1]
        for weight in masks[0]:
            (row,) = (row for row in of(rows, weight) if row["step"] == step)
            assert row["explored"] == pytest.approx(np.mean(union(seen, weight)), abs=1e-6)
        (row,) = (row for row in of(rows, "(all)") if row["step"] == step)
        assert row["explored"] == pytest.approx(explored(seen), abs=1e-6)


@pytest.mark.parametrize("freq", [1, 4, "epoch"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_explores_what_numpy_counts(name, freq, tmp_path):
    model, keep = compiled(sparsify(mlp(), METHODS[name](), 0.8), **EAGER), Keep()
    path, share = tmp_path / "s.csv", Exploration()
    history = train(
        model, *random_data(), [keep, SparsityLogger(csv=path, update_freq=freq), share]
    )
    rows = read(path)
    check(rows, keep.masks, {1: list(range(1, 9)), 4: [4, 8], "epoch": [8]}[freq])
    assert share.explored.share(model) == pytest.approx(explored(keep.masks))
    assert history.history["explored"] == pytest.approx([explored(keep.masks)])
    last = of(rows, "(all)")[-1]["explored"]
    if name == "static":
        assert last == pytest.approx(1 - model.sparsity)
    elif model.method.begins_dense:
        assert last == 1
    else:
        assert 1 - model.sparsity < last < 1


@pytest.mark.parametrize("units", [16, 13])
def test_blocks_are_counted_without_a_dense_mask(units, tmp_path, monkeypatch):
    def run(callbacks):
        keras.utils.set_random_seed(0)
        model = compiled(block_sparse(units), **EAGER)
        history = train(model, *random_data(), callbacks)
        return model, history.history

    keep, path, share = Keep(), tmp_path / "s.csv", Exploration()
    run([keep])
    with monkeypatch.context() as patch:
        patch.setattr(BlockSparseWeight, "mask", property(lambda _: pytest.fail("a dense mask")))
        model, history = run([SparsityLogger(csv=path, update_freq=1), share])
    check(read(path), keep.masks, list(range(1, 9)))
    assert history["explored"] == pytest.approx([explored(keep.masks)])
    assert share.explored.share(model) == pytest.approx(explored(keep.masks))
    assert explored(keep.masks) > explored(keep.masks[:1])


def test_updates_within_one_execution_of_several_steps_are_all_counted(tmp_path):
    def run(callbacks, **kwargs):
        keras.utils.set_random_seed(0)
        model = compiled(sparsify(mlp(), rigl(), 0.8), **kwargs)
        return train(model, *random_data(batches=24), callbacks)

    check_each, path = CheckEveryStep(), tmp_path / "s.csv"
    run([check_each])
    keep = Keep()
    run([keep, SparsityLogger(csv=path)], steps_per_execution=12)
    (row,) = of(read(path), "(all)")
    expected = explored([keep.masks[0], *check_each.masks])
    assert row["explored"] == pytest.approx(expected, abs=1e-6)
    assert explored(keep.masks) < expected


def test_a_model_that_is_built_by_its_first_batch(tmp_path):
    layers = [keras.layers.Dense(8, name="hidden"), keras.layers.Dense(3, name="head")]
    model = compiled(sparsify(keras.Sequential(layers), rigl(), 0.8), **EAGER)
    check_each, path = CheckEveryStep(), tmp_path / "s.csv"
    train(model, *random_data(), [check_each, SparsityLogger(csv=path, update_freq=1)])
    masks = check_each.masks
    check(read(path), [masks[0], *masks], list(range(1, 9)))


# Runs that are taken up again.


@pytest.mark.parametrize("same", [True, False])
def test_several_runs_are_one_history(same, tmp_path):
    model, path, keep = compiled(sparsify(mlp(), rigl(), 0.8), **EAGER), tmp_path / "s.csv", Keep()
    logger = SparsityLogger(csv=path)
    for _ in range(3):
        train(model, *random_data(), [keep, logger if same else SparsityLogger(csv=path)])
    masks = [keep.masks[0], *(each for n, each in enumerate(keep.masks) if n % 9)]
    check(read(path), masks, [8, 16, 24])


@pytest.mark.parametrize("name", ["rigl", "set", "edge-popup"])
@pytest.mark.parametrize("new_data", [False, True])
@pytest.mark.parametrize("where", ["csv", "log_dir"])
def test_a_resumed_run_forgets_what_the_lost_steps_explored(name, new_data, where, tmp_path):
    """Lost are the steps behind the last backup; other data then lead to other masks."""

    def run(x, y, *others):
        keras.utils.set_random_seed(0)
        model = compiled(sparsify(mlp(), METHODS[name](), 0.8), **EAGER)
        keep, place = Keep(), {where: tmp_path / where}
        logger = SparsityLogger(**place, update_freq=1)
        callbacks = [logger, BackupAndRestore(tmp_path / "backup", save_freq=4), keep, *others]
        try:
            train(model, x, y, callbacks, epochs=2)
        except KeyboardInterrupt:
            return keep.masks, None
        return keep.masks, logger

    scratch = tmp_path / "scratch"
    before, _ = run(*random_data(), Kill(7, scratch))
    after, logger = run(*random_data(seed=int(new_data)))
    masks = [*before[:5], *after[5:]]  # The resumed run skips four batches.
    assert len(masks) == 17
    if where == "csv":
        check(read(tmp_path / where), masks, list(range(1, 17)))
    assert logger._figures()[-1].explored == pytest.approx(explored(masks))


OLD = "epoch,step,weight,sparsity,changed_since_start,changed_since_update,drop_fraction"


def test_files_of_the_version_before_are_continued(tmp_path):
    model, path, keep = compiled(sparsify(mlp(), rigl(), 0.8), **EAGER), tmp_path / "s.csv", Keep()
    train(model, *random_data(), [keep, SparsityLogger(csv=path)])
    lines = path.read_text().splitlines()
    path.write_text("".join(line[: line.rindex(",")] + "\n" for line in lines))
    assert path.read_text().startswith(f"{OLD},dead_units,units\n")
    (tmp_path / "s.csv.explored").unlink()
    match = "does not hold the entries that were active before step 8: .* from step 8 on"
    with pytest.warns(UserWarning, match=match):
        train(model, *random_data(), [keep, SparsityLogger(csv=path)])
    with pytest.warns(UserWarning, match=match):  # The figure is still not that of all steps.
        train(model, *random_data(), [keep, SparsityLogger(csv=path)])
    rows = of(read(path), "(all)")
    masks = [keep.masks[0], *keep.masks[9:]]
    known = [explored(masks[:10]), explored(masks)]
    assert [row["explored"] for row in rows] == ["", *(pytest.approx(e, abs=1e-6) for e in known)]
    assert [row["units"] for row in rows] == [11, 11, 11]


@pytest.mark.parametrize("damage", ["cut", "text", "other", "inside"])
def test_damaged_files_are_told(damage, tmp_path):
    model, path = compiled(sparsify(mlp(), rigl(), 0.8), **EAGER), tmp_path / "s.csv"
    file = tmp_path / "s.csv.explored"
    train(model, *random_data(), [SparsityLogger(csv=path)])
    data = file.read_bytes()
    if damage == "other":
        other = compiled(sparsify(mlp(), rigl(), 0.8, seed=3), **EAGER)
        train(other, *random_data(), [SparsityLogger(csv=tmp_path / "other.csv")])
        shutil.copy(tmp_path / "other.csv.explored", file)
    else:
        inside = data[:-1] + b"\xff"
        file.write_bytes({"cut": data[:-2], "text": b"text", "inside": inside}[damage])
    with pytest.warns(UserWarning, match="before step 8"):
        train(model, *random_data(), [SparsityLogger(csv=path)])


def test_a_write_that_was_cut_off_is_dropped(tmp_path):
    """It is that of a step behind the backup."""
    path = tmp_path / "s.csv"
    model, keep = compiled(sparsify(mlp(), rigl(), 0.8), **EAGER), Keep()
    train(model, *random_data(), [keep, SparsityLogger(csv=path)])
    file = tmp_path / "s.csv.explored"
    size = file.stat().st_size
    for cut in (7, 18):
        head = file.read_bytes()[:size]
        late = (9).to_bytes(8, "little") + (0).to_bytes(4, "little") + (5).to_bytes(4, "little")
        file.write_bytes(head + (late + b"\0\0\0\0")[:cut])
        fresh = SparsityLogger(csv=path)
        fresh.set_model(model)
        fresh.on_train_begin()
        fresh.on_epoch_begin(0)
        assert file.read_bytes() == head
        assert fresh._figures()[-1].explored == pytest.approx(explored(keep.masks))
