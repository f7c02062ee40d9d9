"""The command line, `tf-rigl`: its parser, and how it reports errors.

Nothing here imports TensorFlow or Keras: help and most errors appear at once. The commands
themselves are in `commands`.
"""

import argparse
import os
import sys
import warnings

from tf_rigl._base import registry, tables
from tf_rigl.experiments import commands, fields, settings, ticket_settings
from tf_rigl.experiments.model_names import MODELS
from tf_rigl.experiments.settings import METHODS, Settings
from tf_rigl.experiments.ticket_settings import TicketSettings

_TRAIN = """\
Trains a network and writes a run folder: result.json, model.keras, sparsity.csv (the sparsity
of each layer after each epoch, and the changes of its mask), and masks.png. Without options:
RigL at 0.9 sparsity on scikit-learn's digits."""

_COMPARE = """\
Trains each method at each sparsity with each distribution and seed, and writes a table of
test accuracies, FLOPs and sizes, its rows as JSON, and pictures.

A spec names a method (quote it where the shell would read the parentheses):
  rigl                       the method with its defaults
  rigl@2x                    trained for twice the epochs
  'snip(scope=global)'       with an argument of the method
  'rigl(drop_fraction=0.5, update_interval=50)@5x'
  'rigl(pattern=block_16x1)'
The parentheses also take learning_rate, batch_size, epochs, sparsity, distribution and
pattern, in place of the common values. "dense" is trained once per seed.

Every finished run is stored at once in the folder's runs/. The same command continues after an
interruption, and one with more methods or seeds trains only those. Start the command several
times, and the processes share the work."""

_TICKETS = """\
Searches for lottery tickets by iterative magnitude pruning with several seeds, trains controls
(the same mask with new random weights, a random mask of the same density in each layer), and
writes a table, its rows as JSON, and a picture: accuracy and early-stopping step against the
weights left. The defaults are those of the paper for LeNet-300-100.

Every finished training is stored at once in the folder. The same command continues after an
interruption, and one with more rounds, seeds or controls trains only those.

With --learning-rates the search is done at each of them (appendix G.2 of the paper), and the
picture shows the tickets of all rates."""


def main(arguments=None) -> int:
    """Runs a command.

    Args:
        arguments: list of str, or None for the arguments of the process.

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
        # Messages of Keras and TensorFlow have several lines.
        print(f"tf-rigl: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tf-rigl: interrupted, nothing was written", file=sys.stderr)
        return 130


def _show_warning(message, category, filename, lineno, file=None, line=None):
    """Prints a warning without the source line."""
    del category, filename, lineno, file, line
    print(f"tf-rigl: warning: {' '.join(str(message).split())}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, whatever the arguments contain."""

    def error(self, message):
        super().error(" ".join(message.split()))


