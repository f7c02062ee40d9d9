"""Comparisons: methods by sparsities by seeds, each run done once and kept."""

import dataclasses
import statistics
import time

import keras

from tf_rigl._base import files
from tf_rigl.experiments import data, runs
from tf_rigl.experiments.settings import Settings
from tf_rigl.experiments.specs import parse
from tf_rigl.experiments.store import Store

RUNS, TABLE, RESULT = "runs", "table.md", "comparison.json"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A row of the table: runs that differ by their seeds only.

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
    """Everything that a comparison has to train.

    Args:
        specs: iterable of str or `Spec`.
        sparsities: iterable of float; a spec that gives its own is trained at that one.
        distributions: iterable of str; likewise.
        seeds: iterable of int.
        base: `Settings`, for all that the specs do not say.

    Returns:
        A list of `Cell`, in the order given.

    Raises:
        ValueError: if there is nothing to do, or a run is not possible.
    """
    result = {}
    specs = [parse(spec) if isinstance(spec, str) else spec for spec in specs]
    sparsities, distributions, seeds = list(sparsities), list(distributions), list(seeds)
    for spec in specs:
        for distribution in _axis(spec, "distribution", distributions):
            for sparsity in _axis(spec, "sparsity", sparsities):
                # What "dense" does not use is the same for all its runs.
                place = {"sparsity": sparsity or 0.0, "distribution": distribution or "erk"}
                if spec.method == "dense":
                    place["pattern"] = "unstructured"
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
    """The values of a setting at which a spec is compared."""
    if spec.method == "dense":
        return [None]
    return [spec.arguments[name]] if name in spec.arguments else values


def compare(
    specs,
    sparsities=(0.9,),
    seeds=(0, 1, 2),
    *,
    folder,
    distributions=("erk",),
    base=None,
    data_dir=None,
    command=None,
):
    """Trains what is not trained yet, and writes a table, its rows as JSON, and pictures.

    Every finished run is stored at once as `<folder>/runs/<its name>.json`, so that a
    comparison that was cut off goes on where it was, and one with further methods or
    seeds in the same folder does only those. Several processes may work in one folder:
    each takes runs that no other has.

    Args:
        specs: iterable of str, see `tf_rigl.experiments.specs.parse`.
        sparsities: iterable of float.
        seeds: iterable of int.
        folder: str or path; absent, empty, or that of an earlier comparison.
        distributions: iterable of str.
        base: `Settings`, for all that the specs do not say. Defaults to `Settings()`.
        data_dir: see `tf_rigl.data.load`.
        command: str, kept with the rows, to say how they were made.

    Returns:
        A list of dict, the rows of the table.

    Raises:
        ValueError: if a spec, a setting or the folder is not possible, or a stored run is
            not what its name says.

    Example:

        rows = compare(["dense", "rigl@2x"], [0.9, 0.95], folder="runs/compare")
    """
    folder = files.check_folder(folder, (RESULT, RUNS))
    plan = cells(specs, sparsities, distributions, seeds, base or Settings())
    store = Store(folder / RUNS, [settings for cell in plan for settings in cell.runs])

    def tabulate():
        rows = [_row(cell, store) for cell in plan]
        files.write_text(folder / TABLE, table(rows))
        files.write_text(folder / RESULT, files.to_json({"command": command, "rows": rows}))
        return rows

    _check_methods(store, data_dir)
    for _ in _train(store, data_dir):
        tabulate()  # After every run: a long comparison can be looked at.
    rows = tabulate()
    if any(row["accuracies"] for row in rows):
        _draw(folder, plan, rows, store)
    return rows


def _check_methods(store, data_dir):
    """Raises if a method cannot be made for the number of steps that its run will have."""
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
    """Does the unfinished runs that no other process does, and yields after each."""
    total, before = len(store.wanted), store.unfinished()
    if len(before) < total:
        print(f"{total - len(before)} of {total} runs are there already.", flush=True)
    began, found = time.perf_counter(), True
    while found:  # A process may have died over a run that it had claimed.
        found = False
        for settings in store.unfinished():
            with store.claim(settings) as mine:
                if not mine:
                    continue
                found = True
                keras.backend.clear_session()  # Names of layers begin anew in each run.
                try:
                    _, result = runs.run(settings, data_dir=data_dir, verbose=0)
                except ValueError as error:
                    raise ValueError(f"{settings.name}: {error}") from error
                store.add(settings, result)
            # What other processes have stored meanwhile counts for the pace too.
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
        pids = sorted({pid for settings in left if (pid := store.claimed(settings))})
        print(
            f"{len(left)} of {total} runs are being done elsewhere (process "
            f"{', '.join(map(str, pids)) or 'gone just now'}) and are not waited for; the table "
            "counts what is finished. The same command again completes it.",
            flush=True,
        )


def _row(cell, store):
    """What is known of a cell: a row of the table."""
    done = [settings for settings in cell.runs if store.get(settings) is not None]
    results = [store.get(settings) for settings in done]
    accuracies = [result["accuracy"] for result in results]

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
        "runs": [settings.name for settings in cell.runs],
    }


def _draw(folder, plan, rows, store):
    """Writes the pictures, where matplotlib is installed."""
    try:
        from tf_rigl.experiments import plots
    except ModuleNotFoundError as error:
        print(f"No pictures are drawn ({error}): pip install 'tf_rigl[plots]'", flush=True)
        return
    pictures = {
        "accuracy_flops.png": (plots.draw_accuracy_flops, rows),
        "accuracy_sparsity.png": (plots.draw_accuracy_sparsity, rows),
        "input_pixels.png": (plots.draw_input_pixels, _moving(plan, store)),
    }
    for name, (draw, what) in pictures.items():
        if what:
            with files.beside(folder / name) as scratch:
                draw(what, scratch)


def _moving(plan, store):
    """For each method that moves masks the first finished run at the highest sparsity."""
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
    """The rows of a comparison as a Markdown table, aligned for reading as text.

    Args:
        rows: list of dict, from `compare`.

    Returns:
        A str.
    """
    head = ["method", "sparsity", "distribution", "pattern", "test accuracy, %", "seeds"]
    head += ["training FLOPs", "inference FLOPs", "size", "kB"]
    lines = [head, *(_line(row) for row in rows)]
    if all(row["pattern"] == "unstructured" for row in rows):
        lines = [line[:3] + line[4:] for line in lines]
        head = lines[0]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]

    def join(line):
        others = [text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True)]
        return f"| {' | '.join([line[0].ljust(widths[0]), *others])} |"

    rule = "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])])
    body = "\n".join([join(head), f"|{rule}|", *map(join, lines[1:])])
    note = (
        "Test accuracy after the last epoch, mean ± sample standard deviation over seeds. FLOPs "
        "and size\nare relative to the dense network. Training FLOPs are relative to training it "
        "once for the epochs of\nthe comparison, so that @2x counts double."
    )
    return f"{body}\n\n{note}\n"


def _line(row):
    """The texts of a row."""
    number, wanted = len(row["accuracies"]), row["seeds_wanted"]
    accuracy = f"{100 * row['mean']:.2f}" if number else "-"
    if number > 1:
        accuracy += f" ± {100 * row['std']:.2f}"
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
    ]
