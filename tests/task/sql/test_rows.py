"""rows.py: what a query gave, as text: the first rows, or an error that is cut."""

from minigrpo.task.sql.engines.database import Execution
from minigrpo.task.sql.rows import rows_table, show_execution


def test_ten_rows_and_eight_columns_are_shown_and_the_rest_counted():
    """12 rows of 9 columns: 2 and 1 more. Of 10 rows of 8 columns nothing is left."""
    rows = tuple(tuple(f"{i}{j}" for j in range(9)) for i in range(12))
    columns = tuple("abcdefghi")
    drawn = rows_table(Execution("ok", rows, columns), 67).split("\n")
    assert drawn[0].split() == list("abcdefgh") and drawn[10].split() == [f"9{j}" for j in range(8)]
    assert drawn[11:] == ["… 2 more rows and 1 more column"]
    assert "more" not in rows_table(Execution("ok", tuple(row[:8] for row in rows[:10]), columns[:8]), 67)


def test_long_cells_are_cut_the_longest_first():
    """20 columns for a cell of 30, two blanks and one of 3: 15 of the long one, the last of them a sign that it goes on."""
    assert rows_table(Execution("ok", (("x" * 30, 100),), ("a", "b")), 20) == (
        "a" + " " * 18 + "b\n" + "x" * 14 + "…  100")


def test_rows_stand_beside_their_label():
    assert show_execution(Execution("ok", ((3, "x"), (12, "y")), ("n", "name")), 8) == [
        "  gave      n   name", "            3      x", "            12     y"]
    assert show_execution(Execution("ok", (), ("n",)), 8) == ["  gave      no rows"]


def test_an_error_is_its_kind_and_its_message_cut_after_some_lines():
    """An engine quotes SQL of any length in its message."""
    assert show_execution(Execution("no_sql"), 8) == ["  gave      no_sql"]
    shown = show_execution(Execution("syntax", error="near " + "x " * 1000), 3)
    assert shown[0].startswith("  gave      syntax: near x") and len(shown) == 3 and shown[-1].endswith("…")
