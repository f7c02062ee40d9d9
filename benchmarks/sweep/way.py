"""The way of one row: plan, sparsify, fit, invariants, report, save, strip and exports."""

import json
import pathlib
import pickle
import re
import time
import traceback
import warnings

import keras
import numpy as np
import tensorflow as tf

from benchmarks.sweep import case as cases
from benchmarks.sweep import new_process, refusals, rows

EXPORTS = ("SavedModel", "LiteRT")
_OFTEN = {"update_interval": 2, "drop_fraction": 0.5, "end_step": 1000, "decay": "constant"}


class WrongError(AssertionError):
    """A stage ran, with a wrong result."""


def method(name, tf_rigl):
    """Makes a method whose masks change within the few steps of a row."""
    if name == "magnitude":
        schedule = tf_rigl.schedules.PolynomialDecay(begin_step=1, end_step=8, frequency=2)
        return tf_rigl.methods.MagnitudePruning(schedule)
    if name == "snip":
        return tf_rigl.methods.SNIP()
    return {"rigl": tf_rigl.methods.RigL, "set": tf_rigl.methods.SET, "snfs": tf_rigl.methods.SNFS}[
        name
    ](**_OFTEN)


def check(condition, message):
    """Raises `WrongError` if a condition does not hold."""
    if not condition:
        raise WrongError(message)


