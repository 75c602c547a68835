"""What is public is what type checkers see, and all of it can be had."""

import ast
from pathlib import Path

import pytest

import sfasync


def typed_names() -> set[str]:
    """The names imported under TYPE_CHECKING."""
    tree = ast.parse(Path(sfasync.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name for node in imports for alias in node.names}


def test_public_names_are_those_type_checkers_see() -> None:
    assert set(sfasync.__all__) == typed_names() | {"__version__"}
    assert dir(sfasync) == sorted(sfasync.__all__)


@pytest.mark.parametrize("name", sfasync.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(sfasync, name) is not None


def test_every_error_is_public() -> None:
    assert set(sfasync.errors.__all__) <= set(sfasync.__all__)


def test_other_names_are_missing() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sfasync.nothing  # type: ignore[attr-defined]  # type checkers see that, too
