"""The names of all methods, patterns and distributions, each with where its code is.

One line here makes a method, pattern or distribution known everywhere: to `sparsify`, the
error messages, the command line's help and the tables in `docs/extending.md`. This module holds
strings only; it imports neither Keras nor TensorFlow.

After a change, `python -m tf_rigl._base.registry docs/extending.md` rewrites the tables there.
"""

import dataclasses
import importlib
import pathlib
import re
import sys


@dataclasses.dataclass(frozen=True)
class Entry:
    """One method, pattern or distribution.

    Attributes:
        home: str, the module that defines it.
        name: str, its class or function in that module.
        summary: str, what it does, in one phrase: begins in lower case, ends without a period.
        examples: tuple of str, names to show in error messages; needed if the name has numbers
            in it, written in capitals.
        options: dict of further arguments that the name stands for.
        also: tuple of str, other words for it, in lower case. They are no names: error messages
            say which name they mean.

    Example:

    >>> METHODS["rigl"].load()
    <class 'tf_rigl.methods.rigl.RigL'>
    """

    home: str
    name: str
    summary: str
    examples: tuple[str, ...] = ()
    options: dict = dataclasses.field(default_factory=dict, hash=False)
    also: tuple[str, ...] = ()

    def load(self):
        """Imports the module and returns the class or function."""
        return getattr(importlib.import_module(self.home), self.name)


METHODS = {
    "static": Entry("tf_rigl.methods.static", "Static", "keeps the random mask it starts with"),
    "snip": Entry(
        "tf_rigl.methods.snip",
        "SNIP",
        "prunes once, before training: keeps the largest |weight x gradient|",
    ),
    "set": Entry(
        "tf_rigl.methods.set", "SET", "drops the smallest weights, grows others at random"
    ),
    "snfs": Entry(
        "tf_rigl.methods.snfs",
        "SNFS",
        "drops the smallest weights, grows where the gradient's momentum is largest",
    ),
    "rigl": Entry(
        "tf_rigl.methods.rigl",
        "RigL",
        "drops the smallest weights, grows where the gradient is largest",
    ),
    "granet": Entry(
        "tf_rigl.methods.granet",
        "GraNet",
        "prunes gradually over all layers, and regrows in each where the gradient is largest",
    ),
    "srigl": Entry(
        "tf_rigl.methods.srigl",
        "SRigL",
        "works like RigL with as many inputs for each output, and loses outputs that do not matter",
    ),
    "mest": Entry(
        "tf_rigl.methods.mest",
        "MEST",
        "drops by |weight| and a little |gradient|, grows at random, elastically",
    ),
    "acdc": Entry(
        "tf_rigl.methods.acdc",
        "ACDC",
        "trains dense and sparse in turn; magnitude pruning begins each sparse phase",
        also=("ac/dc", "ac_dc"),
    ),
    "ste": Entry(
        "tf_rigl.methods.ste",
        "STE",
        "trains dense weights and uses the largest, with a straight-through gradient",
    ),
    "sr_ste": Entry(
        "tf_rigl.methods.ste",
        "SRSTE",
        "works like STE, and shrinks the weights which are not used",
        also=("sr-ste",),
    ),
    "grasp": Entry(
        "tf_rigl.methods.grasp",
        "GraSP",
        "prunes once, before training: keeps the gradient's norm",
    ),
    "magnitude": Entry(
        "tf_rigl.methods.magnitude",
        "MagnitudePruning",
        "starts dense and prunes the smallest weights step by step",
        also=("gradual", "gradual_pruning", "gmp", "pruning", "prune", "magnitude_pruning"),
    ),
    "edge_popup": Entry(
        "tf_rigl.methods.edge_popup",
        "EdgePopup",
        "freezes the initial weights and trains a score for each; the highest scores are the mask",
    ),
}

# Capitals in a name stand for numbers: "block_ROWSxCOLS" is "block_16x1", `Block(16, 1)`.
PATTERNS = {
    "unstructured": Entry("tf_rigl.patterns.unstructured", "Unstructured", "single weights"),
    "block_ROWSxCOLS": Entry(
        "tf_rigl.patterns.block",
        "Block",
        "blocks of ROWS inputs by COLS outputs",
        examples=("block_4x1", "block_16x1"),
        also=("blocks",),
    ),
    "constant_fan_in_ROWSxCOLS": Entry(
        "tf_rigl.patterns.block",
        "Block",
        "such blocks, with the same number in each column of blocks",
        examples=("constant_fan_in_32x32",),
        options={"constant_fan_in": True},
    ),
    "channels_ROWSxCOLS": Entry(
        "tf_rigl.patterns.block",
        "Block",
        "blocks of ROWS by COLS channels, over all positions of a convolution's kernel",
        examples=("channels_1x32", "channels_32x32"),
        options={"taps": "all"},
        also=("channels",),
    ),
    "constant_fan_in_channels_ROWSxCOLS": Entry(
        "tf_rigl.patterns.block",
        "Block",
        "such blocks of channels, with the same number in each column of blocks",
        examples=("constant_fan_in_channels_1x32",),
        options={"taps": "all", "constant_fan_in": True},
    ),
    "constant_fan_in": Entry(
        "tf_rigl.patterns.fan_in",
        "ConstantFanIn",
        "single weights, with the same number for each output",
    ),
    "N:M": Entry(
        "tf_rigl.patterns.nm",
        "NM",
        "at most N of every M weights along the input axis",
        examples=("2:4",),
        also=("n:m",),
    ),
    "compact": Entry(
        "tf_rigl.patterns.compact",
        "Compact",
        "for each layer the finest blocks of which `tf_rigl.compact` makes a fast layer",
    ),
    "constant_fan_in_compact": Entry(
        "tf_rigl.patterns.compact",
        "Compact",
        "such blocks, with the same number in each column of blocks",
        options={"constant_fan_in": True},
    ),
    "litert": Entry(
        "tf_rigl.patterns.litert",
        "LiteRT",
        "for each layer what LiteRT runs fast: block_16x1, block_4x1 or unstructured",
    ),
}

