"""The command line, `tf-rigl`."""

import argparse
import os
import sys


def main(arguments=None) -> int:
    """Runs a command.

    Args:
        arguments: list of str, or None for those of the process.

    Returns:
        The exit code: 0, or 2 for bad input, after one line on standard error.
    """
    options = _parser().parse_args(arguments)
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
        description="Trains a network, sparse from the first step, and writes a run folder: "
        "result.json, model.keras, and masks.png. Without options: RigL at 90%% sparsity on "
        "scikit-learn's digits.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    train.set_defaults(run=_train)
    add = train.add_argument
    add("--dataset", default="digits", help="digits, or any image data set of TFDS by name")
    add("--model", default="lenet-300-100", help="lenet-300-100, small-cnn or wide-resnet-22-2")
    add("--method", default="rigl", help="rigl, set, static, or dense")
    add("--sparsity", type=float, default=0.9, help="fraction of zeros, in [0, 1)")
    add("--distribution", default="erk", help="erk, erdos_renyi or uniform")
    add("--epochs", type=int, default=60, help="passes over the training data")
    add("--batch-size", type=int, default=64, help="examples in a batch")
    add("--learning-rate", type=float, default=0.1, help="of SGD, before cosine decay")
    add("--drop-fraction", type=float, default=0.3, help="of active weights, at the first update")
    add("--update-interval", type=int, default=None, help="steps between updates (100, or less)")
    add("--seed", type=int, default=0, help="for weights, masks and the order of the data")
    add("--beside-dense", action="store_true", help="train the dense network too, for comparison")
    add("--data-dir", default=None, help="where TFDS keeps data sets")
    add("--output", default=None, help="run folder (default: runs/ and a name of the settings)")
    return parser


def _train(options):
    from tf_rigl import distributions, experiments

    distributions.get(options.distribution)
    settings = experiments.Settings(
        **{
            key: getattr(options, key)
            for key in experiments.Settings.__dataclass_fields__
            if hasattr(options, key)
        }
    )
    if settings.method not in ("dense", "static"):
        settings.make_method(steps=1)
    folder = experiments.check_folder(options.output or os.path.join("runs", settings.name))
    draw = _drawing() if settings.method != "dense" else None
    verbose = 1 if sys.stdout.isatty() else 2

    dense = None
    if options.beside_dense and settings.method != "dense":
        print(f"Training dense, {settings.model} on {settings.dataset}", flush=True)
        twin = experiments.dataclasses.replace(settings, method="dense")
        _, dense = experiments.run(twin, data_dir=options.data_dir, verbose=verbose)
    print(f"Training {settings.method}, {settings.model} on {settings.dataset}", flush=True)
    model, result = experiments.run(settings, data_dir=options.data_dir, verbose=verbose)
    if dense is not None:
        result["dense"] = {key: dense[key] for key in ("accuracy", "loss", "parameters", "seconds")}
    experiments.write(folder, model, result, draw)

    print()
    if dense is not None:
        print(experiments.summary(dense))
    print(experiments.summary(result))
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
