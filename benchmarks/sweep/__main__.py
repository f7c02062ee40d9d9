"""Runs the rows of the sweep, each in a process of its own, two at a time, and writes the table.

Rows whose result is there already are not run again; `--again` runs those that did not pass.
"""

import argparse
import concurrent.futures
import json
import pathlib
import re
import sys

from benchmarks.sweep import case as cases
from benchmarks.sweep import processes, rows, table

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def chosen(options) -> list:
    """Returns the rows that the options select and that have no result yet."""
    for module in options.module or rows.MODULES:
        rows.load(module)
    found = [row for row in cases.ROWS.values() if re.search(options.rows, row.label)]
    done = {}
    for row in found:
        file = place(options, row)
        if file.is_file():
            done[row.label] = json.loads(file.read_text())["outcome"]
    again = {label for label, outcome in done.items() if options.again and outcome != "passed"}
    left = [row for row in found if options.all or row.label not in done or row.label in again]
    return sorted(left, key=lambda row: bool(row.variant))  # What is new first.


def place(options, row):
    """Returns the file of a row's result."""
    return options.runs / (re.sub(r"\W+", "-", row.label) + ".json")


def main() -> bool:
    """Runs what is missing, shows progress, and writes the JSON file and the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__)
    parser.add_argument("rows", nargs="?", default="", help="regular expression for names of rows")
    parser.add_argument("--module", action="append", choices=rows.MODULES)
    parser.add_argument("--runs", type=pathlib.Path, default=ROOT / "runs" / "sweep")
    parser.add_argument("--again", action="store_true", help="run again what did not pass")
    parser.add_argument("--all", action="store_true", help="run again whatever there is")
    parser.add_argument("--seconds", type=int, default=900, help="limit for one row")
    parser.add_argument("--processes", type=int, default=2, choices=(1, 2))
    parser.add_argument("--write", action="store_true", help="write sweep.json and the docs' table")
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    waiting = chosen(options)
    hub = any(row.module == "keras_hub" for row in waiting)
    processes.start_server(["keras_hub"] if hub else [])
    with concurrent.futures.ThreadPoolExecutor(options.processes) as pool:
        futures = {pool.submit(processes.run, row, options.seconds): row for row in waiting}
        for number, future in enumerate(concurrent.futures.as_completed(futures), 1):
            row, result = futures[future], future.result()
            place(options, row).write_text(json.dumps(result, indent=1))
            print(f"{number}/{len(waiting)} {table.line(result)}", flush=True)
    results = []
    for row in cases.ROWS.values():
        if place(options, row).is_file():
            results.append(json.loads(place(options, row).read_text()))
    print(table.figures(results))
    if options.write:
        table.write(results, HERE / "sweep.json", ROOT / "docs" / "results" / "sweep.md")
    return any(result["outcome"] == "failed" for result in results)


if __name__ == "__main__":
    sys.exit(main())
