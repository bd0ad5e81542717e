"""Numbers, durations, sparklines, and text that cannot command a terminal."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from outscore.report.text import fold, format_seconds, format_value, shorten, sparkline, visible


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("\u202egnirts", "\\u202egnirts"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
        ("\x9b2J", "\\x9b2J"),
        ("β 数 🙂 [red]x[/red]", "β 数 🙂 [red]x[/red]"),
    ],
)
def test_control_characters_are_written_out_and_all_else_stays(raw, shown):
    assert visible(raw) == shown


@given(st.text())
def test_no_text_commands_a_terminal(raw):
    assert all(ord(char) >= 0x20 and not 0x7F <= ord(char) < 0xA0 for char in visible(raw))


@given(st.text(alphabet="ab 数🙂é"), st.integers(1, 12), st.integers(1, 4))
def test_shortened_and_folded_text_fits(text, width, lines):
    assert cell_len(shorten(text, width)) <= width
    if width > 1:
        folded = fold(text, width, lines).split("\n")
        assert len(folded) <= lines
        assert all(cell_len(line) <= width for line in folded)


def test_shortened_text_keeps_its_beginning_and_its_end():
    assert shorten("0123456789", 10) == "0123456789"
    assert shorten("0123456789", 9) == "0123…6789"
    assert shorten("0123456789", 2) == "0…"
    assert fold("the answer is: 277", 8, 2) == "the answ\n…is: 277"


def test_sparklines_by_hand():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 1, 2, 3], 2) == "▁█"
    assert sparkline([5.0, 5.0], 8) == "▁▁"
    assert sparkline([0, math.nan, 7], 8) == "▁ █"
    assert sparkline([], 8) == sparkline([math.nan], 8) == ""
    assert sparkline([0, 7], 8, ascii_only=True) == "_@"


def test_numbers_and_durations_by_hand():
    shown = [
        format_value("reward", value) for value in (0.0, 1.25, 33.0, 12345.0, 1e-5, -0.5, math.nan, None, math.inf)
    ]
    assert shown == ["0.000", "1.250", "33.0", "12345", "1.0e-05", "-0.500", "–", "–", "∞"]
    assert format_value("pass@8", 0.875) == "87.5 %"
    assert [format_seconds(value) for value in (0, 59.6, 61, 3661, math.nan, None)] == [
        *("0:00", "1:00", "1:01", "1:01:01", "–", "–")
    ]
