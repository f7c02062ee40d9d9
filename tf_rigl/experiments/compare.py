"""Comparisons of methods at several sparsities and seeds. Each run is done and stored once."""

import dataclasses
import statistics
import time

import keras

from tf_rigl._base import files, tables
from tf_rigl._base.arguments import listed
from tf_rigl.experiments import data, pictures, runs
from tf_rigl.experiments.settings import COMPARISON, SEEDS, Settings
from tf_rigl.experiments.specs import Spec, parse
from tf_rigl.experiments.store import Store

TABLE = "table.md"
RESULT, RUNS = COMPARISON


@dataclasses.dataclass(frozen=True)
class Cell:
    """A row of the table: runs that differ only in their seeds.

    Attributes:
        spec: str.
        sparsity: float, or None for "dense".
        distribution: str, or None for "dense".
        times: float, epochs relative to those of the comparison.
        runs: tuple of `Settings`, one for each seed.
    """

    spec: str
    sparsity: float | None
    distribution: str | None
    times: float
    runs: tuple[Settings, ...]


def cells(specs, sparsities, distributions, seeds, base) -> list[Cell]:
    """Lists all runs of a comparison.

    Args:
        specs: iterable of str or `Spec`.
        sparsities: iterable of float; a spec with a sparsity of its own ignores them.
        distributions: iterable of str; likewise.
        seeds: iterable of int.
        base: `Settings`, the values of all settings that a spec does not give.

    Returns:
        A list of `Cell`, in the order given.

    Raises:
        ValueError: if there is no run, or the settings of a run are invalid.
    """
    result: dict = {}
    specs = [spec if isinstance(spec, Spec) else parse(spec) for spec in listed("specs", specs)]
    sparsities, seeds = listed("sparsities", sparsities), listed("seeds", seeds)
    distributions = listed("distributions", distributions)
    for spec in specs:
        for distribution in _axis(spec, "distribution", distributions):
            for sparsity in _axis(spec, "sparsity", sparsities):
                # "dense" ignores these: equal values make its runs equal.
                place = {"sparsity": sparsity or 0.0, "distribution": distribution or "erk"}
                if spec.method == "dense":
                    place |= {"pattern": "unstructured", "compute": "masked"}
                    place |= {"initialization": "model"}
                runs = tuple(spec.settings(base, **place, seed=seed) for seed in seeds)
                times = runs[0].epochs / base.epochs if runs else 1
                result[Cell(str(spec), sparsity, distribution, times, runs)] = None
    if not any(cell.runs for cell in result):
        raise ValueError(
            "A comparison needs at least one method, sparsity, distribution and seed. "
            f"Received: methods={list(map(str, specs))}, sparsities={sparsities}, "
            f"distributions={distributions}, seeds={seeds}"
        )
    return list(result)


def _axis(spec, name, values):
    """Returns the values of a setting at which a spec is compared."""
    if spec.method == "dense":
        return [None]
    return [spec.arguments[name]] if name in spec.arguments else values


def compare(
    specs,
    sparsities=(Settings.sparsity,),
    seeds=SEEDS,
    *,
    folder,
    distributions=(Settings.distribution,),
    base=None,
    data_dir=None,
    command=None,
):
    """Trains all runs that are not finished, and writes a table, its rows as JSON, and pictures.

    Every finished run is stored at once as `<folder>/runs/<its name>.json`. The same
    comparison continues after an interruption, and one with more methods or seeds in the same
    folder trains only those. Several processes can share a folder: each run belongs to one
    process.

    Args:
        specs: iterable of str, see `tf_rigl.experiments.specs.parse`.
        sparsities: iterable of float.
        seeds: iterable of int.
        folder: str or path; absent, empty, or that of an earlier comparison.
        distributions: iterable of str.
        base: `Settings`, the values of all settings that a spec does not give. Defaults to
            `Settings()`.
        data_dir: see `tf_rigl.data.load`.
        command: str, the command that made the rows; it is stored with them.

    Returns:
        A list of dict, the rows of the table.

    Raises:
        ValueError: if a spec, a setting or the folder is invalid, or a stored result is
            damaged or belongs to another run.

    Example:

        rows = compare(["dense", "rigl@2x"], [0.9, 0.95], folder="runs/compare")
    """
    folder = files.check_folder(folder, COMPARISON)
    plan = cells(specs, sparsities, distributions, seeds, base or Settings())
    store = Store(folder / RUNS, [settings for cell in plan for settings in cell.runs])

    def tabulate():
        rows = [_row(cell, store) for cell in plan]
        files.write_text(folder / TABLE, table(rows))
        files.write_text(folder / RESULT, files.to_json({"command": command, "rows": rows}))
        return rows

    _check_methods(store, data_dir)
    for _ in _train(store, data_dir):
        tabulate()  # After every run, so that you can look at a long comparison.
    rows = tabulate()
    if any(row["accuracies"] for row in rows):
        _draw(folder, plan, rows, store)
    return rows


def _check_methods(store, data_dir):
    """Raises if a method's arguments do not fit the number of steps of its run."""
    steps = {}
    for settings in (each for each in store.unfinished() if each.method != "dense"):
        key = settings.dataset, settings.batch_size
        if key not in steps:
            steps[key] = len(data.load(*key, data_dir=data_dir).train)
        try:
            settings.make_method(settings.epochs * steps[key])
        except ValueError as error:
            raise ValueError(f"{settings.name}: {error}") from error