class Way:
    """A row on its way; each stage is a method of its name."""

    def __init__(self, row, folder):
        import tf_rigl

        self.tf_rigl, self.row, self.folder = tf_rigl, row, pathlib.Path(folder)
        options = {"sparsity": 0.6, "distribution": "erk", "method": "rigl", "compile": {}}
        options |= cases.VARIANTS[row.variant]
        keras.config.set_dtype_policy(options.pop("policy", "float32"))
        keras.utils.set_random_seed(0)
        self.case = row.make()
        self.compile_options = options.pop("compile")
        name = options.pop("method")
        self.method = method(name, tf_rigl)
        self.options = {**options, **self.case.sparsify}
        self.planned = self.reported = None
        self.before = self.case.model.get_weights()

    def plan(self):
        """Counts the costs ahead of training."""
        keys = ("sparsity", "distribution", "fixed", "exclude", "pattern", "compute")
        given = {key: self.options[key] for key in keys if key in self.options}
        has_call = type(self.case.model).call is not keras.Model.call
        if has_call and not self.case.model.built:
            given["input_shape"] = self.case.x.shape[1:]
        self.planned = self.tf_rigl.plan(self.case.model, **given)

    def sparsify(self):
        """Makes the sparse model; the model itself stays as it was."""
        self.sparse = self.tf_rigl.sparsify(self.case.model, self.method, seed=0, **self.options)
        self.masks = self.sparse.masks
        if self.case.in_place or not self.case.model.built:
            return
        for one, other in zip(self.before, self.case.model.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other, "sparsify has changed the model")

    def fit(self):
        """Trains with updates of masks."""
        self.case.compile(self.sparse, **self.compile_options)

        def fit(**kwargs):
            given = {"batch_size": cases.BATCH, "epochs": cases.EPOCHS, "shuffle": False}
            given = {"verbose": 0, **given, **self.case.fit, **kwargs}
            if isinstance(self.case.x, tf.data.Dataset):
                del given["batch_size"]
            return self.sparse.fit(self.case.x, self.case.y, **given)

        if self.case.train is None:
            fit()
            steps = cases.BATCHES * cases.EPOCHS
            check(self.sparse.step == steps, f"{self.sparse.step} steps in place of {steps}")
        else:
            self.case.train(self.sparse, fit, self.tf_rigl)

    def invariants(self):
        """Masked weights are zero, counts are those of the targets, and masks have moved."""
        check(self.sparse.masked_weights, "no masked weight")
        moved = False
        for item in self.sparse.masked_weights:
            weight, mask = np.asarray(item.dense()), np.asarray(item.mask)
            if weight.shape == mask.shape:
                check((weight[~mask] == 0).all(), f"{item.path}: masked entries are not zero")
            check(np.isfinite(weight).all(), f"{item.path}: not finite")
            active, target = item.active(), item.target_active()
            check(active == target, f"{item.path}: {active} active, {target} planned")
            # A model that was not built had no masks before.
            moved |= not np.array_equal(mask, self.masks.get(item.path))
        check(moved == self.case.moves, f"masks have {'' if moved else 'not '}changed")

    def report(self):
        """The report after training is what was planned."""
        self.reported = report = self.tf_rigl.report(self.sparse)
        json.dumps(report.to_dict())
        str(report)
        planned = self.planned
        if planned is None:  # The plan was refused.
            return
        for name in ("dense_params", "dense_flops", "sparsity", "params", "flops"):
            one, other = getattr(report, name), getattr(planned, name)
            exact = name.startswith("dense")
            same = one == other if exact else np.isclose(one, other, rtol=0.02, atol=1e-6)
            if name not in self.case.unplanned:
                check(same, f"{name} is {one}, the plan says {other}")
            else:
                check(not same, f"{name} is {one} as planned, which the row does not expect")

    def save(self):
        """Writes the sparse model, with what the new process needs to compare."""
        self.sparse.save(self.folder / "sparse.keras")
        self.outputs = cases.predictions(self.sparse, self.case.part, self.case.inputs)
        expected = {
            "part": self.case.part,
            "inputs": self.case.inputs,
            "outputs": self.outputs,
            "masks": self.sparse.masks,
            "step": self.sparse.step,
            "policy": keras.config.dtype_policy().name,
        }
        (self.folder / "expected.pickle").write_bytes(pickle.dumps(expected))

    def strip(self):
        """Makes the ordinary model, which predicts the same and saves."""
        self.plain = self.tf_rigl.strip(self.sparse)
        ours = [type(each).__name__ for each in self.plain._flatten_layers() if _is_ours(each)]
        check(not ours, f"layers of tf_rigl are left: {ours}")
        outputs = cases.predictions(self.plain, self.case.part, self.case.inputs)
        new_process.compare(self.outputs, outputs, "stripped")
        self.plain.save(self.folder / "plain.keras")

    def after(self):
        """Does what the row has to do with the stripped model."""
        if self.case.after is not None:
            self.case.after(self.plain)

    def _exported(self, write):
        part = cases.part_of(self.plain if self.case.part else self.sparse, self.case.part)
        return write(part)

    def saved_model(self):
        """Exports a SavedModel and compares its outputs."""
        path, inputs = self.folder / "saved", self.case.inputs
        self._exported(lambda part: self.tf_rigl.export_saved_model(part, path, check_data=inputs))
        loaded = tf.saved_model.load(str(path))
        (function,) = loaded.serve.concrete_functions
        specs, _ = function.structured_input_signature
        flat = zip(keras.tree.flatten(specs), keras.tree.flatten(inputs), strict=True)
        flat = [tf.cast(x, s.dtype) if s.dtype != tf.string else tf.constant(x) for s, x in flat]
        served = loaded.serve(*tf.nest.pack_sequence_as(specs, flat))
        outputs = [each.numpy() for each in keras.tree.flatten(served)]
        new_process.compare(self.outputs, outputs, "the SavedModel", self._loose())

    def lite(self):
        """Exports a LiteRT file; the export runs it and compares its outputs."""
        path, lite = self.folder / "model.tflite", self.case.lite
        inputs = self.case.inputs
        if "batch_size" in lite:
            inputs = keras.tree.map_structure(lambda array: array[: lite["batch_size"]], inputs)
        self._exported(
            lambda part: self.tf_rigl.export_tflite(part, path, check_data=inputs, **lite)
        )
        length = len(keras.tree.flatten(inputs)[0])
        outputs = run_lite(path, inputs)
        expected = [array[:length] for array in self.outputs]
        if len(outputs) > 1:  # The names of a file's outputs do not tell their order.
            expected, outputs = (sorted(each, key=_by_size_and_sum) for each in (expected, outputs))
        new_process.compare(expected, outputs, "the LiteRT file", self._loose())

    def _loose(self):
        """Returns the tolerance for outputs of other programs."""
        return 1e-2 if self.row.variant == "float16" else 1e-4


