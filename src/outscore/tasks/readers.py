"""Rows of a data file or of a Hugging Face data set, each with the place it stands at, so that errors can name it."""

import csv
import importlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from outscore.inputs import from_here, nearest


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of data.

    >>> Row(where="data.jsonl:3", values={"question": "2+2=", "answer": 4})
    """

    where: str
    """File and line (or row) for error messages."""
    values: Mapping[str, Any]
    """Column -> value."""


def read_file(path: Path) -> list[Row]:
    """Rows of a JSONL, JSON, CSV or Parquet file. ValueError for what cannot be read (with its line) or has no row."""
    check_exists(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: files end in {', '.join(READERS)}, not {path.suffix!r}")
    try:
        rows = reader(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text: {error}") from error
    if not rows:
        raise ValueError(f"{path}: the data set is empty")
    return rows


def check_exists(path: Path) -> None:
    """ValueError naming the nearest file if there is nothing at `path`."""
    if path.exists():
        return
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no directory {path.parent}{from_here(path)}")
    present = sorted(each.name for each in path.parent.iterdir() if not each.name.startswith("."))
    raise ValueError(f"{path}: no such file{nearest(path.name, present[:1000])}{from_here(path)}")


def read_hub(source: str, *, subset: str | None, split: str) -> list[Row]:
    """Rows of a Hugging Face data set: a hub id, or a directory holding one. ImportError without the package
    `datasets`."""
    try:
        datasets = importlib.import_module("datasets")
    except ModuleNotFoundError as error:
        if error.name != "datasets":
            raise
        raise ImportError("datasets is not installed: pip install 'outscore[data]'") from error
    try:
        loaded = _load(datasets, source, subset, split)
    except (OSError, ValueError) as error:
        called = f"{source!r}" + (f", subset {subset!r}" if subset else "")
        raise ValueError(f"data set {called}, split {split!r}: {error}") from error
    if len(loaded) == 0:
        raise ValueError(f"data set {source!r}, split {split!r}: the data set is empty")
    return [Row(where=f"{source} [{split}] row {index}", values=values) for index, values in enumerate(loaded)]


def _load(datasets: Any, source: str, subset: str | None, split: str) -> Any:
    directory = Path(source)
    if (directory / "dataset_dict.json").is_file():
        splits = datasets.load_from_disk(source)
        if split not in splits:
            raise ValueError(f"no split {split!r}{nearest(split, list(splits))}")
        return splits[split]
    if (directory / "state.json").is_file():
        return datasets.load_from_disk(source)
    return datasets.load_dataset(source, subset, split=split)


def _read_jsonl(path: Path) -> list[Row]:
    rows = []
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                rows.append(_row(f"{path}:{number}", _parse(path, line.strip(), first_line=number)))
    return rows


def _read_json(path: Path) -> list[Row]:
    content = _parse(path, path.read_text(encoding="utf-8-sig"), first_line=1)
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        is_wrapper = len(lists) == 1 and all(isinstance(value, dict) for value in lists[0])
        content = lists[0] if is_wrapper else [content]
    if not isinstance(content, list):
        raise ValueError(f"{path}: must hold a list of objects, one object with one such list in it, or one row")
    return [_row(f"{path} item {index}", values) for index, values in enumerate(content)]


def _read_csv(path: Path) -> list[Row]:
    rows = []
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        try:
            for values in reader:
                if None in values or None in values.values():
                    raise ValueError(
                        f"{path}:{reader.line_num}: the row has not the header's {len(reader.fieldnames or ())} fields"
                    )
                rows.append(_row(f"{path}:{reader.line_num}", values))
        except csv.Error as error:
            # The DictReader counts lines it has handed out; the reader below it knows the one that is broken.
            raise ValueError(f"{path}:{reader.reader.line_num}: bad CSV: {error}") from error
    return rows


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(path).read()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: not a readable Parquet file: {error}") from error
    return [_row(f"{path} row {index}", values) for index, values in enumerate(_pylist(table))]


def _pylist(table: Any) -> Iterable[Any]:
    rows: Iterable[Any] = table.to_pylist()
    return rows


def _parse(path: Path, text: str, *, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise ValueError(f"{path}:{line}: bad JSON: {error.msg} at column {error.colno}") from error


def _row(where: str, values: Any) -> Row:
    if not isinstance(values, dict):
        raise ValueError(f"{where}: must be an object with columns, not {type(values).__name__}")
    return Row(where=where, values=values)


READERS: Mapping[str, Callable[[Path], list[Row]]] = MappingProxyType(
    {".jsonl": _read_jsonl, ".ndjson": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
)
"""How to read a file, by the end of its name."""
