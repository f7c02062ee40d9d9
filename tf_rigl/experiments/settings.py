"""The settings of a run, which also name it.

Names and numbers are checked first, without Keras, so that the command line refuses most bad
input at once.
"""

import dataclasses
import difflib
import functools
import json
import urllib.parse

from tf_rigl._base import registry
from tf_rigl._base.arguments import check_integer, check_sparsity, constructor_arguments
from tf_rigl.experiments import fields
from tf_rigl.experiments.fields import setting
from tf_rigl.experiments.model_names import MODELS

METHODS = ("dense", *registry.METHODS)
OTHERS = registry.other_words(registry.METHODS)
OF_METHODS = ("drop_fraction", "update_interval")  # Settings that only some methods take.
SEEDS = range(3)  # The usual seeds of a comparison.
# The files in the folder of a comparison, see `tf_rigl._base.files.check_folder`.
COMPARISON = {"comparison.json": ("rows",), "runs": ("settings",)}


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings of a run: two runs with equal settings are the same run.

    Attributes:
        dataset: str, see `tf_rigl.data.load`.
        model: str, see `tf_rigl.models.get`.
        method: str, "dense", or see `tf_rigl.methods.get`.
        sparsity: float in [0, 1); not used by "dense".
        distribution: str, see `tf_rigl.distributions.get`.
        pattern: str, see `tf_rigl.patterns.get`.
        epochs: int.
        batch_size: int.
        learning_rate: float, the initial learning rate of SGD with momentum 0.9; it follows
            a cosine decay to zero.
        drop_fraction: float in (0, 1]. None: the default of the method.
        update_interval: int, steps between mask updates; for "magnitude", between prunings.
            None: 100, or a fiftieth of the steps in runs of fewer than 5,000.
        options: dict of further arguments of the method, with JSON values, such as
            `{"scope": "global"}`. For "magnitude" also the arguments of its schedule.
        seed: int, for weights, masks, and the order of the examples.
        compute: str, "masked" or "sparse", see `tf_rigl.sparsify`.
        initialization: str, "model" or "sparse", see `tf_rigl.sparsify`.

    Raises:
        ValueError: if a value is out of range, or the method has no such option.

    Example:

    >>> Settings(method="set", options={"decay": "linear"}, seed=1).name
    'digits-lenet-300-100-set-0.9-erk-decay=linear-seed1'
    """

    dataset: str = setting("digits", "digits, or any image data set of TFDS", fields.any_name)
    model: str = setting("lenet-300-100", "model to train; see below", fields.one_of(MODELS))
    method: str = setting(
        "rigl", "sparse training method; see below", fields.one_of(METHODS, OTHERS)
    )
    sparsity: float = setting(0.9, "fraction of zeros, in [0, 1)", check_sparsity)
    distribution: str = setting(
        "erk",
        "distribution of the sparsity over the layers; see below",
        fields.entry_of(registry.DISTRIBUTIONS),
    )
    pattern: str = setting(
        "unstructured", "pattern of the zeros; see below", fields.entry_of(registry.PATTERNS)
    )
    epochs: int = setting(60, "passes over the training data", fields.integer(1))
    batch_size: int = setting(64, "examples in a batch", fields.integer(1))
    learning_rate: float = setting(
        0.1, "initial learning rate of SGD, with cosine decay", fields.number(above=0)
    )
    drop_fraction: float | None = setting(
        None,
        "fraction of the active weights that move at the first update (default: the method's)",
        fields.number(above=0, at_most=1, optional=True),
    )
    update_interval: int | None = setting(
        None,
        "steps between mask updates (default: 100, less in short runs)",
        fields.integer(1, optional=True),
    )
    options: dict = dataclasses.field(default_factory=dict, hash=False)
    seed: int = setting(0, "seed of weights, masks and the order of the data", fields.integer(0))
    compute: str = setting(
        "masked",
        "masked, or sparse: store and compute only blocks, for a pattern of blocks",
        fields.one_of(("masked", "sparse")),
    )
    initialization: str = setting(
        "model",
        "model, or sparse: scale initial weights to the connections that each unit has",
        fields.one_of(("model", "sparse")),
    )

    def __post_init__(self):
        fields.check_all(self)
        object.__setattr__(self, "options", _json_values(self.options))
        from tf_rigl import patterns  # From here on, with Keras.

        pattern = patterns.get(self.pattern)
        if self.drop_fraction is None:
            object.__setattr__(self, "drop_fraction", usual_drop_fraction(self.method))
        self._check_options()
        if self.method != "dense":
            method = self.make_method(steps=5_000)  # The true number is unknown here.
        if self.compute == "sparse":
            if self.method == "dense":
                raise ValueError("Argument `compute` must be 'masked' for method 'dense'.")
            from tf_rigl.block_sparse import conversion

            conversion.check(pattern, method)
        if self.initialization == "sparse":
            if self.method == "dense":
                raise ValueError("Argument `initialization` must be 'model' for method 'dense'.")
            from tf_rigl.convert import initializing

            initializing.check(self.initialization, method)

    def _check_options(self):
        """Raises if the method has no such option."""
        own = method_arguments(self.method)
        allowed = sorted(set(own) - set(OF_METHODS))
        for key in self.options:
            if key in allowed:
                continue
            close = difflib.get_close_matches(key, allowed, n=1, cutoff=0.5)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            names = ", ".join(map(repr, allowed)) or "none"
            settings = ", ".join(repr(name) for name in OF_METHODS if name in own)
            beside = f" Settings of their own: {settings}." if settings else ""
            if key == "frequency":
                hint = " The frequency of pruning is `update_interval`."
            raise ValueError(
                f"The options of method {self.method!r} are: {names}.{beside}{hint} "
                f"Received: {key}={self.options[key]!r}"
            )

    @property
    def name(self) -> str:
        """A folder name for the run. It contains every setting that is not the default."""
        parts = [urllib.parse.quote(self.dataset, safe=""), self.model, self.method]
        if self.method != "dense":
            parts += [f"{self.sparsity:g}", self.distribution]
            if self.pattern != "unstructured":
                parts.append(urllib.parse.quote(self.pattern, safe=""))
        for field in dataclasses.fields(self)[6:]:
            value = getattr(self, field.name)
            if field.name == "options":
                parts += [f"{key}={_in_a_name(value[key])}" for key in sorted(value)]
            elif value != self._usual(field) or field.name == "seed":
                parts.append(f"{field.name.replace('_', '')}{value}")
        return "-".join(parts)

    def _usual(self, field):
        """Returns the value of a field that is not in the name."""
        is_own = field.name == "drop_fraction"
        return usual_drop_fraction(self.method) if is_own else field.default

    def make_method(self, steps):
        """Makes the `tf_rigl.methods.Method` for a run of this number of steps."""
        from tf_rigl import schedules

        cls = registry.METHODS[self.method].load()
        interval = self.update_interval
        if interval is None:
            # Weights are not trained where masks change: five steps, if there are as many. Not
            # shorter than the number of batches whose gradients are averaged.
            interval = min(100, max(steps // 50, min(5, steps // 4), 1))
            batches = self.options.get("gradient_batches", 1)
            interval = max(interval, check_integer("gradient_batches", batches, 1))
        given = {"drop_fraction": self.drop_fraction, "update_interval": interval, **self.options}
        taken = constructor_arguments(cls)
        arguments = {key: value for key, value in given.items() if key in taken}
        if "schedule" in taken:
            check_integer("update_interval", interval, 1)
            others = {key: value for key, value in self.options.items() if key not in taken}
            arguments["schedule"] = schedules.PolynomialDecay(frequency=interval, **others)
        return cls(**arguments)


@functools.cache
def usual_drop_fraction(method) -> float:
    """Returns the default of a method; that of RigL for those that have none."""
    name = method if "drop_fraction" in method_arguments(method) else "rigl"
    return registry.METHODS[name].load()().drop_fraction


def method_arguments(method) -> list[str]:
    """Returns the names of the arguments that `Settings` takes for a method.

    Args:
        method: str, "dense" or a name that `tf_rigl.methods.get` knows.

    Returns:
        The arguments of the constructor, in order. A schedule is an object, so the arguments
        of the schedule stand in its place.

    Example:

    >>> method_arguments("static")
    []
    """
    if method == "dense":
        return []
    names = constructor_arguments(registry.METHODS[method].load())
    if "schedule" in names:
        from tf_rigl import schedules

        names.remove("schedule")
        # `update_interval` is its frequency, and `sparsity` its final sparsity.
        own = constructor_arguments(schedules.PolynomialDecay)
        names += ["update_interval", *(n for n in own if n not in ("frequency", "final_sparsity"))]
    return names


def _json_values(options):
    """Copies the options; raises if JSON cannot hold them."""
    try:
        result = json.loads(json.dumps(options, allow_nan=False))
    except (TypeError, ValueError):
        result = None
    if not isinstance(result, dict):
        raise ValueError(
            "Argument `options` must be a dict of values that JSON can hold. "
            f"Received: options={options!r}"
        )
    return result


def _in_a_name(value):
    """Writes a JSON value as part of a file name; different values give different names."""
    text = json.dumps(value, separators=(",", ":"), sort_keys=True)
    if isinstance(value, str):
        try:
            json.loads(value)  # A str such as "1" keeps its quotes.
        except ValueError:
            text = value
    return urllib.parse.quote(text, safe="[]{},:+")