def run_lite(path, inputs):
    """Runs a LiteRT file with the interpreter; returns a list of arrays.

    Inputs of several names are told by the path in their structure, otherwise by their order.
    """
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(path)).get_signature_runner()
    details = runner.get_input_details()
    flat = keras.tree.flatten(inputs)
    names = list(details)
    if isinstance(inputs, dict) and set(inputs) == set(names):
        flat = [inputs[name] for name in names]
    elif len(flat) > 1:  # The converter numbers them in the order of the structure.
        names = sorted(names, key=lambda name: [int(n) for n in re.findall("[0-9]+", name)])
    given = {
        name: np.asarray(array, details[name]["dtype"])
        for name, array in zip(names, flat, strict=True)
    }
    return list(runner(**given).values())


def _by_size_and_sum(array):
    return array.shape, float(np.sum(array, dtype="float64"))


def _is_ours(layer):
    return type(layer).__module__.startswith("tf_rigl")


def is_refusal(error) -> bool:
    """Returns whether an error is a clear one of ours: a ValueError that tf_rigl raises."""
    frames = traceback.extract_tb(error.__traceback__)
    if not isinstance(error, ValueError) or not frames:
        return False
    return "/tf_rigl/" in frames[-1].filename.replace("\\", "/")


def take(row, folder) -> dict:
    """Takes a row through all stages; returns its result.

    After a stage that is refused or failed, those that need it are left out.
    """
    result = {"label": row.label, "kind": row.kind, "stages": {}, "warnings": []}
    started = time.time()
    stages = result["stages"]

    def run(stage, function):
        begun, words = time.time(), refusals.expected(row.label, stage)
        try:
            function()
            check(words is None, f"is not refused in these words: {words}")
            stages[stage] = {"outcome": "passed"}
        except Exception as error:
            clear = words is not None and is_refusal(error) and words in str(error)
            outcome = "refused" if clear else "failed"
            stages[stage] = {"outcome": outcome, "message": f"{type(error).__name__}: {error}"}
            if outcome == "failed":
                stages[stage]["traceback"] = traceback.format_exc()[-4000:]
        stages[stage]["seconds"] = round(time.time() - begun, 2)
        return stages[stage]["outcome"] == "passed"

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        way = None

        def make():
            nonlocal way
            way = Way(row, folder)

        if run("model", make):
            run("plan", way.plan)
            whole = all(run(name, getattr(way, name)) for name in ("sparsify", "fit"))
            if whole:
                run("invariants", way.invariants)
                run("report", way.report)
                if run("save", way.save) and run("strip", way.strip):
                    run("after", way.after)
                    run("SavedModel", way.saved_model)
                    run("LiteRT", way.lite)
    result["warnings"] = sorted({str(w.message)[:300] for w in caught if _of_ours(w)})
    if way is not None and way.reported is not None:
        report = way.reported
        result["masked"] = len(way.sparse.masked_weights)
        result["params"], result["sparsity"] = report.dense_params, round(report.sparsity, 4)
    result["seconds"] = round(time.time() - started, 1)
    result["outcome"] = outcome(stages)
    return result


def _of_ours(warning):
    return issubclass(warning.category, UserWarning) and "DeprecationWarning" not in str(warning)


def outcome(stages) -> str:
    """Returns "passed", "refused" or "failed" for a row.

    A row whose exports alone are refused has passed; the table shows them apart.
    """
    outcomes = {name: stage["outcome"] for name, stage in stages.items()}
    if "failed" in outcomes.values():
        return "failed"
    if any(outcome == "refused" for name, outcome in outcomes.items() if name not in EXPORTS):
        return "refused"
    return "passed"


def main(module, label, folder):
    """Runs one row in this process."""
    rows.load(module)
    result = take(cases.ROWS[label], folder)
    (pathlib.Path(folder) / "result.json").write_text(json.dumps(result, indent=1))
