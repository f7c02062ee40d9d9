"""Tables of strings, as text or as Markdown."""


def text(header, rows, left=(), rule=True) -> list[str]:
    """The lines of a table to be printed.

    Args:
        header: sequence of str.
        rows: list of sequences of str, as long as the header.
        left: the columns, by number, that are aligned to the left; the others to the right.
        rule: bool, whether a line of dashes follows the header.

    Returns:
        A list of str.

    Example:

    >>> print("\\n".join(text(["layer", "zeros"], [["a", "7"], ["b", "10"]], left=[0])))
    layer  zeros
    -----  -----
    a          7
    b         10
    """
    widths = _widths(header, rows)
    lines = [header, *([["-" * width for width in widths]] if rule else []), *rows]
    return ["  ".join(_padded(line, widths, left)).rstrip() for line in lines]


def markdown(header, rows, left=(0,), padded=False) -> list[str]:
    """The lines of a Markdown table.

    Args:
        header, rows: as in `text`.
        left: the columns, by number, that are aligned to the left; the others to the right.
        padded: bool, whether cells are padded with spaces, for reading the source.

    Returns:
        A list of str.

    Example:

    >>> print("\\n".join(markdown(["layer", "zeros"], [["a", "7"], ["b", "10"]])))
    | layer | zeros |
    | :--- | ---: |
    | a | 7 |
    | b | 10 |
    """
    if not padded:
        rule = [":---" if column in left else "---:" for column in range(len(header))]
        return [f"| {' | '.join(line)} |" for line in (header, rule, *rows)]
    widths = _widths(header, rows)
    # A rule fills its cell, the spaces beside it included.
    rule = [
        "-" * (width + 2) if column in left else "-" * (width + 1) + ":"
        for column, width in enumerate(widths)
    ]
    first, *others = (f"| {' | '.join(_padded(line, widths, left))} |" for line in (header, *rows))
    return [first, f"|{'|'.join(rule)}|", *others]


def mean_and_spread(values, scale=1.0, digits=2) -> str:
    """Mean ± sample standard deviation; the mean alone for a single value.

    Example:

    >>> mean_and_spread([0.81, 0.84], scale=100)
    '82.50 ± 2.12'
    >>> mean_and_spread([0.81], scale=100)
    '81.00'
    """
    import statistics  # Slow to import, for a command line that only prints its help.

    mean = f"{scale * statistics.fmean(values):.{digits}f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {scale * statistics.stdev(values):.{digits}f}"


def _widths(header, rows):
    """The length of the longest cell of each column."""
    return [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]


def _padded(line, widths, left):
    """The cells of a line, padded to the widths of their columns."""
    return [
        cell.ljust(width) if column in left else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(line, widths, strict=True))
    ]
