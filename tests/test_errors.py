"""The tree of errors is as drawn, and the text of a peer cannot leave its line."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sfasync import errors
from sfasync.errors import SfasyncError, one_line, printable


def tree(cls: type[SfasyncError], depth: int = 0) -> list[tuple[int, str, str, int]]:
    """Depth, name, code and exit code of each class below `cls`, as the picture shows them."""
    lines = []
    ours = [child for child in cls.__subclasses__() if child.__module__ == errors.__name__]  # and not a module's own
    for child in sorted(ours, key=lambda child: child.__name__):
        lines += [(depth, child.__name__, child.code, child.exit_code), *tree(child, depth + 1)]
    return lines


def test_the_picture_shows_the_tree() -> None:
    drawn = [
        (len(match[1]) // 4, match[2], match[3], int(match[4]))
        for match in re.finditer(
            r"^    ((?:│   |    )*)[├└]── (\w+) +([a-z-]+) +(\d+)", errors.__doc__ or "", re.MULTILINE
        )
    ]
    assert sorted(drawn) == sorted(tree(SfasyncError))


def test_every_error_is_listed() -> None:
    assert {name for _, name, _, _ in tree(SfasyncError)} == set(errors.__all__) - {"SfasyncError"}


@pytest.mark.parametrize("text", ["a\nb", "\x1b[2Jgone", "a\rb", "\udc80", "\u202eevil"])
def test_one_line_has_no_control_characters(text: str) -> None:
    assert one_line(text).isprintable()


def test_one_line_cuts_nothing() -> None:
    assert one_line("x" * 1000 + "\n") == "x" * 1000 + "\\n"


@given(st.text(alphabet=st.characters(codec=None), max_size=600))
@example("\0" * 256)
@example("x" * 256)
@example("x" * 257)
def test_printable_text_is_one_short_line(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown) <= 257
    if len(one_line(text)) <= 256:
        assert shown == one_line(text)
    else:
        assert shown == one_line(text)[:256] + "…"