DISTRIBUTIONS = {
    "uniform": Entry(
        "tf_rigl.distributions", "uniform", "the same sparsity in every layer, the first one dense"
    ),
    "uniform_all": Entry(
        "tf_rigl.distributions", "uniform_all", "the same sparsity in every layer"
    ),
    "erdos_renyi": Entry(
        "tf_rigl.distributions",
        "erdos_renyi",
        "density proportional to (n_in + n_out) / (n_in * n_out)",
        also=("er",),
    ),
    "erk": Entry(
        "tf_rigl.distributions",
        "erdos_renyi_kernel",
        "density proportional to sum(shape) / prod(shape) of the whole kernel",
    ),
}


# Of LiteRT files; float32 has no name.
QUANTIZATIONS = ("float16", "dynamic", "int8")
TARGETS = ("float32", *QUANTIZATIONS)  # What a compact model becomes in LiteRT.
FORMS = ("auto", "matmul", "split", "grouped")  # Of compact layers.
COMPUTE = ("auto", "compact", "dense", "encoded")  # Of exports; the last one is LiteRT's alone.


def find(entries, name):
    """Finds the entry of a name, and the numbers in that name.

    Args:
        entries: `METHODS`, `PATTERNS` or `DISTRIBUTIONS`.
        name: str.

    Returns:
        The `Entry` and a tuple of int; or None if no entry has this name.

    Example:

    >>> entry, numbers = find(PATTERNS, "block_16x1")
    >>> entry.name, numbers
    ('Block', (16, 1))
    """
    for spelling, entry in entries.items():
        found = re.fullmatch(re.sub(r"[A-Z]+", r"(\\d+)", re.escape(spelling)), name)
        if found:
            return entry, tuple(map(int, found.groups()))
    return None


def example_names(entries):
    """Returns names that work as they stand: each name, or examples of it if it has numbers.

    Example:

    >>> "erk" in example_names(DISTRIBUTIONS), "2:4" in example_names(PATTERNS)
    (True, True)
    """
    return [n for name, entry in entries.items() for n in entry.examples or (name,)]


def other_words(entries):
    """Returns other words for the names: those of `Entry.also`, and of classes and functions.

    Returns:
        A dict of word, in lower case, to a name that works as it stands.

    Example:

    >>> other_words(METHODS)["gradual"], other_words(DISTRIBUTIONS)["erdos_renyi_kernel"]
    ('magnitude', 'erk')
    """
    result = {}
    for name, entry in entries.items():
        for word in (entry.name.lower(), *entry.also):
            if word not in entries:
                result.setdefault(word, entry.examples[0] if entry.examples else name)
    return result


def load_all(entries):
    """Imports the code of all entries.

    Returns:
        A dict of the name of each class or function to it.
    """
    return {entry.name: entry.load() for entry in entries.values()}


_TITLES = {"Method": METHODS, "Pattern": PATTERNS, "Distribution": DISTRIBUTIONS}
_MARKS = "<!-- registry: begin -->", "<!-- registry: end -->"


def tables():
    """Returns a Markdown table of all methods, one of all patterns, one of all distributions."""
    parts = []
    for title, entries in _TITLES.items():
        lines = [f"| {title} | Python | What it does |", "| --- | --- | --- |"]
        for name, entry in entries.items():
            summary = entry.summary.replace("|", "\\|")
            module = entry.home.removeprefix("tf_rigl.").split(".")[0]
            lines.append(f'| `"{name}"` | `{module}.{entry.name}` | {summary} |')
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def with_tables(text):
    """Returns a document in which these tables stand between the two marks.

    Args:
        text: str, Markdown with the two comments that mark the place of the tables.

    Raises:
        ValueError: if the marks are not there.
    """
    begin, end = (text.find(mark) for mark in _MARKS)
    if not 0 <= begin < end:
        raise ValueError(f"The text must have the lines {_MARKS[0]} and {_MARKS[1]}.")
    return f"{text[:begin]}{_MARKS[0]}\n{tables()}\n{text[end:]}"


if __name__ == "__main__":
    for _path in map(pathlib.Path, sys.argv[1:]):
        _path.write_text(with_tables(_path.read_text()))
