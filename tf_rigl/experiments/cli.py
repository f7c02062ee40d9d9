"""The command line, `tf-rigl`."""

import argparse
import dataclasses
import os
import pathlib
import shlex
import sys
import tempfile
import warnings

METHODS = ("dense", "static", "snip", "set", "snfs", "rigl", "magnitude", "edge_popup")
_MODELS = (
    "lenet-300-100, lenet-300-100-normalized, lenet-5, mlp-1024, small-cnn, small-mobilenet, "
    "small-vgg, wide-resnet-22-2 or resnet-50"
)
_DISTRIBUTIONS = "erk, erdos_renyi, uniform or uniform_all"
_PATTERNS = "unstructured, block_16x1 or other blocks, 2:4 or other n:m, litert"
_COMPARE = """\
Trains each method at each sparsity with each distribution and seed, and writes a table of
test accuracies, FLOPs and sizes, its rows as JSON, and pictures.

A method is given by a spec (in quotes where the shell would read the parentheses):
  rigl                       the method with its defaults
  rigl@2x                    trained for twice the epochs
  'snip(scope=global)'       with an argument of the method
  'rigl(drop_fraction=0.5, update_interval=50)@5x'
  'rigl(pattern=block_16x1)'
In the parentheses may also stand learning_rate, batch_size, epochs, sparsity, distribution or
pattern: these hold in place of the common ones. "dense" is trained once per seed.

Every finished run is stored at once in the folder's runs/: the same command goes on where
it was cut off, and one with more methods or seeds does only those. Started several times, the
processes share the work."""


_TICKETS = """\
Searches for lottery tickets by iterative magnitude pruning with several seeds, trains controls
beside them (the same mask with new random weights, a random mask of the same layer sizes), and
writes a table, its rows as JSON, and a picture: accuracy and early-stopping step against the
weights left. The defaults are those of the paper for LeNet-300-100.

Every finished training is stored at once in the folder: the same command goes on where it was
cut off, and one with more rounds, seeds or controls does only those."""


