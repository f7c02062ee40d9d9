"""Short and long forms of the same tests, and a record of what they have tried.

`make soak` runs the long forms: it sets `TF_RIGL_SOAK=1`, and `TF_RIGL_RECORD` to the file in
which figures are collected, one line of JSON for each.
"""

import json
import os

LONG = os.environ.get("TF_RIGL_SOAK") == "1"


def times(short, long):
    """How often something is tried: `short` in `make test`, `long` in `make soak`."""
    return long if LONG else short


def record(name, **figures):
    """Adds figures of a test to the record, where there is one."""
    path = os.environ.get("TF_RIGL_RECORD")
    if path:
        # One write in append mode: tests of several processes do not mix.
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name, "long": LONG, **figures}) + "\n")
