"""The table of `tf-rigl tickets`: a row for each kind of network and round."""

import statistics

import numpy as np

from tf_rigl._base import tables
from tf_rigl.experiments.ticket_settings import CONTROLS


def rows(runs) -> list[dict]:
    """Makes a row for each kind of network and round, over all seeds.

    Args:
        runs: list of (kind, round, density, seed, history).
    """
    groups: dict = {}
    for kind, number, density, seed, history in runs:
        groups.setdefault((number, kind), []).append((density, seed, history))
    order = ["ticket", *CONTROLS]
    result = []
    for number, kind in sorted(groups, key=lambda key: (key[0], order.index(key[1]))):
        own = groups[number, kind]
        stops = [stopped(history) for _, _, history in own]
        result.append(
            {
                "kind": kind,
                "round": number,
                "density": statistics.fmean(density for density, _, _ in own),
                "seeds": [seed for _, seed, _ in own],
                "accuracy": _spread([accuracy for accuracy, _ in stops]),
                "stop_step": _spread([step for _, step in stops]),
                "last_accuracy": _spread([h["test_accuracy"][-1] for _, _, h in own]),
                "last_loss": _spread([h["test_loss"][-1] for _, _, h in own]),
            }
        )
    return result


def stopped(history):
    """Returns test accuracy and step at the smallest loss on the held-out data."""
    losses = np.nan_to_num(np.array(history["val_loss"], float), nan=np.inf)
    best = int(np.argmin(losses))
    return history["test_accuracy"][best], history["step"][best]


def _spread(values):
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"values": values, "mean": statistics.fmean(values), "std": std}


def table(rows) -> str:
    """Returns the rows as a Markdown table.

    Args:
        rows: list of dict, from `tf_rigl.experiments.tickets.tickets`.
    """
    header = ["weights left, %", "network", "test accuracy, %", "early-stopping step"]
    header += ["accuracy at the end, %", "seeds"]
    lines = [
        [
            f"{100 * row['density']:.1f}",
            "dense" if row["round"] == 0 else row["kind"],
            tables.mean_and_spread(row["accuracy"]["values"], scale=100),
            tables.mean_and_spread(row["stop_step"]["values"], digits=0),
            tables.mean_and_spread(row["last_accuracy"]["values"], scale=100),
            str(len(row["seeds"])),
        ]
        for row in rows
    ]
    body = "\n".join(tables.markdown(header, lines, left=(1,)))
    note = (
        "Early-stopping step: the step with the smallest loss on held-out data. Test accuracy is "
        "that of this step.\nMean ± sample standard deviation over seeds."
    )
    return f"{body}\n\n{note}\n"
