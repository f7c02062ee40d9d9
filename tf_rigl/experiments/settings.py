"""The settings of a run, which also name it."""

import dataclasses
import difflib
import inspect
import json
import math
import numbers
import urllib.parse

from tf_rigl import distributions, methods, patterns, schedules
from tf_rigl._base.arguments import check_integer, check_sparsity, unknown_name
from tf_rigl.experiments import models

METHODS = ("dense", *methods.NAMES)
OF_METHODS = ("drop_fraction", "update_interval")  # Settings that only some methods take.


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides a run.

    Attributes:
        dataset: str, see `tf_rigl.data.load`.
        model: str, see `tf_rigl.models.get`.
        method: str, "dense", or see `tf_rigl.methods.get`.
        sparsity: float in [0, 1); not used by "dense".
        distribution: str, see `tf_rigl.distributions.get`.
        pattern: str, see `tf_rigl.patterns.get`.
        epochs: int.
        batch_size: int.
        learning_rate: float, that of SGD with momentum 0.9 at the start; it falls to
            zero along half a cosine wave.
        drop_fraction: float in (0, 1].
        update_interval: int, or None for 100 steps, less in runs of under 5,000 (one
            step in 50); for "magnitude" the steps between prunings.
        options: dict of further arguments of the method, of values that JSON knows, such
            as `{"scope": "global"}`. For "magnitude" also those of its schedule.
        seed: int, for weights, masks, and the order of the examples.

    Raises:
        ValueError: if a value is out of range, or the method has no such option.

    Example:

    >>> Settings(method="set", options={"decay": "linear"}, seed=1).name
    'digits-lenet-300-100-set-0.9-erk-decay=linear-seed1'
    """

    dataset: str = "digits"
    model: str = "lenet-300-100"
    method: str = "rigl"
    sparsity: float = 0.9
    distribution: str = "erk"
    pattern: str = "unstructured"
    epochs: int = 60
    batch_size: int = 64
    learning_rate: float = 0.1
    drop_fraction: float = 0.3
    update_interval: int | None = None
    options: dict = dataclasses.field(default_factory=dict, hash=False)
    seed: int = 0

    def __post_init__(self):
        if self.method not in METHODS:
            raise unknown_name("method", self.method, METHODS, or_object=False)
        for name in ("dataset", "model", "distribution", "pattern"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(
                    f"Argument `{name}` must be a name. Received: {name}={getattr(self, name)!r}"
                )
        models.get(self.model)
        distributions.get(self.distribution)
        patterns.get(self.pattern)
        for name in ("epochs", "batch_size"):
            check_integer(name, getattr(self, name), 1)
        check_integer("seed", self.seed, 0)
        # Numbers that are equal must give the same name.
        object.__setattr__(self, "sparsity", check_sparsity("sparsity", self.sparsity))
        for name in ("learning_rate", "drop_fraction"):
            object.__setattr__(self, name, _positive(name, getattr(self, name)))
        object.__setattr__(self, "options", self._checked_options())
        if self.method != "dense":
            self.make_method(steps=5_000)  # Of the usual interval: the true one is not known here.

    def _checked_options(self):
        """A copy of the options, after a look at their names and values."""
        try:
            options = json.loads(json.dumps(self.options, allow_nan=False))
        except (TypeError, ValueError):
            options = None
        if not isinstance(options, dict):
            raise ValueError(
                "Argument `options` must be a dict of values that JSON knows. "
                f"Received: options={self.options!r}"
            )
        allowed = sorted(set(method_arguments(self.method)) - set(OF_METHODS))
        for key in options:
            if key not in allowed:
                close = difflib.get_close_matches(key, allowed, n=1, cutoff=0.5)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                names = ", ".join(map(repr, allowed)) or "none"
                own = [name for name in OF_METHODS if name in method_arguments(self.method)]
                beside = f" Settings of their own: {', '.join(map(repr, own))}." if own else ""
                if key == "frequency":
                    hint = " The frequency of pruning is `update_interval`."
                raise ValueError(
                    f"The options of method {self.method!r} are: {names}.{beside}{hint} "
                    f"Received: {key}={options[key]!r}"
                )
        return options

    @property
    def name(self) -> str:
        """A folder name that tells what the run was: what is not as usual is in it."""
        parts = [urllib.parse.quote(self.dataset, safe=""), self.model, self.method]
        if self.method != "dense":
            parts += [f"{self.sparsity:g}", self.distribution]
            if self.pattern != "unstructured":
                parts.append(urllib.parse.quote(self.pattern, safe=""))
        for field in dataclasses.fields(self)[6:]:
            value = getattr(self, field.name)
            if field.name == "options":
                parts += [f"{key}={_in_a_name(value[key])}" for key in sorted(value)]
            elif value != field.default or field.name == "seed":
                parts.append(f"{field.name.replace('_', '')}{value}")
        return "-".join(parts)

    def make_method(self, steps) -> methods.Method:
        """The method object for a run of so many steps."""
        cls = methods.NAMES[self.method]
        interval = self.update_interval
        if interval is None:
            # No shorter than the window of gradients that are averaged.
            interval = min(100, max(1, steps // 50))
            batches = self.options.get("gradient_batches", 1)
            interval = max(interval, check_integer("gradient_batches", batches, 1))
        given = {"drop_fraction": self.drop_fraction, "update_interval": interval, **self.options}
        taken = _constructor_arguments(cls)
        arguments = {key: value for key, value in given.items() if key in taken}
        if "schedule" in taken:
            check_integer("update_interval", interval, 1)
            others = {key: value for key, value in self.options.items() if key not in taken}
            arguments["schedule"] = schedules.PolynomialDecay(frequency=interval, **others)
        return cls(**arguments)


def method_arguments(method) -> list[str]:
    """What a method's name can be qualified with in `Settings`.

    Args:
        method: str, "dense" or a name that `tf_rigl.methods.get` knows.

    Returns:
        Names of arguments, in order: those of the constructor. In place of a schedule,
        which is an object, stand the arguments that make one.

    Example:

    >>> method_arguments("static")
    []
    """
    if method == "dense":
        return []
    names = _constructor_arguments(methods.NAMES[method])
    if "schedule" in names:
        names.remove("schedule")
        # Its frequency is the update interval, and where it ends is the sparsity.
        own = _constructor_arguments(schedules.PolynomialDecay)
        names += ["update_interval", *(n for n in own if n not in ("frequency", "final_sparsity"))]
    return names


def _constructor_arguments(cls):
    """Names of a constructor's arguments; where it takes `**kwargs`, its base's as well."""
    names = []
    for base in cls.__mro__[:-1]:
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
        variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        names += [p.name for p in parameters if p.kind not in variable and p.name not in names]
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    return names


def _positive(name, value):
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < value < math.inf:
        raise ValueError(f"Argument `{name}` must be a positive number. Received: {name}={value!r}")
    return float(value)


def _in_a_name(value):
    """A JSON value as part of a file name, another one for each value."""
    text = json.dumps(value, separators=(",", ":"), sort_keys=True)
    if isinstance(value, str):
        try:
            json.loads(value)  # What would read as a number, say, keeps its quotes.
        except ValueError:
            text = value
    return urllib.parse.quote(text, safe="[]{},:+")
