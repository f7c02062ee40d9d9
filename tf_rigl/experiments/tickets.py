"""`tf-rigl tickets`: lottery tickets of several seeds, compared with controls."""

import dataclasses
import functools
import hashlib
import time

import keras
import numpy as np

from tf_rigl._base import files
from tf_rigl._base.arguments import listed
from tf_rigl._base.store import Store, read_description
from tf_rigl.experiments import pictures, ticket_training
from tf_rigl.experiments.ticket_settings import (
    ROUNDS,
    SEARCHES,
    SEEDS,
    USUAL_CONTROLS,
    TicketSettings,
    compared_rounds,
    rounds_with_controls,
)
from tf_rigl.experiments.ticket_table import rows as make_rows
from tf_rigl.experiments.ticket_table import stopped, table
from tf_rigl.lottery import controls as control
from tf_rigl.lottery.search import find_ticket
from tf_rigl.weights import maskable

__all__ = ["TicketSettings", "compared_rounds", "table", "tickets"]

TABLE, PICTURE = "table.md", "tickets.png"
(RESULT,) = SEARCHES
# Functions of the ticket, the dense model and a seed, which return the control.
_MAKE = {
    "reinitialised": control.reinitialised,
    "resampled": control.resampled,
    "random": lambda ticket, model, seed: control.random_mask(ticket, seed),
    "shuffled": control.shuffled,
}


def tickets(
    settings,
    rounds=ROUNDS,
    seeds=SEEDS,
    controls=USUAL_CONTROLS,
    densities=None,
    *,
    folder,
    data_dir=None,
    command=None,
):
    """Searches for tickets with several seeds, and trains controls of them.

    Each training is evaluated every `settings.every` steps. Its early-stopping step is the one
    with the smallest loss on the held-out data (a twelfth of the training data); the table
    compares that step, and the test accuracy there. Every finished training is stored at once.
    The same command continues after an interruption, and one with more rounds, seeds or
    controls trains only those.

    Args:
        settings: `TicketSettings`.
        rounds: int, as in `tf_rigl.lottery.find_ticket`.
        seeds: iterable of int, for weights, the order of the data, and the held-out examples.
        controls: iterable of str, from "reinitialised", "resampled", "random" and
            "shuffled".
        densities: iterable of float in (0, 1), values of `(1 - prune_fraction)^round`. The
            tickets of the nearest rounds are compared with controls. Defaults to those of 0.51,
            0.21, 0.07 and 0.036 that the rounds reach.
        folder: str or path; absent, empty, or that of an earlier command.
        data_dir: see `tf_rigl.data.load`.
        command: str, the command that made the rows; it is stored with them.

    Returns:
        A list of dict, the rows of the table.

    Raises:
        ValueError: if an argument is invalid, or the folder holds something else.

    Example:

        rows = tickets(TicketSettings("fashion_mnist", epochs=6), folder="runs/tickets")
    """
    if not isinstance(settings, TicketSettings):
        raise ValueError(
            f"Argument `settings` must be a `TicketSettings`. Received: settings={settings!r}"
        )
    seeds = list(dict.fromkeys(listed("seeds", seeds)))
    controls = list(dict.fromkeys(listed("controls", controls)))
    compared = rounds_with_controls(settings, rounds, controls, densities)
    if not seeds:
        raise ValueError(f"Argument `seeds` must not be empty. Received: seeds={seeds}")
    folder = files.check_folder(folder, SEARCHES)
    rows = read_description(folder / RESULT, dataclasses.asdict(settings)).get("rows", [])
    about = {
        "settings": dataclasses.asdict(settings),
        "rounds": rounds,
        "seeds": seeds,
        "controls": controls,
        "command": command,
    }
    images = ticket_training.arrays(settings.dataset, data_dir)
    _check_rewind_step(settings, len(images["train"][0]))
    files.write_text(folder / RESULT, files.to_json({**about, "rows": rows}))
    progress = _Progress(len(seeds) * (rounds + 1 + len(controls) * len(compared)))
    runs = []
    for seed in seeds:
        runs += _one_seed(settings, images, rounds, seed, controls, compared, folder, progress)
        rows = make_rows(runs)
        files.write_text(folder / TABLE, table(rows))
        files.write_text(folder / RESULT, files.to_json({**about, "rows": rows}))
    if (plots := pictures.drawing()) is not None:
        with files.beside(folder / PICTURE) as scratch:
            plots.draw_tickets(rows, scratch)
    return rows


def _check_rewind_step(settings, examples):
    """Raises if a training does not reach the rewind step."""
    steps = ticket_training.steps(settings, examples - ticket_training.held_out(examples))
    if settings.rewind_step >= steps:
        raise ValueError(
            f"Argument `rewind_step` must be less than the {steps} steps of a training. "
            f"Received: rewind_step={settings.rewind_step}"
        )


class _Progress:
    """Prints a line after each training, with the time that remains."""

    def __init__(self, total):
        self.left, self.total, self.trained = total, total, 0
        self.began = time.perf_counter()

    def skip(self, count):
        """Counts trainings that are stored already."""
        self.left -= count

    def add(self, name, history):
        """Counts a new training."""
        self.left, self.trained = self.left - 1, self.trained + 1
        minutes = (time.perf_counter() - self.began) / self.trained * self.left / 60
        accuracy, step = stopped(history)
        print(
            f"[{self.total - self.left}/{self.total}, {minutes:.0f} min left] {name}: "
            f"{accuracy:.4f} at step {step}",
            flush=True,
        )


def _one_seed(settings, images, rounds, seed, controls, compared, folder, progress):
    """Does the unfinished trainings of a seed.

    Returns:
        A list of (kind, round, density, seed, history) of all trainings of the seed.
    """
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    model = ticket_training.dense(settings, images)
    parts = ticket_training.split(images, seed)
    train = functools.partial(ticket_training.train, settings=settings, images=parts, seed=seed)
    before = progress.trained

    def fit(sparse):
        history = train(sparse)
        progress.add(f"ticket of {1 - sparse.sparsity:.1%}, seed {seed}", history)
        return history

    found = find_ticket(
        model,
        fit,
        rounds,
        settings.prune_fraction,
        settings.rewind_step,
        settings.scope,
        rates=_rates(model, settings),
        folder=folder / "tickets" / f"seed{seed}",
        seed=seed,
    )
    progress.skip(rounds + 1 - (progress.trained - before))
    runs = [("ticket", each.round, each.density, seed, each.history) for each in found]
    store = Store(folder / "runs")
    for number in compared:
        # If a round is searched again, its mask may differ.
        mask = _checksum(found[number].masks)
        for kind in controls:
            name = f"{kind}-round{number:02}-seed{seed}"
            history = store.get(name, check=stopped)
            if history is None or history.pop("mask", mask) != mask:
                changed = _MAKE[kind](found[number], model, seed)
                keras.utils.set_random_seed(seed)
                history = train(changed.model(model))
                store.add(name, {**history, "mask": mask})
                progress.add(f"{kind} of {changed.density:.1%}, seed {seed}", history)
            else:
                progress.skip(1)
            runs.append((kind, number, found[number].density, seed, history))
    return runs


def _checksum(masks):
    digest = hashlib.sha256()
    for mask in masks.values():
        digest.update(np.packbits(mask))
    return digest.hexdigest()


def _rates(model, settings):
    """Returns half the prune fraction for the output layer, which is small, as in the paper."""
    if settings.scope == "global":
        return None
    last = maskable.find(model, include_self=False)[-1]
    return {last.path: settings.prune_fraction / 2}
