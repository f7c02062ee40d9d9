"""`tf-rigl tickets --learning-rates`: the search at several learning rates."""

import dataclasses

from tf_rigl._base import files
from tf_rigl._base.arguments import listed
from tf_rigl.experiments import pictures
from tf_rigl.experiments.ticket_settings import ROUNDS, SEEDS, SWEEPS
from tf_rigl.experiments.tickets import PICTURE, TABLE, tickets
from tf_rigl.experiments.tickets import table as table_of_one

(RESULT,) = SWEEPS


def sweep(settings, learning_rates, rounds=ROUNDS, seeds=SEEDS, *, folder, **kwargs):
    """Searches for tickets at each of several learning rates, as in appendix G.2 of the paper.

    Args:
        settings: `TicketSettings`; its learning rate is replaced.
        learning_rates: iterable of float above 0.
        rounds, seeds, **kwargs: as for `tf_rigl.experiments.tickets.tickets`.
        folder: str or path. Each rate has a folder of its own in it, so the same command goes on
            where it was cut off, and one with more rates trains only those.

    Returns:
        A list of dict, the rows of all rates, each with a "learning_rate".

    Raises:
        ValueError: as for `tickets`, or if a rate is out of range.

    Example:

        rows = sweep(TicketSettings("fashion_mnist"), [2e-4, 1.2e-3, 6e-3], folder="runs/rates")

    Reference:

    - [The Lottery Ticket Hypothesis](https://arxiv.org/abs/1803.03635), appendix G.2.
    """
    every = settings_of(settings, learning_rates)
    folder, rows = files.check_folder(folder, SWEEPS), []
    about = {"settings": dataclasses.asdict(settings), "rows": rows}
    if not (folder / RESULT).exists():  # By it the folder is known when it is cut off.
        files.write_text(folder / RESULT, files.to_json(about))
    for one in every:
        print(f"Learning rate {one.learning_rate:g}", flush=True)
        inner = folder / name_of(one)
        found = tickets(one, rounds, seeds, folder=inner, **kwargs)
        rows += [{"learning_rate": one.learning_rate, **row} for row in found]
        files.write_text(folder / TABLE, table(rows))
        files.write_text(folder / RESULT, files.to_json({**about, "rows": rows}))
    if (plots := pictures.drawing()) is not None:
        with files.beside(folder / PICTURE) as scratch:
            plots.draw_tickets(_for_picture(rows), scratch)
    return rows


def settings_of(settings, learning_rates) -> list:
    """Returns the settings for each learning rate; raises if one is out of range."""
    rates = list(dict.fromkeys(listed("learning_rates", learning_rates)))
    if not rates:
        raise ValueError("Argument `learning_rates` must not be empty.")
    return [dataclasses.replace(settings, learning_rate=rate) for rate in rates]


def name_of(settings) -> str:
    """Returns the name of the folder of a learning rate."""
    return f"rate-{settings.learning_rate:g}"


def table(rows) -> str:
    """Returns the rows as a Markdown table for each learning rate."""
    rates = dict.fromkeys(row["learning_rate"] for row in rows)
    parts = []
    for rate in rates:
        own = [row for row in rows if row["learning_rate"] == rate]
        parts.append(f"**Learning rate {rate:g}**\n\n{table_of_one(own)}")
    return "\n".join(parts)


def _for_picture(rows):
    """Returns the tickets, a line for each rate; the dense network is its begin at 100%."""
    return [
        {**row, "kind": f"rate {row['learning_rate']:g}", "round": max(1, row["round"])}
        for row in rows
        if row["kind"] == "ticket"
    ]
