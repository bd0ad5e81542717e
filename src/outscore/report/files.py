"""Files that are complete or absent: written aside, synced, then renamed into place.

A name that starts with `.tmp-` is unfinished work. Whoever reads a run skips it; whoever resumes one removes it.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

TEMPORARY_PREFIX = ".tmp-"


def temporary_path(path: Path) -> Path:
    """Where `path` is written before it is renamed: the same directory, so that the rename is atomic."""
    return path.with_name(TEMPORARY_PREFIX + path.name)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` when the block ends well, and vanishes otherwise.

    Raises OSError (its errno kept) naming `path` when the disk refuses; an earlier `path` is then untouched.
    """
    temporary = temporary_path(path)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_directory(path.parent)
    except OSError as error:
        raise _naming(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically; see `replacing`."""
    with replacing(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically; see `replacing`."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically; NaN and infinities are refused (ValueError)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def publishing_directory(path: Path) -> Iterator[Path]:
    """Give a fresh directory to fill; when the block ends well all its files are synced and it becomes `path`.

    Raises FileExistsError when `path` already holds something, and OSError naming `path` when the disk refuses.
    Whatever goes wrong inside, nothing called `path` appears.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise FileExistsError(f"{path} already exists and is not overwritten")
    temporary = temporary_path(path)
    try:
        if temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir(parents=True)
        yield temporary
        _sync_tree(temporary)
        os.rename(temporary, path)
        _sync_directory(path.parent)
    except OSError as error:
        raise _naming(path, error) from error
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


def remove_directory(path: Path) -> None:
    """Remove a directory so that no moment shows half of it: it is renamed to a temporary name first."""
    temporary = temporary_path(path)
    if temporary.exists():
        shutil.rmtree(temporary)
    os.rename(path, temporary)
    shutil.rmtree(temporary)


def leftovers(root: Path) -> list[Path]:
    """What interrupted writes left anywhere under `root`, in sorted order, none inside another."""
    found: list[Path] = []
    for path in sorted(root.rglob(TEMPORARY_PREFIX + "*")):
        if not any(parent in found for parent in path.parents):
            found.append(path)
    return found


def remove_leftovers(root: Path) -> list[Path]:
    """Remove what interrupted writes left under `root`, and return what was removed."""
    found = leftovers(root)
    for path in found:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return found


def append_line(path: Path, line: str, *, sync: bool = True) -> None:
    """Append one line; a line that could not be written whole is taken back.

    Unlike `write_text` this leaves a moment in which a killed process has written half a line: readers ignore a last
    line without its newline, and `keep_lines` removes it.
    """
    assert "\n" not in line
    with open(path, "ab", buffering=0) as file:
        size = file.tell()
        try:
            _write_all(file, line.encode() + b"\n")
            if sync:
                os.fsync(file.fileno())
        except OSError as error:
            file.truncate(size)
            raise _naming(path, error) from error
    if sync and size == 0:
        _sync_directory(path.parent)


def read_lines(path: Path) -> list[Mapping[str, Any]]:
    """The objects of a JSON-lines file; none when it is absent. A last line without its newline is not read.

    Raises ValueError with the file and line number where a complete line is not a JSON object.
    """
    if not path.exists():
        return []
    return [_parse(path, number, raw) for number, raw in enumerate(_whole_lines(path.read_bytes()), start=1)]


def keep_lines(path: Path, keep: Callable[[Mapping[str, Any]], bool]) -> int:
    """Remove from a JSON-lines file every line not to be kept, and a torn last line; the rest stays byte for byte.

    A file of which nothing is left is removed. Returns how many whole lines went; ValueError as in `read_lines`.
    """
    if not path.exists():
        return 0
    data = path.read_bytes()
    lines = _whole_lines(data)
    kept = [raw for number, raw in enumerate(lines, start=1) if keep(_parse(path, number, raw))]
    if not kept:
        path.unlink()
    elif b"".join(kept) != data:
        write_bytes(path, b"".join(kept))
    return len(lines) - len(kept)


def _whole_lines(data: bytes) -> Sequence[bytes]:
    return [raw + b"\n" for raw in data.split(b"\n")[:-1]]


def _parse(path: Path, number: int, raw: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(raw)
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}, line {number}: expected a JSON object, found {raw[:40]!r}")
    return value


def _write_all(file: Any, data: bytes) -> None:
    # An unbuffered write may accept a part, for instance when the disk fills up in the middle of it.
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _sync_tree(root: Path) -> None:
    for path in sorted(root.rglob("*")):
        if path.is_dir():
            _sync_directory(path)
        elif path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    _sync_directory(root)


def _sync_directory(path: Path) -> None:
    # A rename is durable once the directory that holds the name is.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _naming(path: Path, error: OSError) -> OSError:
    # OSError chooses its subclass from errno, so PermissionError stays PermissionError.
    reason = error.strerror or str(error)
    return OSError(error.errno, f"could not write {path}: {reason}; what was there before is unchanged")
