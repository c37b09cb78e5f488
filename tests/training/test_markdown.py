"""Tables of Markdown."""

from training.markdown import table


def test_a_table_has_a_line_for_each_row_and_empty_cells_stay_narrow() -> None:
    assert table(("", "dose"), [("a.mrc", "12"), ("b.mrc", "")]) == [
        "| | dose |",
        "|---|---|",
        "| a.mrc | 12 |",
        "| b.mrc | |",
    ]
