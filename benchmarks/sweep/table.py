"""The sweep's results as a line, as figures, and as a table in Markdown."""

import collections
import json

import keras
import tensorflow as tf

_MARKS = {"passed": "yes", "refused": "refused", "failed": "FAILED", None: ""}


def line(result) -> str:
    """Returns one line for a row: its outcome, and what went wrong first."""
    text = f"{result['outcome']:8}{result['label']} ({result.get('seconds', 0):.0f} s)"
    for name, stage in problems(result):
        text += f"\n          {name} {stage['outcome']}: {stage['message'][-400:]}"
    return text if "message" not in result else f"{text}: {result['message'][-400:]}"


def problems(result) -> list:
    """Returns the stages of a row that did not pass."""
    return [(n, s) for n, s in result["stages"].items() if s["outcome"] != "passed"]


def figures(results) -> str:
    """Returns how many rows were tried, passed, refused and failed."""
    count = collections.Counter(result["outcome"] for result in results)
    figure = f"{len(results)} rows: {count['passed']} passed, {count['refused']} refused with a "
    figure += f"clear error, {count['failed']} failed"
    refused = [
        sum(r["stages"].get(name, {}).get("outcome") == "refused" for r in results)
        for name in ("SavedModel", "LiteRT")
    ]
    return f"{figure}. Exports refused: {refused[0]} SavedModel, {refused[1]} LiteRT."


def write(results, data, page):
    """Writes the results as JSON, without times and tracebacks' paths, and as a page."""
    kept = [{key: r[key] for key in r if key not in ("seconds", "warnings")} for r in results]
    for result in kept:
        for stage in result["stages"].values():
            stage.pop("traceback", None)
    data.write_text(json.dumps(kept, indent=1) + "\n")
    page.write_text(_page(results))


def _page(results):
    lines = [
        "# The sweep",
        "",
        "Models in the manner of others, each taken through plan, `sparsify`, `fit` with updates",
        "of masks, the checks of the invariants, `report`, `save`, `strip`, both files loaded in a",
        "new process (the stripped one where tf_rigl cannot be imported), and both exports, with",
        "outputs compared. `make sweep` runs it (`benchmarks/sweep/`). Unless the row says",
        "otherwise: RigL, 60% zeros, single entries, an update every two steps, 12 steps in graph",
        "mode.",
        "",
        f"Keras {keras.__version__}, TensorFlow {tf.__version__}, CPU. **{figures(results)}**",
    ]
    by_kind = collections.defaultdict(list)
    for result in results:
        by_kind[result["kind"]].append(result)
    for kind, members in by_kind.items():
        lines += ["", f"## {kind[0].upper()}{kind[1:]}", ""]
        lines += ["| row | parameters | masked | outcome | loaded | SavedModel | LiteRT |"]
        lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
        lines += [_row(result) for result in members]
    refusals = [(r, n, s) for r in results for n, s in problems(r)]
    if refusals:
        lines += ["", "## What was refused, and why", ""]
        lines += ["| row | at | message |", "| --- | --- | --- |"]
        for result, name, stage in refusals:
            message = " ".join(stage["message"].split()).replace("|", "\\|")
            message = message if len(message) < 400 else f"{message[:397]}..."
            lines.append(f"| {result['label']} | {name} | {message} |")
    return "\n".join(lines) + "\n"


def _row(result):
    outcomes = {n: s["outcome"] for n, s in result["stages"].items()}
    marks = [_MARKS[outcomes.get(name)] for name in ("load", "SavedModel", "LiteRT")]
    cells = [
        result["label"],
        f"{result['params']:,}" if "params" in result else "",
        str(result.get("masked", "")),
        result["outcome"],
        *marks,
    ]
    return f"| {' | '.join(cells)} |"
