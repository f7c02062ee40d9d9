"""The laboratory: data, models, runs, comparisons, plots and the command line."""

from tf_rigl._base import old_names


def __getattr__(name):
    return old_names.attribute(__name__, name)  # `run`, `build`, ...
