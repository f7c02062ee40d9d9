"""Comparisons: methods by sparsities by seeds, each run done once and kept."""

import ast
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import statistics
import tempfile
import time

import keras

from tf_rigl import experiments
from tf_rigl._arguments import unknown_name
from tf_rigl.experiments import Settings

_FIELDS = [f.name for f in dataclasses.fields(Settings) if f.name not in ("method", "options")]
_SPEC = re.compile(r"\s*([\w-]+)\s*(?:\((.*)\))?\s*(?:@\s*(\d+(?:\.\d+)?)x)?\s*", re.DOTALL)
_WORD = re.compile(r"[A-Za-z_][\w.-]*")
_TOKEN = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|.""", re.DOTALL)
_OPENING, _CLOSING = set("([{"), set(")]}")
RUNS, TABLE, RESULT = "runs", "table.md", "comparison.json"
_MOMENT = 10  # Seconds within which a process writes its number into a file that it made.
_CONSTANTS = {"true": True, "false": False, "none": None, "null": None}


@dataclasses.dataclass(frozen=True)
class Spec:
    """What is to be compared: a method, and what is particular about it.

    Attributes:
        method: str, as in `tf_rigl.experiments.Settings`.
        arguments: dict of settings by name, and of options of the method.
        times: float, how many times the comparison's epochs it is trained for.
    """

    method: str
    arguments: dict = dataclasses.field(default_factory=dict, hash=False)
    times: float = 1.0

    def __str__(self):
        arguments = ", ".join(f"{k}={_text(v)}" for k, v in self.arguments.items())
        times = f"@{str(self.times).removesuffix('.0')}x" if self.times != 1 else ""
        return f"{self.method}{f'({arguments})' if arguments else ''}{times}"

    def settings(self, base, **others) -> Settings:
        """The settings of a run.

        Args:
            base: `Settings`, for all that is not said otherwise.
            **others: settings by name, which the spec's own take precedence over.

        Returns:
            A `Settings`.

        Raises:
            ValueError: if a name or a value in the spec is not possible.
        """
        own = {k: v for k, v in self.arguments.items() if k in _FIELDS}
        options = {k: v for k, v in self.arguments.items() if k not in _FIELDS}
        try:
            result = dataclasses.replace(
                base, method=self.method, options=options, **(others | own)
            )
        except ValueError as error:
            raise ValueError(f"In {str(self)!r}: {error}") from error
        epochs = result.epochs * self.times
        if epochs < 1 or epochs != int(epochs):
            raise ValueError(
                f"{str(self)!r} must train for a whole number of epochs. Received: {epochs:g}"
            )
        return dataclasses.replace(result, epochs=int(epochs))


def parse(text) -> Spec:
    """Reads a spec.

    Args:
        text: str, a method's name, then in parentheses whatever is particular, then how
            much longer it is trained: `rigl`, `rigl@2x`, `snip(scope=global)`,
            `rigl(drop_fraction=0.5, gradient_batches=4)@2x`. Values are Python literals;
            words need no quotes.

    Returns:
        A `Spec`.

    Raises:
        ValueError: if it cannot be read; the message shows the form.

    Example:

    >>> parse("snip(scope=global)@2x")
    Spec(method='snip', arguments={'scope': 'global'}, times=2.0)
    """
    found = _SPEC.fullmatch(text)
    if found is None:
        raise _unreadable(text, "it is not of the form name(option=value, ...)@2x")
    name, inner, times = found.groups()
    if name not in experiments.METHODS:
        raise unknown_name("method", name, experiments.METHODS, or_object=False)
    spec = Spec(name, _arguments(text, inner or ""), float(times or 1))
    known = experiments.method_arguments(name)
    for key in spec.arguments:
        if key == "seed":
            raise _unreadable(text, "seeds are the same for all that is compared")
        if (key in experiments.OF_METHODS and key not in known) or (
            name == "dense" and key in ("sparsity", "distribution")
        ):
            raise _unreadable(text, f"{name!r} has no {key!r}")
    return spec


def parse_value(text):
    """Reads a value as it stands in a spec: a Python literal, or a word without quotes.

    Raises:
        ValueError: if it is neither.

    Example:

    >>> parse_value("0.5"), parse_value("global"), parse_value("true")
    (0.5, 'global', True)
    """
    text = text.strip()
    if text.lower() in _CONSTANTS:
        return _CONSTANTS[text.lower()]
    if _WORD.fullmatch(text):
        return text
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text!r} is neither a word nor a Python literal") from error


def _arguments(text, inner):
    """What stands between the parentheses of a spec, as a dict."""
    result = {}
    for part in _split(inner):
        name, equals, value = part.partition("=")
        name = name.strip()
        if not equals or not name.isidentifier() or name in result:
            raise _unreadable(text, f"each option must be given as name=value, once: {part!r}")
        try:
            result[name] = parse_value(value)
        except ValueError as error:
            raise _unreadable(text, error) from error
    return result


def _split(inner):
    """The parts between the commas that are in no brackets and no quotes.

    Python's own parser is of no use here: `global` is one of its keywords.
    """
    parts, depth = [""], 0
    for token in _TOKEN.findall(inner):
        depth += (token in _OPENING) - (token in _CLOSING)
        if token == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += token
    return parts if parts[-1].strip() else parts[:-1]


def _unreadable(text, reason):
    return ValueError(
        f"Argument `methods` must hold specs such as rigl, rigl@2x, 'snip(scope=global)' or "
        f"'rigl(drop_fraction=0.5)@2x'. Received: {text!r}: {reason}"
    )


def _text(value):
    """A value as it is written in a spec."""
    if isinstance(value, str) and _WORD.fullmatch(value) and value.lower() not in _CONSTANTS:
        return value
    return repr(value)


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
        specs: iterable of str, see `parse`.
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
    folder = experiments.check_folder(folder, (RESULT, RUNS))
    plan = cells(specs, sparsities, distributions, seeds, base or Settings())
    store = Store(folder / RUNS, [settings for cell in plan for settings in cell.runs])

    def tabulate():
        rows = [_row(cell, store) for cell in plan]
        _write(folder / TABLE, table(rows))
        made = {"command": command, "rows": rows}
        _write(folder / RESULT, experiments.to_json(made))
        return rows

    for _ in _train(store, data_dir):
        tabulate()  # After every run: a long comparison can be looked at.
    rows = tabulate()
    if any(row["accuracies"] for row in rows):
        _draw(folder, plan, rows, store)
    return rows


class Store:
    """The runs of a comparison that are finished, and those that are under way.

    Args:
        folder: path of the folder that holds them.
        runs: iterable of `Settings`, what the comparison needs; some may be equal.

    Attributes:
        wanted: list of `Settings`, each once, all with the first seed first, so that an
            unfinished table has something in each row.

    Raises:
        ValueError: if two different runs would have the same name, or a stored one is
            not what its name says.
    """

    def __init__(self, folder, runs):
        by_name = {}
        for settings in runs:
            if by_name.setdefault(settings.name, settings) != settings:
                raise ValueError(
                    "Two runs differ by less than their names tell. "
                    f"Received: {settings} and {by_name[settings.name]}"
                )
        self.folder = pathlib.Path(folder)
        self.wanted = sorted(by_name.values(), key=lambda settings: settings.seed)
        self._results = {}
        for settings in self.wanted:
            self.get(settings)

    def path(self, settings) -> pathlib.Path:
        """Where the result of a run is stored."""
        return self.folder / f"{settings.name}.json"

    def get(self, settings):
        """The result of a run, or None if it is not finished."""
        name, path = settings.name, self.path(settings)
        if name not in self._results and path.exists():
            self._results[name] = _read(path, settings)
        return self._results.get(name)

    def unfinished(self) -> list[Settings]:
        """The runs that are not stored yet."""
        return [settings for settings in self.wanted if self.get(settings) is None]

    def add(self, settings, result):
        """Stores the result of a run."""
        _write(self.path(settings), experiments.to_json(result))

    @contextlib.contextmanager
    def claim(self, settings):
        """Keeps other processes from doing a run; yields whether it is ours to do."""
        lock = self.folder / f"{settings.name}.running"
        mine = _create(lock) or (_remove_stale(lock) and _create(lock))
        try:
            yield mine and self.get(settings) is None
        finally:
            if mine:
                lock.unlink(missing_ok=True)

    def claimed(self, settings) -> int | None:
        """The process that has claimed a run, or None."""
        return _owner(self.folder / f"{settings.name}.running")


def _read(path, settings):
    """A stored result, if it is that of these settings."""
    try:
        result = json.loads(path.read_text())
        stored = Settings(**result["settings"])
        for key in ("accuracy", "train_flops", "steps"):
            float(result[key])
        for key in ("flops", "dense_flops", "bytes", "dense_bytes"):
            float(result["report"][key])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"The stored run {str(path)!r} cannot be used ({type(error).__name__}: {error}). "
            "Delete it to have it done again."
        ) from error
    if stored != settings:
        raise ValueError(
            f"The stored run {str(path)!r} is not what its name says. Move it away to have the "
            f"right one done. Expected: {settings}. Received: {stored}"
        )
    return result


@contextlib.contextmanager
def _beside(path):
    """A path to write a file to, which is then moved to its place: nobody sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(prefix=".", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    try:
        yield pathlib.Path(scratch)
        os.chmod(scratch, 0o644)
        os.replace(scratch, path)
    except BaseException:
        os.unlink(scratch)
        raise


def _write(path, text):
    with _beside(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def _create(lock):
    """Makes a lock file with our process number, unless there is one."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w") as file:
        file.write(f"{os.getpid()}\n")
    return True


def _remove_stale(lock):
    """Removes a lock file whose process lives no more; whether it did."""
    # One process at a time, or two could remove it, the second one when it is no longer
    # the dead process's but the first one's own.
    guard = lock.with_name(f"{lock.name}-check")
    if not _create(guard):
        if not _is_alive(guard):
            guard.unlink(missing_ok=True)
        return False
    try:
        if _is_alive(lock):
            return False
        lock.unlink(missing_ok=True)
        return True
    finally:
        guard.unlink(missing_ok=True)


def _is_alive(lock):
    """Whether the process that made a lock file lives."""
    pid = _owner(lock)
    if pid is not None:
        return _lives(pid)
    try:  # A file without a number may be about to get it.
        return time.time() - lock.stat().st_mtime < _MOMENT
    except FileNotFoundError:
        return False


def _owner(lock):
    """The process number in a lock file, or None if there is no such file or number."""
    try:
        return int(lock.read_text())
    except (OSError, ValueError):
        return None


def _lives(pid):
    """Whether another process has this number; one of our own number has gone before us."""
    if pid <= 0 or pid == os.getpid():
        return False
    if os.name == "nt":
        return True  # There `os.kill` would end it, not ask.
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass  # It is somebody else's.
    return True


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
                    _, result = experiments.run(settings, data_dir=data_dir, verbose=0)
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
    left = store.unfinished()
    if left:
        pids = sorted({pid for settings in left if (pid := store.claimed(settings))})
        print(
            f"{len(left)} of {total} runs are being done elsewhere (process "
            f"{', '.join(map(str, pids)) or 'gone just now'}) and are not waited for; the table "
            "counts what is finished. The same command again completes it.",
            flush=True,
        )


def _row(cell, store):
    """What is known of a cell: a row of the table."""
    done = [(s, result) for s in cell.runs if (result := store.get(s)) is not None]
    results = [result for _, result in done]
    accuracies = [result["accuracy"] for result in results]

    def mean(function):
        return statistics.fmean(map(function, results)) if results else None

    return {
        "method": cell.spec,
        "sparsity": cell.sparsity,
        "distribution": cell.distribution,
        "epochs": cell.runs[0].epochs,
        "seeds": [settings.seed for settings, _ in done],
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
        from tf_rigl import plots
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
            with _beside(folder / name) as scratch:
                draw(what, scratch)


def _moving(plan, store):
    """For each method that moves masks the first finished run at the highest sparsity."""
    result = {}
    for cell in sorted(plan, key=lambda cell: -(cell.sparsity or 0)):
        for settings in cell.runs:
            found = (store.get(settings) or {}).get("input_connections")
            if found and found["counts"][0] != found["counts"][-1]:
                label = f"{cell.spec} {cell.sparsity:g}"
                if cell.spec not in {spec for spec, _ in result}:
                    result[cell.spec, label] = store.get(settings)
                break
    order = {cell.spec: number for number, cell in enumerate(plan)}
    return {label: result[spec, label] for spec, label in sorted(result, key=lambda k: order[k[0]])}


def table(rows) -> str:
    """The rows of a comparison as a Markdown table, aligned for reading as text.

    Args:
        rows: list of dict, from `compare`.

    Returns:
        A str.
    """
    head = ["method", "sparsity", "distribution", "test accuracy, %", "seeds"]
    head += ["training FLOPs", "inference FLOPs", "size", "kB"]
    lines = [head, *(_line(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]

    def join(line):
        aligned = [f"{text:<{w}}" for text, w in zip(line[:1], widths, strict=False)]
        aligned += [f"{text:>{w}}" for text, w in zip(line[1:], widths[1:], strict=True)]
        return f"| {' | '.join(aligned)} |"

    rule = "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])])
    body = "\n".join([join(head), f"|{rule}|", *map(join, lines[1:])])
    note = (
        "Test accuracy after the last epoch, mean ± sample standard deviation over seeds. FLOPs "
        "and size\nare relative to the dense network; those of training to its training for the "
        "same epochs (@2x: twice)."
    )
    return f"{body}\n\n{note}\n"


def _line(row):
    """The texts of a row."""
    number, wanted = len(row["accuracies"]), row["seeds_wanted"]
    accuracy = "-"
    if number:
        accuracy = f"{100 * row['mean']:.2f}"
        accuracy += f" ± {100 * row['std']:.2f}" if number > 1 else ""
    ratios = [row["train_flops"], row["inference_flops"], row["size"]]
    return [
        row["method"],
        "-" if row["sparsity"] is None else f"{row['sparsity']:g}",
        row["distribution"] or "-",
        accuracy,
        f"{number}" if number == wanted else f"{number} of {wanted}",
        *("-" if ratio is None else f"{ratio:.3f}" for ratio in ratios),
        "-" if row["bytes"] is None else f"{row['bytes'] / 1000:,.1f}",
    ]
