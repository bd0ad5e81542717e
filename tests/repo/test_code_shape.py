"""Files and functions stay small enough to hold in the head, and what is public says what it is."""

import ast
from collections.abc import Iterator

import pytest
from repo.tree import name_of, source_files, tree_of

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def public_definitions(tree: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[tuple[str, Documented]]:
    """Public functions and classes, and the public methods of public classes."""
    for node in tree.body:
        if isinstance(node, Documented) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node, f"{prefix}{node.name}.")


def decorator_names(node: Documented) -> set[str]:
    called = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
    return {d.id if isinstance(d, ast.Name) else d.attr for d in called if isinstance(d, ast.Name | ast.Attribute)}


def is_record(node: ast.ClassDef) -> bool:
    """A dataclass, or settings: a pydantic model."""
    bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
    return "dataclass" in decorator_names(node) or any(base.endswith(("BaseModel", "Settings")) for base in bases)


def undocumented_fields(node: ast.ClassDef) -> list[str]:
    """Public fields without a string below them."""
    below = [*node.body[1:], None]
    return [
        field.target.id
        for field, after in zip(node.body, below, strict=True)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and not field.target.id.startswith("_")
        if not (
            isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
        )
    ]


@pytest.mark.parametrize("path", source_files(), ids=name_of)
def test_a_file_fits_in_the_head(path):
    num_lines = len(path.read_text(encoding="utf-8").splitlines())
    assert num_lines <= MAX_FILE_LINES, f"{name_of(path)} has {num_lines} lines; split it by what its parts are about"


@pytest.mark.parametrize("path", source_files(), ids=name_of)
def test_a_function_fits_on_a_screen(path):
    lengths = {
        f"{node.name} (line {node.lineno})": (node.end_lineno or 0) - node.lineno + 1
        for node in functions(tree_of(path))
    }
    assert not {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES}


@pytest.mark.parametrize("path", source_files(), ids=name_of)
def test_what_is_public_is_documented(path):
    tree = tree_of(path)
    assert ast.get_docstring(tree) or not tree.body, f"{name_of(path)} needs a docstring that says what it is for"
    overrides = {"override", "overload", "setter"}
    missing = [
        f"{name} (line {node.lineno})"
        for name, node in public_definitions(tree)
        if not ast.get_docstring(node) and not decorator_names(node) & overrides
    ]
    assert not missing


@pytest.mark.parametrize("path", source_files(), ids=name_of)
def test_every_field_of_a_public_record_or_setting_is_documented(path):
    classes = [(name, node) for name, node in public_definitions(tree_of(path)) if isinstance(node, ast.ClassDef)]
    missing = {name: undocumented_fields(node) for name, node in classes if is_record(node)}
    assert not {name: fields for name, fields in missing.items() if fields}


@pytest.mark.parametrize("path", source_files(), ids=name_of)
def test_no_fault_is_swallowed_unnamed(path):
    bare = [
        node.lineno for node in ast.walk(tree_of(path)) if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    assert not bare, f"{name_of(path)}: bare except in lines {bare}"