def _parser():
    parser = _Parser(prog="tf-rigl", description="Sparse training for Keras 3 on TensorFlow.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name, run, options, text, description, **more):
        command = subparsers.add_parser(
            name,
            help=text,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **more,
        )
        command.set_defaults(run=run)
        options(command)

    add(
        "train",
        commands.train,
        _add_train,
        "train a sparse network and write a run folder",
        _TRAIN,
        epilog=_names("methods", "models", "distributions", "patterns"),
    )
    add(
        "compare",
        commands.compare,
        _add_compare,
        "train methods at several sparsities with several seeds, and tabulate them",
        _COMPARE,
        epilog=_names("methods", "models", "distributions", "patterns"),
    )
    add(
        "tickets",
        commands.tickets,
        _add_tickets,
        "search for lottery tickets with several seeds, and train controls",
        _TICKETS,
        epilog=_names("models", "controls"),
    )
    add(
        "wann",
        commands.wann,
        _add_wann,
        "search for a network that classifies with any shared weight",
        "Searches for a weight-agnostic network, and writes a picture and a model of the best.\n"
        "Each generation is stored, and the same command goes on where it was cut off.",
    )
    _add_commands_of_files(add)
    return parser


def _add_commands_of_files(add):
    """Adds the commands for model files."""
    add(
        "report",
        commands.report,
        _add_report,
        "print parameters, FLOPs and size of a trained model, layer by layer",
        "Prints parameters, FLOPs and size of a model file, layer by layer.",
    )
    add(
        "compact",
        commands.compact,
        _add_compact,
        "write a model that stores and computes only its blocks",
        "Writes an ordinary Keras model that stores and computes only the blocks that a sparse\n"
        "model keeps, and prints the form of each layer. It loads without tf_rigl.",
    )
    add(
        "export",
        commands.export,
        _add_export,
        "write a sparse LiteRT file or SavedModel of a trained model",
        "Exports a model file to LiteRT (if the path ends in .tflite) or to a SavedModel. The\n"
        "outputs are checked before the export is put in place.",
    )


def _names(*kinds):
    """Returns the names that options take, with summaries, for the end of the help."""
    summaries = {
        "methods": {"dense": "trains all weights", **_summaries(registry.METHODS)},
        "models": _summaries(MODELS),
        "distributions": _summaries(registry.DISTRIBUTIONS),
        "patterns": _summaries(registry.PATTERNS),
        "controls": ticket_settings.CONTROLS,
    }
    lines = []
    for kind in kinds:
        rows = [(f"  {name}", summary) for name, summary in summaries[kind].items()]
        lines += [f"{kind}:", *tables.text(("", ""), rows, left=(0, 1), rule=False)[1:], ""]
    return "\n".join(lines)


def _summaries(entries):
    return {name: entry.summary for name, entry in entries.items()}


def _add_train(train):
    fields.add_options(train, Settings)
    train.add_argument(
        "--option",
        action="append",
        dest="options",
        metavar="NAME=VALUE",
        help="further argument of the method, such as scope=global; may be repeated",
    )
    train.add_argument(
        "--beside-dense", action="store_true", help="train the dense network too, for comparison"
    )
    _add_places(train, "run folder (default: runs/ and a name of the settings)")


def _add_compare(compare):
    shared = ["dataset", "model", "pattern", "epochs", "batch_size", "learning_rate"]
    fields.add_options(compare, Settings, shared)
    add = fields.add_option
    several = {"nargs": "+", "metavar": "S"}
    add(compare, "methods", METHODS, "specs of methods", nargs="+", metavar="SPEC")
    add(compare, "sparsities", [Settings.sparsity], "fractions of zeros", type=float, **several)
    several["metavar"] = "D"
    add(compare, "distributions", [Settings.distribution], "distributions; see below", **several)
    add(compare, "seeds", len(settings.SEEDS), "number of seeds, from 0", type=int)
    _add_places(compare, "folder (default: runs/compare- and a name of the settings)")


def _add_tickets(tickets):
    fields.add_options(tickets, TicketSettings)
    usual = ticket_settings
    add = fields.add_option
    add(tickets, "rounds", usual.ROUNDS, "number of pruning rounds", type=int)
    add(tickets, "seeds", len(usual.SEEDS), "number of seeds, from 0", type=int)
    text = "controls to train; see below"
    add(tickets, "controls", list(usual.USUAL_CONTROLS), text, nargs="*", metavar="C")
    reached = " ".join(map(str, usual.DENSITIES))
    text = f"fractions of weights left at which controls are trained (default: {reached}, "
    text += "as far as the rounds reach)"
    add(tickets, "densities", None, text, type=float, nargs="+", metavar="D")
    text = "search at each of these learning rates, in a folder each"
    add(tickets, "learning_rates", None, text, type=float, nargs="+", metavar="R")
    _add_places(tickets, "folder (default: runs/tickets- and a name of the settings)")


def _add_wann(wann):
    fields.add_options(wann, Settings, ["dataset", "seed"])
    add = fields.add_option
    add(wann, "population", 192, "networks in a generation", type=int)
    add(wann, "generations", 128, "number of generations", type=int)
    add(wann, "size", None, "number of training images (default: all)", type=int)
    _add_places(wann, "folder (default: runs/wann- and a name of the settings)")


def _add_report(report):
    add = report.add_argument
    add("file", help="a .keras file")
    add("--json", action="store_true", help="print JSON")
    add(
        "--advice",
        action="store_true",
        help="also print which layers LiteRT will run sparse, and what to change in the others",
    )
    _add_import(report)


def _add_compact(compact):
    add = compact.add_argument
    add("file", help="a .keras file")
    add("path", help="the .keras file to write")
    add(
        "--form",
        metavar="NAME",
        default="auto",
        help=f"form of the layers: {', '.join(registry.FORMS)} (default: auto, the fastest)",
    )
    _add_import(compact)


def _add_export(export):
    add = export.add_argument
    add("file", help="a .keras file")
    add("path", help="path of the export: a .tflite file, or else a SavedModel folder")
    add(
        "--quantization",
        metavar="NAME",
        help=f"quantization of the .tflite file: {', '.join(registry.QUANTIZATIONS)} "
        "(default: none)",
    )
    add(
        "--representative-dataset",
        metavar="NAME",
        help="data set whose training images calibrate int8: digits, or any of TFDS",
    )
    add("--batch-size", type=int, help="fixed batch size of the .tflite file (default: free)")
    add("--unpacked", action="store_true", help="store zeros too")
    add(
        "--compute",
        metavar="NAME",
        default="auto",
        help="auto (default), compact (only the blocks that are there, by ordinary operators), "
        "encoded (sparse weights of a .tflite file) or dense",
    )
    _add_import(export)
    _add_data_dir(export)


def _add_import(parser):
    parser.add_argument(
        "--import",
        action="append",
        dest="imports",
        metavar="MODULE",
        help="module, or .py file, that defines classes of the model; may be repeated",
    )


def _add_places(parser, text):
    """Adds the options for folders."""
    _add_data_dir(parser)
    parser.add_argument("--output", help=text)


def _add_data_dir(parser):
    parser.add_argument("--data-dir", help="folder of TFDS data sets (default: that of TFDS)")


if __name__ == "__main__":
    sys.exit(main())