def _train(store, data_dir):
    """Does the runs that are unfinished and unclaimed, and yields after each."""
    total, before = len(store.wanted), store.unfinished()
    if len(before) < total:
        print(f"{total - len(before)} of {total} runs are finished already.", flush=True)
    began, found = time.perf_counter(), True
    while found:  # Another process may end without finishing a run that it had claimed.
        found = False
        for settings in store.unfinished():
            with store.claim(settings) as mine:
                if not mine:
                    continue
                found = True
                keras.backend.clear_session()  # Keras numbers layers anew in each run.
                try:
                    _, result = runs.run(settings, data_dir=data_dir, verbose=0)
                except ValueError as error:
                    raise ValueError(f"{settings.name}: {error}") from error
                store.add(settings, result)
            # Runs that other processes have stored meanwhile count for the pace too.
            left = store.unfinished()
            done = sum(s.epochs for s in before) - sum(s.epochs for s in left)
            seconds = (time.perf_counter() - began) / done * sum(s.epochs for s in left)
            print(
                f"[{total - len(left)}/{total}, {seconds / 60:.0f} min left] {settings.name}: "
                f"{result['accuracy']:.4f}",
                flush=True,
            )
            yield
    if left := store.unfinished():
        print(
            f"Other processes are doing {len(left)} of {total} runs. The table counts the "
            "finished runs; run the same command again to complete it.",
            flush=True,
        )


def _row(cell, store):
    """Makes a row of the table from a cell's finished runs."""
    done = [settings for settings in cell.runs if store.get(settings) is not None]
    results = [store.get(settings) for settings in done]
    accuracies = [result["accuracy"] for result in results]
    explored = [result.get("explored") for result in results]

    def mean(function):
        return statistics.fmean(map(function, results)) if results else None

    return {
        "method": cell.spec,
        "sparsity": cell.sparsity,
        "distribution": cell.distribution,
        "pattern": cell.runs[0].pattern,
        "epochs": cell.runs[0].epochs,
        "seeds": [settings.seed for settings in done],
        "seeds_wanted": len(cell.runs),
        "accuracies": accuracies,
        "mean": statistics.fmean(accuracies) if accuracies else None,
        "std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        # A dense step costs three forward passes: one forward, two backward.
        "train_flops": mean(
            lambda r: cell.times * r["train_flops"] / (3 * r["report"]["dense_flops"])
        ),
        "inference_flops": mean(lambda r: r["report"]["flops"] / r["report"]["dense_flops"]),
        "size": mean(lambda r: r["report"]["bytes"] / r["report"]["dense_bytes"]),
        "bytes": mean(lambda r: r["report"]["bytes"]),
        # Results of older versions have none.
        "explored": None if None in explored else mean(lambda r: r["explored"]),
        "runs": [settings.name for settings in cell.runs],
    }


def _draw(folder, plan, rows, store):
    """Writes the pictures."""
    plots = pictures.drawing()
    if plots is None:
        return
    wanted = {
        "accuracy_flops.png": (plots.draw_accuracy_flops, rows),
        "accuracy_sparsity.png": (plots.draw_accuracy_sparsity, rows),
        "input_pixels.png": (plots.draw_input_pixels, _moving(plan, store)),
    }
    for name, (draw, content) in wanted.items():
        if content:
            with files.beside(folder / name) as scratch:
                draw(content, scratch)


def _moving(plan, store):
    """Returns a finished run of each spec that moves masks, at its highest sparsity, by label."""
    result = {}
    for spec in dict.fromkeys(cell.spec for cell in plan):
        runs = [settings for cell in plan if cell.spec == spec for settings in cell.runs]
        for settings in sorted(runs, key=lambda settings: -settings.sparsity):
            done = store.get(settings)
            inputs = done and done.get("input_connections")
            if inputs and inputs["counts"][0] != inputs["counts"][-1]:
                result[f"{spec} {settings.sparsity:g}"] = done
                break
    return result


def table(rows) -> str:
    """Returns the rows of a comparison as a Markdown table, padded to be read as text.

    Args:
        rows: list of dict, from `compare`.

    Returns:
        A str.
    """
    head = ["method", "sparsity", "distribution", "pattern", "test accuracy, %", "seeds"]
    head += ["training FLOPs", "inference FLOPs", "size", "kB", "explored"]
    lines = [head, *map(_line, rows)]
    if all(row["pattern"] == "unstructured" for row in rows):
        lines = [line[:3] + line[4:] for line in lines]
    body = "\n".join(tables.markdown(lines[0], lines[1:], padded=True))
    note = (
        "Test accuracy after the last epoch, mean ± sample standard deviation over seeds. FLOPs "
        "and size\nare relative to the dense network. Training FLOPs are relative to training it "
        "once for the epochs of\nthe comparison, so @2x counts double. Explored is the share of "
        "the entries of masked weights\nthat were active at least once (R_s of RigL-ITOP); runs of "
        "older versions lack it."
    )
    return f"{body}\n\n{note}\n"


def _line(row):
    """Returns the cells of a row as text."""
    number, wanted = len(row["accuracies"]), row["seeds_wanted"]
    accuracy = tables.mean_and_spread(row["accuracies"], scale=100) if number else "-"
    explored = "" if row.get("explored") is None else f"{row['explored']:.3f}"
    ratios = [row["train_flops"], row["inference_flops"], row["size"]]
    return [
        row["method"],
        "-" if row["sparsity"] is None else f"{row['sparsity']:g}",
        row["distribution"] or "-",
        row["pattern"] if row["sparsity"] is not None else "-",
        accuracy,
        f"{number}" if number == wanted else f"{number} of {wanted}",
        *("-" if ratio is None else f"{ratio:.3f}" for ratio in ratios),
        "-" if row["bytes"] is None else f"{row['bytes'] / 1000:,.1f}",
        "-" if row["sparsity"] is None or not number else explored,
    ]
