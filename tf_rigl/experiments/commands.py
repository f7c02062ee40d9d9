"""The commands of `tf-rigl`: each a function of its parsed options, which returns the exit code.

Options are checked as far as possible before TensorFlow is imported.
"""

import dataclasses
import functools
import os
import pathlib
import shlex
import sys
import tempfile

from tf_rigl._base import files, registry
from tf_rigl._base.arguments import check_integer, unknown_name
from tf_rigl.experiments import fields, model_files, specs
from tf_rigl.experiments.settings import COMPARISON, Settings
from tf_rigl.experiments.ticket_settings import (
    SEARCHES,
    SWEEPS,
    TicketSettings,
    rounds_with_controls,
)

# The files in the folder of a search, see `files.check_folder`.
WANN = {"result.json": ("settings", "history")}


def train(options):
    """Trains a network, and with `--beside-dense` the dense one first."""
    options.options = _method_options(options.options)
    if options.output is not None:
        files.check_folder(options.output)
    settings = _settings(Settings, options)

    from tf_rigl.experiments import pictures, runs

    folder = files.check_folder(options.output or os.path.join("runs", settings.name))
    plots = pictures.drawing(sys.stderr) if settings.method != "dense" else None
    verbose = 1 if sys.stdout.isatty() else 2

    dense = None
    if options.beside_dense and settings.method != "dense":
        print(f"Training dense, {settings.model} on {settings.dataset}", flush=True)
        usual = {"options": {}, "compute": "masked", "initialization": "model"}
        usual["drop_fraction"] = None
        twin = dataclasses.replace(settings, method="dense", **usual)
        _, dense = runs.run(twin, data_dir=options.data_dir, verbose=verbose)
    print(f"Training {settings.method}, {settings.model} on {settings.dataset}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        csv = pathlib.Path(scratch, "sparsity.csv")
        model, result = runs.run(settings, data_dir=options.data_dir, verbose=verbose, csv=csv)
        figures = csv.read_text(encoding="utf-8") if csv.exists() else None
    if dense is not None:
        result["dense"] = {key: dense[key] for key in ("accuracy", "loss", "parameters", "seconds")}
    files.write_run(folder, model, result, plots and plots.draw_run, figures)

    print()
    if dense is not None:
        print(runs.summary(dense))
    print(runs.summary(result))
    _print_written(folder)
    return 0


def _settings(cls, options):
    """Makes settings from parsed options."""
    return cls(**_given(cls, options))


def _given(cls, options):
    """Returns the parsed options that are fields of the settings, as a dict."""
    names = [field.name for field in dataclasses.fields(cls)]
    return {name: getattr(options, name) for name in names if hasattr(options, name)}


def _method_options(texts):
    """Returns the dict for `--option name=value ...`."""
    result = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--option must be given as name=value. Received: {text!r}")
        result[name.strip()] = specs.parse_value(value)
    return result


def compare(options):
    """Compares methods at several sparsities with several seeds."""
    _check_seeds(options.seeds)
    # Checks the options one by one, before Keras is imported.
    values = list(_given(Settings, options).items())
    values += [("sparsity", each) for each in options.sparsities]
    values += [("distribution", each) for each in options.distributions]
    for name, value in values:
        fields.check(Settings, name, value)
    parsed = [specs.parse(spec) for spec in options.methods]
    if options.output is not None:
        files.check_folder(options.output, COMPARISON)
    base = _settings(Settings, options)

    from tf_rigl.experiments import compare as comparison

    name = f"compare-{base.dataset}-{base.model}-epochs{base.epochs}"
    if base.pattern != "unstructured":
        name += f"-{base.pattern.replace(':', '-of-')}"
    folder = options.output or os.path.join("runs", name)
    return _resumable(
        lambda: comparison.compare(
            parsed,
            options.sparsities,
            range(options.seeds),
            distributions=options.distributions,
            base=base,
            folder=folder,
            data_dir=options.data_dir,
            command=_command(options),
        ),
        comparison.table,
        folder,
    )


def tickets(options):
    """Searches for lottery tickets, and trains controls."""
    _check_seeds(options.seeds)
    settings = _settings(TicketSettings, options)
    check_integer("rounds", options.rounds, 1)  # Without one, dense networks would be trained.
    rounds_with_controls(settings, options.rounds, options.controls, options.densities)
    rates = options.learning_rates
    for rate in rates or ():
        dataclasses.replace(settings, learning_rate=rate)  # Raises if it is out of range.
    name = "tickets" if rates is None else "ticket-rates"
    name += f"-{settings.dataset}-{settings.model}-epochs{settings.epochs}"
    marks = SEARCHES if rates is None else SWEEPS
    folder = files.check_folder(options.output or os.path.join("runs", name), marks)

    from tf_rigl.experiments import ticket_sweep
    from tf_rigl.experiments import tickets as experiment

    search = experiment.tickets
    if rates is not None:
        search = functools.partial(ticket_sweep.sweep, learning_rates=rates)
    return _resumable(
        lambda: search(
            settings,
            rounds=options.rounds,
            seeds=range(options.seeds),
            controls=options.controls,
            densities=options.densities,
            folder=folder,
            data_dir=options.data_dir,
            command=_command(options),
        ),
        experiment.table if rates is None else ticket_sweep.table,
        folder,
    )


def wann(options):
    """Searches for a weight-agnostic network."""
    check_integer("population", options.population, 5)
    check_integer("generations", options.generations, 1)
    check_integer("seed", options.seed, 0)
    if options.size is not None:
        check_integer("size", options.size, 1)
    size = "" if options.size is None else f"-size{options.size}"
    name = f"wann-{options.dataset}{size}-population{options.population}-seed{options.seed}"
    folder = files.check_folder(options.output or os.path.join("runs", name), WANN)

    from tf_rigl.experiments import wann_runs

    try:
        result = wann_runs.run(
            options.dataset,
            options.population,
            options.generations,
            options.seed,
            folder=folder,
            size=options.size,
            data_dir=options.data_dir,
        )
    except KeyboardInterrupt:
        print(f"tf-rigl: interrupted; the same command goes on from {folder}", file=sys.stderr)
        return 130
    print(f"\n{wann_runs.summary(result)}")
    _print_written(folder)
    return 0


def _check_seeds(count):
    if not 1 <= count <= 10_000:
        raise ValueError(f"--seeds must be from 1 to 10,000. Received: seeds={count}")


def _command(options):
    """Returns the command line, which is stored with results."""
    return shlex.join(["tf-rigl", *options.arguments])


def _resumable(train_all, table, folder):
    """Trains, and prints a table of the rows; an interruption keeps the finished trainings."""
    try:
        rows = train_all()
    except KeyboardInterrupt:
        print(
            f"tf-rigl: interrupted; the finished trainings are kept in {folder}, and the same "
            "command continues from there",
            file=sys.stderr,
        )
        return 130
    print(f"\n{table(rows)}")
    _print_written(folder)
    return 0


def _print_written(folder):
    print(f"Written to {os.path.relpath(folder)}: {', '.join(sorted(os.listdir(folder)))}")


def report(options):
    """Prints the report of a model file."""
    model_files.check_file(options.file)
    model_files.check_imports(options.imports)

    import tf_rigl

    model = model_files.load(options.file, options.imports)
    found = tf_rigl.report(model)
    advice = tf_rigl.export.advise(model) if options.advice else None
    if options.json:
        result = found.to_dict()
        if advice is not None:
            result["advice"] = advice.to_dict()
        print(files.to_json(result), end="")
        return 0
    print(found)
    if advice is not None:
        print(f"\n{advice}")
    return 0


def compact(options):
    """Writes the compact form of a model file."""
    if options.form not in registry.FORMS:
        raise unknown_name("form", options.form, registry.FORMS, or_object=False)
    if not options.path.endswith(".keras"):
        raise ValueError(f"The path must end in .keras. Received: {options.path!r}")
    files.check_place(options.path)
    model_files.check_file(options.file)
    model_files.check_imports(options.imports)

    import tf_rigl

    before = os.path.getsize(options.file)  # The small one may replace it.
    model = model_files.load(options.file, options.imports)
    small = tf_rigl.compact(model, form=options.form, verbose=True)
    with files.beside(files.check_place(options.path)) as scratch:
        small.save(scratch)
    after = os.path.getsize(options.path)
    print(f"Written to {options.path}: {after:,} bytes, the given file has {before:,}.")
    return 0


def export(options):
    """Exports a model file to LiteRT or to a SavedModel."""
    to_litert = options.path.lower().endswith(".tflite")
    allowed = registry.COMPUTE if to_litert else registry.COMPUTE[:-1]
    if options.compute not in allowed:
        raise unknown_name("compute", options.compute, allowed, or_object=False)
    if to_litert:
        _check_litert(options)
    else:
        _check_saved_model(options)
    files.check_place(options.path)
    model_files.check_file(options.file)
    model_files.check_imports(options.imports)

    import tf_rigl

    model = model_files.load(options.file, options.imports)
    if not to_litert:
        print(_saved_model(model, options))
        return 0
    images = None
    if options.representative_dataset is not None:
        data = tf_rigl.data.load(options.representative_dataset, data_dir=options.data_dir)
        images = data.train
    info = tf_rigl.export_tflite(
        model,
        options.path,
        quantization=options.quantization,
        representative_dataset=images,
        batch_size=options.batch_size,
        packed=not options.unpacked,
        compute=options.compute,
    )
    print(info)
    return 0


def _saved_model(model, options):
    import tf_rigl

    return tf_rigl.export_saved_model(
        model, options.path, packed=not options.unpacked, compute=options.compute
    )


def _check_litert(options):
    """Raises if an option does not fit a LiteRT file."""
    quantization, names = options.quantization, registry.QUANTIZATIONS
    if quantization is not None and quantization not in names:
        raise unknown_name("quantization", quantization, names, or_object=False)
    if (quantization == "int8") != (options.representative_dataset is not None):
        raise ValueError(
            "--representative-dataset must be given with --quantization int8, and only with it. "
            f"Received: quantization={quantization!r}, "
            f"representative_dataset={options.representative_dataset!r}"
        )
    if options.batch_size is not None:
        check_integer("batch_size", options.batch_size, 1)


def _check_saved_model(options):
    """Raises if the path or an option does not fit a SavedModel."""
    if options.path.lower().endswith((".lite", ".keras", ".h5", ".pb")):
        raise ValueError(
            "The path must end in .tflite, or be that of a folder for a SavedModel. "
            f"Received: {options.path!r}"
        )
    given = {
        "--quantization": options.quantization,
        "--representative-dataset": options.representative_dataset,
        "--batch-size": options.batch_size,
    }
    for name, value in given.items():
        if value is not None:
            raise ValueError(
                f"{name} is for LiteRT, a path that ends in .tflite. "
                f"Received: path={options.path!r}"
            )