def main(arguments=None) -> int:
    """Runs a command.

    Args:
        arguments: list of str, or None for those of the process.

    Returns:
        The exit code: 0, or 2 for bad input, after one line on standard error.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments, argparse.Namespace(arguments=arguments))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return options.run(options)
    except (ValueError, OSError, ImportError) as error:
        # Keras and TensorFlow write messages of several lines.
        print(f"tf-rigl: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tf-rigl: interrupted, nothing was written", file=sys.stderr)
        return 130


def _show_warning(message, category, filename, lineno, file=None, line=None):
    """A warning without the lines of code that it comes from."""
    del category, filename, lineno, file, line
    print(f"tf-rigl: warning: {' '.join(str(message).split())}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """One whose errors are one line, whatever the arguments hold."""

    def error(self, message):
        super().error(" ".join(message.split()))


def _parser():
    parser = _Parser(prog="tf-rigl", description="Sparse training for Keras 3 on TensorFlow.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="train a sparse network and write a run folder",
        description="Trains a network and writes a run folder: "
        "result.json, model.keras, sparsity.csv (how sparse each layer is after each epoch, and "
        "how its mask moves), and masks.png. Without options: RigL at 0.9 sparsity on "
        "scikit-learn's digits.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    train.set_defaults(run=_train)
    _add_train(train)
    compare = commands.add_parser(
        "compare",
        help="train methods at several sparsities with several seeds, and tabulate them",
        description=_COMPARE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    compare.set_defaults(run=_compare)
    _add_compare(compare)
    tickets = commands.add_parser(
        "tickets",
        help="search for lottery tickets with several seeds, and doubt them",
        description=_TICKETS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tickets.set_defaults(run=_tickets)
    _add_tickets(tickets)
    report = commands.add_parser(
        "report",
        help="what a trained model costs, layer by layer",
        description="Prints parameters, FLOPs and size of a model file, layer by layer.",
    )
    report.set_defaults(run=_report)
    _add_report(report)
    export = commands.add_parser(
        "export",
        help="write a sparse LiteRT file or SavedModel of a trained model",
        description="Exports a model file to LiteRT (a path that ends in .tflite) or to a "
        "SavedModel, and checks its outputs before it is put in place.",
    )
    export.set_defaults(run=_export)
    _add_export(export)
    return parser


def _add_report(report):
    add = report.add_argument
    add("file", help="a .keras file")
    add("--json", action="store_true", help="as JSON")
    add("--advice", action="store_true", help="also what LiteRT will run sparse, and why not")


def _add_export(export):
    add = export.add_argument
    add("file", help="a .keras file")
    add("path", help="what to write: a file that ends in .tflite, else a SavedModel folder")
    add("--quantization", default=None, help="of .tflite: float16, dynamic or int8 (none)")
    add(
        "--representative-dataset",
        default=None,
        metavar="NAME",
        help="for int8: digits, or any image data set of TFDS, whose training images are used",
    )
    add("--batch-size", type=int, default=None, help="of .tflite: a fixed one (free)")
    add("--unpacked", action="store_true", help="store zeros too")
    add("--data-dir", default=None, help="where TFDS keeps data sets")


def _add_train(train):
    add = train.add_argument
    add("--dataset", default="digits", help="digits, or any image data set of TFDS by name")
    add("--model", default="lenet-300-100", help=_MODELS)
    add("--method", default="rigl", help=", ".join(reversed(METHODS)))
    add("--sparsity", type=float, default=0.9, help="fraction of zeros, in [0, 1)")
    add("--distribution", default="erk", help=_DISTRIBUTIONS)
    add("--pattern", default="unstructured", help=_PATTERNS)
    add("--epochs", type=int, default=60, help="passes over the training data")
    add("--batch-size", type=int, default=64, help="examples in a batch")
    add("--learning-rate", type=float, default=0.1, help="of SGD, before cosine decay")
    add("--drop-fraction", type=float, default=0.3, help="of active weights, at the first update")
    add("--update-interval", type=int, default=None, help="steps between updates (100, or less)")
    add(
        "--option",
        action="append",
        dest="options",
        metavar="NAME=VALUE",
        help="a further argument of the method, such as scope=global; may be repeated",
    )
    add("--seed", type=int, default=0, help="for weights, masks and the order of the data")
    add("--beside-dense", action="store_true", help="train the dense network too, for comparison")
    add("--data-dir", default=None, help="where TFDS keeps data sets")
    add("--output", default=None, help="run folder (default: runs/ and a name of the settings)")


def _add_compare(compare):
    add = compare.add_argument
    add("--dataset", default="digits", help="digits, or any image data set of TFDS (digits)")
    add("--model", default="lenet-300-100", help=f"{_MODELS} (lenet-300-100)")
    add("--methods", nargs="+", default=METHODS, metavar="SPEC", help=f"({' '.join(METHODS)})")
    add(
        "--sparsities",
        type=float,
        nargs="+",
        default=[0.9],
        metavar="S",
        help="fractions of zeros (0.9)",
    )
    add("--pattern", default="unstructured", help=f"{_PATTERNS} (unstructured)")
    add("--distributions", nargs="+", default=["erk"], metavar="D", help=f"{_DISTRIBUTIONS} (erk)")
    add("--seeds", type=int, default=3, help="how many, from 0 (3)")
    add("--epochs", type=int, default=60, help="passes over the training data (60)")
    add("--batch-size", type=int, default=64, help="examples in a batch (64)")
    add("--learning-rate", type=float, default=0.1, help="of SGD, before cosine decay (0.1)")
    add("--data-dir", default=None, help="where TFDS keeps data sets")
    add("--output", default=None, help="folder (runs/compare- and a name of the settings)")


def _add_tickets(tickets):
    add = tickets.add_argument
    add("--dataset", default="digits", help="digits, or any image data set of TFDS (digits)")
    add("--model", default="lenet-300-100", help=f"{_MODELS} (lenet-300-100)")
    add("--rounds", type=int, default=15, help="how often is pruned (15)")
    add(
        "--prune-fraction",
        type=float,
        default=0.2,
        help="of the weights left, in each round; half of it in the output layer (0.2)",
    )
    add("--scope", default="layer", help="layer, or global: the smallest of all layers (layer)")
    add(
        "--rewind-step",
        type=int,
        default=0,
        help="where tickets begin: 0, or a multiple of --every (0)",
    )
    add("--seeds", type=int, default=5, help="how many, from 0 (5)")
    add(
        "--controls",
        nargs="*",
        default=["reinitialised", "random"],
        metavar="C",
        help="reinitialised, random, shuffled (reinitialised random)",
    )
    add(
        "--densities",
        type=float,
        nargs="+",
        default=None,
        metavar="D",
        help="fractions of weights left at which controls are trained (those of 0.51 0.21 0.07 "
        "0.036 that the rounds reach)",
    )
    add(
        "--epochs",
        type=int,
        default=60,
        help="passes over the training data but for the twelfth that is held out, made up to a "
        "multiple of --every steps (60)",
    )
    add("--batch-size", type=int, default=60, help="examples in a batch (60)")
    add("--optimizer", default="adam", help="adam, or sgd with momentum 0.9 (adam)")
    add("--learning-rate", type=float, default=1.2e-3, help="constant (0.0012)")
    add("--warm-up", type=int, default=0, help="steps in which it rises to that (0)")
    add("--every", type=int, default=100, help="steps between evaluations (100)")
    add("--data-dir", default=None, help="where TFDS keeps data sets")
    add("--output", default=None, help="folder (runs/tickets- and a name of the settings)")


def _train(options):
    from tf_rigl._base import files
    from tf_rigl.experiments import runs
    from tf_rigl.experiments.settings import Settings

    options.options = _method_options(options.options)
    settings = Settings(**{f.name: getattr(options, f.name) for f in dataclasses.fields(Settings)})
    folder = files.check_folder(options.output or os.path.join("runs", settings.name))
    draw = _drawing() if settings.method != "dense" else None
    verbose = 1 if sys.stdout.isatty() else 2

    dense = None
    if options.beside_dense and settings.method != "dense":
        print(f"Training dense, {settings.model} on {settings.dataset}", flush=True)
        twin = dataclasses.replace(settings, method="dense", options={})
        _, dense = runs.run(twin, data_dir=options.data_dir, verbose=verbose)
    print(f"Training {settings.method}, {settings.model} on {settings.dataset}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        csv = pathlib.Path(scratch, "sparsity.csv")
        model, result = runs.run(settings, data_dir=options.data_dir, verbose=verbose, csv=csv)
        figures = csv.read_text(encoding="utf-8") if csv.exists() else None
    if dense is not None:
        result["dense"] = {key: dense[key] for key in ("accuracy", "loss", "parameters", "seconds")}
    files.write_run(folder, model, result, draw, figures)

    print()
    if dense is not None:
        print(runs.summary(dense))
    print(runs.summary(result))
    print(f"Written to {os.path.relpath(folder)}: {', '.join(sorted(os.listdir(folder)))}")
    return 0


def _method_options(texts):
    """The dict that `--option name=value ...` stands for."""
    from tf_rigl.experiments.specs import parse_value

    result = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--option must be given as name=value. Received: {text!r}")
        result[name.strip()] = parse_value(value)
    return result


def _compare(options):
    from tf_rigl.experiments import compare
    from tf_rigl.experiments.settings import Settings

    if not 1 <= options.seeds <= 10_000:
        raise ValueError(f"--seeds must be from 1 to 10,000. Received: seeds={options.seeds}")
    shared = ("dataset", "model", "pattern", "epochs", "batch_size", "learning_rate")
    base = Settings(**{key: getattr(options, key) for key in shared})
    name = f"compare-{base.dataset}-{base.model}-epochs{base.epochs}"
    if base.pattern != "unstructured":
        name += f"-{base.pattern.replace(':', '-of-')}"
    folder = options.output or os.path.join("runs", name)
    return _resumable(
        lambda: compare.compare(
            options.methods,
            options.sparsities,
            range(options.seeds),
            distributions=options.distributions,
            base=base,
            folder=folder,
            data_dir=options.data_dir,
            command=shlex.join(["tf-rigl", *options.arguments]),
        ),
        compare.table,
        folder,
    )


def _tickets(options):
    from tf_rigl.experiments import tickets

    if options.seeds < 1:
        raise ValueError(f"--seeds must be at least 1. Received: seeds={options.seeds}")
    names = [field.name for field in dataclasses.fields(tickets.TicketSettings)]
    settings = tickets.TicketSettings(**{name: getattr(options, name) for name in names})
    name = f"tickets-{settings.dataset}-{settings.model}-epochs{settings.epochs}"
    folder = options.output or os.path.join("runs", name)
    return _resumable(
        lambda: tickets.tickets(
            settings,
            options.rounds,
            range(options.seeds),
            options.controls,
            options.densities,
            folder=folder,
            data_dir=options.data_dir,
            command=shlex.join(["tf-rigl", *options.arguments]),
        ),
        tickets.table,
        folder,
    )


def _resumable(train, table, folder):
    """Trains, and prints a table of the rows; what has ended is kept if it is interrupted."""
    try:
        rows = train()
    except KeyboardInterrupt:
        print(
            f"tf-rigl: interrupted; the finished trainings are kept in {folder}, and the same "
            "command goes on from there",
            file=sys.stderr,
        )
        return 130
    print(f"\n{table(rows)}")
    print(f"Written to {os.path.relpath(folder)}: {', '.join(sorted(os.listdir(folder)))}")
    return 0


def _report(options):
    import tf_rigl

    model = _load(options.file)
    report = tf_rigl.report(model)
    advice = tf_rigl.export.advise(model) if options.advice else None
    if options.json:
        from tf_rigl._base.files import to_json

        result = report.to_dict()
        if advice is not None:
            result["advice"] = advice.to_dict()
        print(to_json(result), end="")
        return 0
    print(report)
    if advice is not None:
        print(f"\n{advice}")
    return 0


def _export(options):
    import tf_rigl

    if options.path.lower().endswith(".tflite"):
        model, images = _load(options.file), None
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
        )
    else:
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
        model = _load(options.file)
        info = tf_rigl.export_saved_model(model, options.path, packed=not options.unpacked)
    print(info)
    return 0


def _load(path):
    """The model in a file; Keras's safe mode stays on."""
    import keras

    import tf_rigl.convert.sparsified  # noqa: F401, so that Keras knows our classes

    if os.path.isdir(path):
        inside = os.path.join(path, "model.keras")
        hint = f" Did you mean {inside!r}?" if os.path.isfile(inside) else ""
        raise ValueError(f"A .keras file is needed, not a folder.{hint} Received: {path!r}")
    if not os.path.isfile(path):
        raise ValueError(f"There is no such file. Received: {path!r}")
    try:
        return keras.models.load_model(path)
    except Exception as error:  # Whatever a damaged file makes Keras raise.
        raise ValueError(f"Keras cannot load {path!r}: {error}") from error


def _drawing():
    """The function that draws a run, or None where matplotlib is not installed."""
    try:
        from tf_rigl.experiments.plots import draw_run
    except ModuleNotFoundError as error:
        print(f"No picture will be drawn ({error}): pip install 'tf_rigl[plots]'", file=sys.stderr)
        return None
    return draw_run


if __name__ == "__main__":
    sys.exit(main())
