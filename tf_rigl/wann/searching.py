"""The search: generations of networks, ranked by what they do and by their size."""

import dataclasses
import pathlib
import time

import numpy as np

from tf_rigl._base import files
from tf_rigl._base.arguments import check_integer, check_number
from tf_rigl.wann import ranking
from tf_rigl.wann.mutations import mutated
from tf_rigl.wann.network import Network, start

WEIGHTS = (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0)
STATE = "population.npz"
_BY_SIZE = 0.8  # The probability that a generation is ranked by size, not by the best score.
_CULLED = _KEPT = 0.2
_HUGE = 1e100


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """What a search found.

    Attributes:
        best: `Network`, the one with the highest mean score over the shared weights so far.
        population: list of `Network`, the last generation, best first.
        history: list of dict, for each generation "mean" and "best" (scores of the best network:
            over the weights, and with its best one), "connections", "hidden" and "seconds".
    """

    best: Network
    population: list
    history: list


def search(
    task,
    *,
    population=192,
    generations=128,
    seed=0,
    folder=None,
    weights=WEIGHTS,
    tournament=8,
    density=0.5,
    verbose=True,
):
    """Searches for a network that does a task with any shared weight.

    Each generation is ranked by non-dominated sorting: with a probability of 0.8 by the mean score
    over the shared weights and the fewest connections, else by the mean and the best score. The
    worst fifth is culled, the best fifth goes on, and the others are children of winners of
    tournaments, with one mutation each.

    Args:
        task: `Classification`, or an object with `inputs`, `outputs` and
            `scores(networks, weights)`.
        population: int, at least 5, networks in a generation.
        generations: int.
        seed: int; equal seeds give equal searches.
        folder: str or path, where each generation is stored, or None. The same call goes on where
            it was cut off, also with more generations. A task's `fingerprint`, a number, tells
            whether it is the same one.
        weights: sequence of float, the shared weights.
        tournament: int, networks in a tournament.
        density: float in [0, 1], the probability that an edge is enabled at the start.
        verbose: bool, whether to print progress.

    Returns:
        A `Result`.

    Raises:
        ValueError: if an argument is out of range, or the folder holds another search.

    Example:

    >>> task = tf_rigl.wann.Classification(x, y)
    >>> result = tf_rigl.wann.search(task, population=10, generations=3, verbose=False)
    >>> len(result.history), len(result.population)
    (3, 10)

    Reference:

    - [Weight Agnostic Neural Networks](https://arxiv.org/abs/1906.04358), section 3.
    """
    if missing := [name for name in ("inputs", "outputs", "scores") if not hasattr(task, name)]:
        raise ValueError(
            "Argument `task` must be a `Classification`, a `Control`, or an object with `inputs`, "
            f"`outputs` and `scores`. Received: task={task!r}, without {', '.join(missing)}"
        )
    check_integer("population", population, 5)
    check_integer("generations", generations, 1)
    check_integer("tournament", tournament, 1)
    check_number("density", density, at_least=0, at_most=1)
    weights = np.array([check_number("weights", float(weight)) for weight in weights])
    if not len(weights):
        raise ValueError("Argument `weights` must not be empty. Received: weights=()")
    settings = [population, check_integer("seed", seed, 0), tournament, density]
    settings += [float(getattr(task, "fingerprint", 0)), *weights]
    state = None if folder is None else _read(pathlib.Path(folder) / STATE, settings, task)
    if state is None:
        rng = np.random.default_rng([seed, 0])
        first = [start(task.inputs, task.outputs, density, rng) for _ in range(population)]
        state = _State(first, None, -np.inf, [])
    while len(state.history) < generations:
        state = _next(state, task, weights, seed, tournament)
        if folder is not None:
            _write(pathlib.Path(folder) / STATE, state, settings)
        if verbose:
            last = state.history[-1]
            print(
                f"[{len(state.history)}/{generations}] mean {last['mean']:.4f}, best "
                f"{last['best']:.4f}, {last['connections']} connections, {last['hidden']} hidden",
                flush=True,
            )
    return Result(state.best, state.networks, state.history)


