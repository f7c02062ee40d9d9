"""Specs: methods with their arguments, as the command line takes them."""

import ast
import dataclasses
import math
import re

from tf_rigl._base.arguments import unknown_name
from tf_rigl.experiments.settings import (
    METHODS,
    OF_METHODS,
    OTHERS,
    Settings,
    method_arguments,
    usual_drop_fraction,
)

_FIELDS = [f.name for f in dataclasses.fields(Settings) if f.name not in ("method", "options")]
_SPEC = re.compile(r"\s*([\w-]+)\s*(?:\((.*)\))?\s*(?:@\s*(\d+(?:\.\d+)?)x)?\s*", re.DOTALL)
_WORD = re.compile(r"[A-Za-z_][\w.-]*|\d+:\d+")
_TOKEN = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|.""", re.DOTALL)
_OF_SPARSE = ("sparsity", "distribution", "pattern", "compute", "initialization")
_CONSTANTS = {"true": True, "false": False, "none": None, "null": None}


@dataclasses.dataclass(frozen=True)
class Spec:
    """A method to compare, with its own settings.

    Attributes:
        method: str, as in `tf_rigl.experiments.settings.Settings`.
        arguments: dict of settings and of options of the method, by name.
        times: float, the epochs of its runs over those of the comparison.
    """

    method: str
    arguments: dict = dataclasses.field(default_factory=dict, hash=False)
    times: float = 1.0

    def __str__(self):
        arguments = ", ".join(f"{k}={_text(v)}" for k, v in self.arguments.items())
        times = f"@{str(self.times).removesuffix('.0')}x" if self.times != 1 else ""
        return f"{self.method}{f'({arguments})' if arguments else ''}{times}"

    def settings(self, base, **others) -> Settings:
        """Makes the settings of a run.

        Args:
            base: `Settings`, the values of all settings that are not given.
            **others: settings by name; the spec's arguments override them.

        Returns:
            A `Settings`.

        Raises:
            ValueError: if a name or a value in the spec is invalid.
        """
        others |= {k: v for k, v in self.arguments.items() if k in _FIELDS}
        options = {k: v for k, v in self.arguments.items() if k not in _FIELDS}
        if base.drop_fraction == usual_drop_fraction(base.method):
            others.setdefault("drop_fraction", None)  # That of this method.
        try:
            result = dataclasses.replace(base, method=self.method, options=options, **others)
        except ValueError as error:
            raise ValueError(f"In {str(self)!r}: {error}") from error
        epochs = result.epochs * self.times
        if not 1 <= epochs < math.inf or epochs != int(epochs):
            raise ValueError(
                f"{str(self)!r} must train for a whole number of epochs. Received: {epochs:g}"
            )
        return dataclasses.replace(result, epochs=int(epochs))


def parse(text) -> Spec:
    """Reads a spec.

    Args:
        text: str, the name of a method, its arguments in parentheses, and the factor of its
            epochs: `rigl`, `rigl@2x`, `snip(scope=global)`,
            `rigl(drop_fraction=0.5, gradient_batches=4)@2x`. Values are Python literals;
            words need no quotes.

    Returns:
        A `Spec`.

    Raises:
        ValueError: if it cannot be read; the message shows the form.

    Example:

    >>> parse("snip(scope=global)@2x")
    Spec(method='snip', arguments={'scope': 'global'}, times=2.0)
    """
    found = _SPEC.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise _unreadable(text, "it does not have the form name(option=value, ...)@2x")
    name, inner, times = found.groups()
    if name not in METHODS:
        raise unknown_name("method", name, METHODS, or_object=False, others=OTHERS)
    spec = Spec(name, _arguments(text, inner or ""), float(times or 1))
    for key in spec.arguments:
        if key == "seed":
            raise _unreadable(text, "seeds are the same for all methods")
        if (key in OF_METHODS and key not in method_arguments(name)) or (
            name == "dense" and key in _OF_SPARSE
        ):
            raise _unreadable(text, f"{name!r} has no {key!r}")
    return spec


def parse_value(text):
    """Reads a value of a spec: a Python literal, or a word without quotes.

    Raises:
        ValueError: if it is neither.

    Example:

    >>> parse_value("0.5"), parse_value("global"), parse_value("true")
    (0.5, 'global', True)
    """
    text = text.strip()
    if text.lower() in _CONSTANTS:
        return _CONSTANTS[text.lower()]
    if _WORD.fullmatch(text):
        return text
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text!r} is neither a word nor a Python literal") from error


def _arguments(text, inner):
    """Reads the arguments in the parentheses of a spec, as a dict."""
    result = {}
    for part in _split(inner):
        name, equals, value = part.partition("=")
        name = name.strip()
        if not equals or not name.isidentifier() or name in result:
            raise _unreadable(text, f"each option must be given as name=value, once: {part!r}")
        try:
            result[name] = parse_value(value)
        except ValueError as error:
            raise _unreadable(text, error) from error
    return result


def _split(inner):
    """Splits at the commas outside brackets and quotes.

    Python's own parser cannot do it, because `global` is a keyword.
    """
    parts, depth = [""], 0
    for token in _TOKEN.findall(inner):
        depth += (token in "([{") - (token in ")]}")
        if token == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += token
    return parts if parts[-1].strip() else parts[:-1]


def _unreadable(text, reason):
    return ValueError(
        f"Argument `methods` must hold specs such as rigl, rigl@2x, 'snip(scope=global)' or "
        f"'rigl(drop_fraction=0.5)@2x'. Received: {text!r}: {reason}"
    )


def _text(value):
    """Writes a value as specs do."""
    if isinstance(value, str) and _WORD.fullmatch(value) and value.lower() not in _CONSTANTS:
        return value
    return repr(value)
