"""The sweep: models in the manner of others, each taken through all that tf_rigl does.

`python -m benchmarks.sweep` runs all rows and writes `results/`; `--help` shows the options.
"""
