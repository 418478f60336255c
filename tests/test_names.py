"""A name says what it holds, and a public name stands for one thing in the whole package."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NAMES = runpy.run_path(str(ROOT / "benchmarks" / "names.py"))
MOST_VAGUE = 0.03
"""Of all names that functions store. big_vision and nnU-Net have 0.2 and 0.3 %, httpx 2.6 %."""

Sources = list[Any]
read_sources: Callable[[Path], Sources] = NAMES["read_sources"]
public_duplicates: Callable[[Sources], dict[str, list[str]]] = NAMES["public_duplicates"]
vague_fraction: Callable[[Sources], float] = NAMES["vague_fraction"]
vague_names: Callable[[Sources], list[str]] = NAMES["vague_names"]


@pytest.fixture(scope="module")
def sources() -> Sources:
    return read_sources(ROOT / "src" / "dermkit")


def plant(folder: Path, **modules: str) -> Sources:
    """Write modules (`a__b` is a/b.py) and read them as a package."""
    for name, text in modules.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return read_sources(folder)


def test_no_public_name_is_defined_twice(sources: Sources) -> None:
    duplicates = public_duplicates(sources)
    assert not duplicates, "make it private, or say which one it is: " + str(duplicates)


@pytest.mark.parametrize(
    "definition",
    ["class Rows:\n    pass", "def Rows():\n    pass", "Rows = 1", "Rows: int = 1", "async def Rows():\n    pass"],
)
def test_a_planted_second_definition_is_listed(tmp_path: Path, definition: str) -> None:
    planted = plant(tmp_path, a="class Rows:\n    pass\n\n_Private = 1\n", data__b=f"{definition}\n_Private = 2\n")
    assert public_duplicates(planted) == {"Rows": ["a.py", "data/b.py"]}


def test_an_import_or_an_inner_name_is_no_second_definition(tmp_path: Path) -> None:
    planted = plant(
        tmp_path,
        a="class Rows:\n    pass",
        b="from a import Rows\n\ndef read():\n    Rows = 1\n    return Rows\n\nclass Table:\n    Rows = 1\n",
    )
    assert public_duplicates(planted) == {}


def test_local_names_say_what_they_hold(sources: Sources) -> None:
    fraction = vague_fraction(sources)
    assert fraction < MOST_VAGUE, f"{fraction:.1%} are vague; python benchmarks/names.py lists them"


def test_planted_vague_names_are_counted_once_each(tmp_path: Path) -> None:
    text = """
found = 1  # not in a function

def outer(kept):
    found, total = kept
    for item in total:
        with item as handle:
            pass
    def inner():
        own = [part for part in total]
        return own
    return inner, lambda rows: [row for row in rows]
"""
    planted = plant(tmp_path, a=text)
    assert vague_names(planted) == ["a.py:5 found", "a.py:6 item", "a.py:10 own", "a.py:10 part"]
    assert vague_fraction(planted) == 4 / 7
    assert vague_fraction(planted) > MOST_VAGUE
