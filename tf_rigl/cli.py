"""The command line, `tf-rigl`."""

import argparse
import dataclasses
import os
import shlex
import sys

METHODS = ("dense", "static", "snip", "set", "snfs", "rigl", "magnitude")
_MODELS = (
    "lenet-300-100, lenet-300-100-normalized, lenet-5, small-cnn, wide-resnet-22-2 or resnet-50"
)
_DISTRIBUTIONS = "erk, erdos_renyi, uniform or uniform_all"
_COMPARE = """\
Trains each method at each sparsity with each distribution and seed, and writes a table of
test accuracies, FLOPs and sizes, its rows as JSON, and pictures.

A method is given by a spec (in quotes where the shell would read the parentheses):
  rigl                       the method with its defaults
  rigl@2x                    trained for twice the epochs
  'snip(scope=global)'       with an argument of the method
  'rigl(drop_fraction=0.5, update_interval=50)@5x'
In the parentheses may also stand learning_rate, batch_size, epochs, sparsity or distribution:
these hold in place of the common ones. "dense" is trained once per seed.

Every finished run is stored at once in the folder's runs/: the same command goes on where
it was cut off, and one with more methods or seeds does only those. Started several times, the
processes share the work."""


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
        return options.run(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"tf-rigl: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tf-rigl: interrupted, nothing was written", file=sys.stderr)
        return 130


def _parser():
    parser = argparse.ArgumentParser(
        prog="tf-rigl", description="Sparse training for Keras 3 on TensorFlow."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="train a sparse network and write a run folder",
        description="Trains a network and writes a run folder: "
        "result.json, model.keras, and masks.png. Without options: RigL at 0.9 sparsity on "
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
    return parser


def _add_train(train):
    add = train.add_argument
    add("--dataset", default="digits", help="digits, or any image data set of TFDS by name")
    add("--model", default="lenet-300-100", help=_MODELS)
    add("--method", default="rigl", help=", ".join(reversed(METHODS)))
    add("--sparsity", type=float, default=0.9, help="fraction of zeros, in [0, 1)")
    add("--distribution", default="erk", help=_DISTRIBUTIONS)
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
    add("--distributions", nargs="+", default=["erk"], metavar="D", help=f"{_DISTRIBUTIONS} (erk)")
    add("--seeds", type=int, default=3, help="how many, from 0 (3)")
    add("--epochs", type=int, default=60, help="passes over the training data (60)")
    add("--batch-size", type=int, default=64, help="examples in a batch (64)")
    add("--learning-rate", type=float, default=0.1, help="of SGD, before cosine decay (0.1)")
    add("--data-dir", default=None, help="where TFDS keeps data sets")
    add("--output", default=None, help="folder (runs/compare- and a name of the settings)")


def _train(options):
    from tf_rigl import experiments, files
    from tf_rigl.settings import Settings

    options.options = _method_options(options.options)
    settings = Settings(**{f.name: getattr(options, f.name) for f in dataclasses.fields(Settings)})
    folder = files.check_folder(options.output or os.path.join("runs", settings.name))
    draw = _drawing() if settings.method != "dense" else None
    verbose = 1 if sys.stdout.isatty() else 2

    dense = None
    if options.beside_dense and settings.method != "dense":
        print(f"Training dense, {settings.model} on {settings.dataset}", flush=True)
        twin = dataclasses.replace(settings, method="dense", options={})
        _, dense = experiments.run(twin, data_dir=options.data_dir, verbose=verbose)
    print(f"Training {settings.method}, {settings.model} on {settings.dataset}", flush=True)
    model, result = experiments.run(settings, data_dir=options.data_dir, verbose=verbose)
    if dense is not None:
        result["dense"] = {key: dense[key] for key in ("accuracy", "loss", "parameters", "seconds")}
    files.write_run(folder, model, result, draw)

    print()
    if dense is not None:
        print(experiments.summary(dense))
    print(experiments.summary(result))
    print(f"Written to {os.path.relpath(folder)}: {', '.join(sorted(os.listdir(folder)))}")
    return 0


def _method_options(texts):
    """The dict that `--option name=value ...` stands for."""
    from tf_rigl.specs import parse_value

    result = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--option must be given as name=value. Received: {text!r}")
        result[name.strip()] = parse_value(value)
    return result


def _compare(options):
    from tf_rigl import compare
    from tf_rigl.settings import Settings

    if options.seeds < 1:
        raise ValueError(f"--seeds must be at least 1. Received: seeds={options.seeds}")
    shared = ("dataset", "model", "epochs", "batch_size", "learning_rate")
    base = Settings(**{key: getattr(options, key) for key in shared})
    name = f"compare-{base.dataset}-{base.model}-epochs{base.epochs}"
    folder = options.output or os.path.join("runs", name)
    try:
        rows = compare.compare(
            options.methods,
            options.sparsities,
            range(options.seeds),
            distributions=options.distributions,
            base=base,
            folder=folder,
            data_dir=options.data_dir,
            command=shlex.join(["tf-rigl", *options.arguments]),
        )
    except KeyboardInterrupt:
        print(
            f"tf-rigl: interrupted; the finished runs are kept in {folder}, and the same command "
            "goes on from there",
            file=sys.stderr,
        )
        return 130
    print(f"\n{compare.table(rows)}")
    print(f"Written to {os.path.relpath(folder)}: {', '.join(sorted(os.listdir(folder)))}")
    return 0


def _drawing():
    """The function that draws a run, or None where matplotlib is not installed."""
    try:
        from tf_rigl.plots import draw_run
    except ModuleNotFoundError as error:
        print(f"No picture will be drawn ({error}): pip install 'tf_rigl[plots]'", file=sys.stderr)
        return None
    return draw_run
