"""pyproject.toml, constraints.txt and the Makefile agree with each other."""

import importlib.metadata
import re
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from repo.tree import ROOT, imported_modules, source_files

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
UNTESTED = {"wandb", "trackio"}
"""Extras whose newest release is taken: nothing in the tests runs them."""
PACKAGE_OF = {"yaml": "pyyaml"}
"""Module -> package, where the names differ."""
COMES_WITH = {"tokenizers": "transformers", "huggingface-hub": "transformers", "jinja2": "torch"}
"""Packages that are imported and not listed: part of what a listed one is made of, at the release it needs."""


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def direct_requirements() -> list[Requirement]:
    extras = [text for texts in PROJECT["optional-dependencies"].values() for text in texts]
    return [requirement for text in [*PROJECT["dependencies"], *extras] if (requirement := Requirement(text))]


def test_every_direct_dependency_is_pinned_within_its_bounds():
    pinned = {canonicalize_name(name): version for name, version in pins().items()}
    for requirement in direct_requirements():
        name = canonicalize_name(requirement.name)
        if name not in UNTESTED | {"outscore"}:
            assert requirement.specifier.contains(pinned[name]), requirement


def test_a_pin_is_a_plain_release():
    """A local suffix such as +cpu would fail to resolve on any other platform."""
    assert {name: version for name, version in pins().items() if not re.fullmatch(r"[0-9][0-9a-z.]*", version)} == {}


def test_what_is_imported_is_declared():
    imported = {module.split(".")[0] for path in source_files() for _, module in imported_modules(path)}
    outside = imported - set(sys.stdlib_module_names) - {"outscore"}
    declared = {canonicalize_name(requirement.name) for requirement in direct_requirements()}
    needed = {canonicalize_name(PACKAGE_OF.get(module, module)) for module in outside}
    assert needed <= declared | set(COMES_WITH)


@pytest.mark.parametrize("package", COMES_WITH)
def test_what_comes_with_a_dependency_is_required_by_it_unconditionally(package):
    needed = [Requirement(text) for text in importlib.metadata.requires(COMES_WITH[package]) or []]
    assert package in {canonicalize_name(requirement.name) for requirement in needed if requirement.marker is None}


def test_direct_dependencies_stay_few():
    assert len(PROJECT["dependencies"]) <= 11


def test_continuous_integration_runs_the_readme_test_command():
    """Continuous integration runs the README's test command, so that it cannot pass where the newcomer's fails."""
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == [
        "set -euo pipefail",
        'cd "$(dirname "$0")/.."',
        "make test",
    ]
    assert "make test" in (ROOT / "README.md").read_text(encoding="utf-8")
