"""The public names are chosen: `outscore.__all__`, what can be imported, and the list beside this file are the same."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

FROZEN = Path(__file__).with_name("public_names.txt")


@pytest.fixture(scope="module")
def outscore() -> ModuleType:
    return importlib.import_module("outscore")


def frozen_names() -> list[str]:
    lines = FROZEN.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_all_equals_the_frozen_list(outscore):
    assert sorted(outscore.__all__) == sorted(frozen_names()), (
        f"a public name came or went: say so in {FROZEN.name} too"
    )


def test_all_equals_what_is_importable(outscore):
    public = {name for name in dir(outscore) if not name.startswith("_")}
    modules = {name for name in public if isinstance(getattr(outscore, name), ModuleType)}
    assert public - modules == set(outscore.__all__) - {"__version__"} - modules


def test_every_public_name_is_documented(outscore):
    public = {name: getattr(outscore, name) for name in outscore.__all__ if name != "__version__"}
    assert not [name for name, value in public.items() if callable(value) and not (value.__doc__ or "").strip()]


def test_the_frozen_list_is_sorted_and_has_no_double():
    assert frozen_names() == sorted(set(frozen_names()))