@dataclasses.dataclass
class _State:
    """A population, the best network so far with its score, and the history."""

    networks: list
    best: Network | None
    score: float
    history: list
    ordered: np.ndarray | None = None  # Of the population, best first.


def _next(state, task, weights, seed, tournament):
    """Evaluates a generation, after making it of the one before; returns the new state."""
    number, began = len(state.history), time.perf_counter()
    rng = np.random.default_rng([seed, number + 1])
    networks = state.networks
    if number:
        networks = _children(networks, rng, tournament)
    scores = task.scores(networks, weights)
    # Scores that are no numbers are the worst; infinite ones have no distances.
    scores = np.nan_to_num(scores, nan=-_HUGE, posinf=_HUGE, neginf=-_HUGE)
    mean, top = scores.mean(axis=1), scores.max(axis=1)
    size = -np.array([float(network.connections) for network in networks])
    goals = np.stack([mean, size if rng.random() < _BY_SIZE else top], axis=1)
    order = ranking.order(goals)
    winner = int(mean.argmax())
    best, score = state.best, state.score
    history = dict(state.history[-1]) if state.history else {}
    if best is None or mean[winner] > score:
        best, score = networks[winner], float(mean[winner])
        history = {"mean": score, "best": float(top[winner])}
        history |= {"connections": best.connections, "hidden": best.hidden}
    history["seconds"] = time.perf_counter() - began
    return _State([networks[place] for place in order], best, score, [*state.history, history])


def _children(networks, rng, tournament):
    """Returns the next generation of a population in order, best first."""
    count = len(networks)
    kept = max(1, int(_KEPT * count))
    parents = count - int(_CULLED * count)
    # The winner of a tournament is the one that is ranked highest.
    winners = rng.integers(parents, size=(count - kept, tournament)).min(axis=1)
    return [*networks[:kept], *(mutated(networks[winner], rng) for winner in winners)]


def _write(path, state, settings):
    """Stores a state whole or not at all."""
    networks = [*state.networks, state.best]
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = list(state.history[0])
    arrays = {
        "settings": np.array(settings, float),
        "ends": np.array([networks[0].inputs, networks[0].outputs]),
        "nodes": np.array([len(network.kinds) for network in networks]),
        "edges": np.array([len(network.edges) for network in networks]),
        "kinds": np.concatenate([network.kinds for network in networks]),
        "pairs": np.concatenate([network.edges for network in networks]),
        "enabled": np.concatenate([network.enabled for network in networks]),
        "score": np.array(state.score),
        "keys": np.array(keys),
        "history": np.array([[row[key] for key in keys] for row in state.history]),
    }
    with files.beside(path) as scratch, open(scratch, "wb") as file:
        np.savez_compressed(file, **arrays)


def _read(path, settings, task):
    """Returns a stored state, or None if there is none."""
    if not path.exists():
        return None
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    given = arrays["settings"]
    same = len(given) == len(settings) and np.array_equal(given, np.array(settings, float))
    if not same or tuple(arrays["ends"]) != (task.inputs, task.outputs):
        raise ValueError(
            "Argument `folder` must be absent, empty, or that of the same search: it holds one "
            f"with other arguments or another task. Received: folder={str(path.parent)!r}"
        )
    inputs, outputs = (int(size) for size in arrays["ends"])
    networks, node, edge = [], 0, 0
    for nodes, edges in zip(arrays["nodes"], arrays["edges"], strict=True):
        networks.append(
            Network(
                inputs,
                outputs,
                arrays["kinds"][node : node + nodes],
                arrays["pairs"][edge : edge + edges],
                arrays["enabled"][edge : edge + edges],
            )
        )
        node, edge = node + nodes, edge + edges
    keys = [str(key) for key in arrays["keys"]]
    whole = {"connections", "hidden"}
    history = [
        {k: int(v) if k in whole else float(v) for k, v in zip(keys, row, strict=True)}
        for row in arrays["history"]
    ]
    return _State(networks[:-1], networks[-1], float(arrays["score"]), history)
