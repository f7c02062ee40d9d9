"""Fields of settings: default, help and check of each in one place.

A dataclass of settings is made of these fields. The dataclass checks its values by them, and
the command line makes its options from them.
"""

import dataclasses

from tf_rigl._base import registry
from tf_rigl._base.arguments import check_integer, check_number, unknown_name


def setting(default, text, check=None, **option):
    """Makes a field of a dataclass of settings.

    Args:
        default: the default.
        text: str, the help on the command line.
        check: function of the field's name and a value, which returns the value or raises
            `ValueError`; or None.
        **option: further arguments of `argparse.ArgumentParser.add_argument`.

    Example:

    >>> @dataclasses.dataclass(frozen=True)
    ... class Settings:
    ...     epochs: int = setting(60, "passes over the training data", integer(1))
    """
    metadata = {"help": text, "check": check, "option": option}
    return dataclasses.field(default=default, metadata=metadata)


def check(cls, name, value):
    """Checks a value of a field, and returns it as the field keeps it."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    function = fields[name].metadata.get("check")
    return value if function is None else function(name, value)


def check_all(settings):
    """Checks all fields of a dataclass of settings, in `__post_init__`."""
    for field in dataclasses.fields(settings):
        value = check(type(settings), field.name, getattr(settings, field.name))
        object.__setattr__(settings, field.name, value)  # Equal numbers give the same name.


def integer(minimum, optional=False):
    """Returns a check for an integer of at least `minimum`; if optional, also for None."""

    def check_one(name, value):
        return None if optional and value is None else check_integer(name, value, minimum)

    return check_one


def number(optional=False, **bounds):
    """Returns a check for a number, bounds as in `check_number`; if optional, also for None."""

    def check_one(name, value):
        return None if optional and value is None else check_number(name, value, **bounds)

    return check_one


def one_of(allowed, others=None):
    """Returns a check for one of several names; `others` as in `unknown_name`."""

    def check_one(name, value):
        if not isinstance(value, str) or value not in allowed:
            raise unknown_name(name, value, allowed, or_object=False, others=others)
        return value

    return check_one


def entry_of(entries):
    """Returns a check for a name in a registry, which may have numbers in it."""

    def check_one(name, value):
        if not isinstance(value, str) or registry.find(entries, value) is None:
            names, others = registry.example_names(entries), registry.other_words(entries)
            raise unknown_name(name, value, names, or_object=False, others=others)
        return value

    return check_one


def any_name(name, value):
    """Checks that a value is a str."""
    if not isinstance(value, str):
        raise ValueError(f"Argument `{name}` must be a name. Received: {name}={value!r}")
    return value


def add_options(parser, cls, names=None):
    """Adds a command-line option for each field that has a help text.

    Args:
        parser: `argparse.ArgumentParser`.
        cls: dataclass of settings.
        names: list of str, the only fields wanted; None for all.
    """
    for field in dataclasses.fields(cls):
        text = field.metadata.get("help")
        if text is None or (names is not None and field.name not in names):
            continue
        kinds = [kind for kind in (int, float) if kind in (field.type, *_alternatives(field))]
        option = {"type": kinds[0]} if kinds else {}
        add_option(parser, field.name, field.default, text, **option, **field.metadata["option"])


def add_option(parser, name, default, text, **option):
    """Adds a command-line option whose help ends in its default.

    Args:
        parser: `argparse.ArgumentParser`.
        name: str, the name in Python; `batch_size` becomes `--batch-size`.
        default: the default. None, or an empty list, is not shown.
        text: str, the help.
        **option: further arguments of `add_argument`.
    """
    if default not in (None, [], ()):
        shown = " ".join(map(str, default)) if isinstance(default, (list, tuple)) else default
        text = f"{text} (default: {shown})"
    parser.add_argument(f"--{name.replace('_', '-')}", default=default, help=text, **option)


def _alternatives(field):
    """Returns the types of a field that takes one of several, such as `int | None`."""
    return getattr(field.type, "__args__", ())
