"""Tables as text and as Markdown."""

from tf_rigl._base import tables

HEADER = ["layer", "zeros", "kind"]
ROWS = [["a", "7", "x"], ["block", "1,000", ""]]


def test_text_has_columns_of_one_width_and_no_spaces_at_the_end():
    assert tables.text(HEADER, ROWS, left={0, 2}) == [
        "layer  zeros  kind",
        "-----  -----  ----",
        "a          7  x",
        "block  1,000",
    ]


def test_text_without_a_rule():
    assert tables.text(["a", "b"], [["1", "22"]], rule=False) == ["a   b", "1  22"]


def test_text_without_rows():
    assert tables.text(["a", "b"], []) == ["a  b", "-  -"]


def test_markdown():
    assert tables.markdown(HEADER, ROWS, left={0, 2}) == [
        "| layer | zeros | kind |",
        "| :--- | ---: | :--- |",
        "| a | 7 | x |",
        "| block | 1,000 |  |",
    ]


def test_padded_markdown_has_its_bars_below_one_another():
    assert tables.markdown(HEADER, ROWS, padded=True) == [
        "| layer | zeros | kind |",
        "|-------|------:|-----:|",
        "| a     |     7 |    x |",
        "| block | 1,000 |      |",
    ]


def test_a_single_value_has_no_spread():
    assert tables.mean_and_spread([0.5]) == "0.50"
    # The squared differences from the mean, 2, are 1, 0 and 1.
    assert tables.mean_and_spread([1, 2, 3], scale=10, digits=0) == "20 ± 10"
