"""The laboratory: data, models, runs, comparisons, plots and the command line."""
