"""The finished runs of a comparison."""

import math

import numpy as np

from tf_rigl._base import store
from tf_rigl.experiments.settings import Settings


class Store:
    """The runs that a comparison needs, and the results of those that are finished.

    Args:
        folder: path of the folder with the results.
        runs: iterable of `Settings`; equal ones are one run.

    Attributes:
        wanted: list of `Settings` without repetitions, sorted by seed, so that an unfinished
            table has a result in each row.

    Raises:
        ValueError: if two different runs have the same name, or a stored result does not
            belong to the run of its name.
    """

    def __init__(self, folder, runs):
        by_name = {}
        for settings in runs:
            if by_name.setdefault(settings.name, settings) != settings:
                raise ValueError(
                    "Two different runs have the same name. "
                    f"Received: {settings} and {by_name[settings.name]}"
                )
        self.wanted = sorted(by_name.values(), key=lambda settings: settings.seed)
        self._files = store.Store(folder)
        self._results = {}
        for settings in self.wanted:
            self.get(settings)

    def get(self, settings):
        """Returns the result of a run, or None if the run is not finished."""
        name = settings.name
        if name not in self._results:
            result = self._files.get(name, lambda stored: _check(stored, settings))
            if result is None:
                return None
            self._results[name] = result
        return self._results[name]

    def unfinished(self) -> list[Settings]:
        """Lists the runs without a stored result."""
        return [settings for settings in self.wanted if self.get(settings) is None]

    def add(self, settings, result):
        """Stores the result of a run."""
        self._files.add(settings.name, result)

    def claim(self, settings):
        """Claims a run; yields False if another process has claimed or finished it."""
        return self._files.claim(settings.name)


def _check(result, settings):
    """Raises if a stored result is damaged, or belongs to other settings."""
    stored = Settings(**result["settings"])
    _check_numbers(result, ("accuracy", "train_flops", "steps"))
    _check_numbers(result["report"], ("flops", "dense_flops", "bytes", "dense_bytes"))
    if "explored" in result:  # Older versions have not stored it.
        _check_numbers(result, ("explored",))
    _check_inputs(result.get("input_connections"))
    if stored != settings:
        raise ValueError(f"it belongs to another run. Expected: {settings}. Received: {stored}")


def _check_numbers(result, keys):
    """Raises unless these are numbers of at least 0; divisors must be above 0."""
    for key in keys:
        value = result[key]
        if type(value) not in (int, float) or not 0 <= float(value) < math.inf:
            raise ValueError(f"{key} must be a number of at least 0: {value!r}")
        if key.startswith("dense") and value == 0:
            raise ValueError(f"{key} must not be 0")


def _check_inputs(inputs):
    """Raises if stored connections of the input are not a list of images."""
    if inputs is None:
        return
    counts = np.asarray(inputs["counts"], float)
    images = (len(inputs["epochs"]), math.prod(inputs["shape"]))
    if len(inputs["shape"]) != 3 or counts.shape != images or not (abs(counts) < 2**31).all():
        raise ValueError(f"the counts of {inputs['shape']} inputs have shape {counts.shape}")
