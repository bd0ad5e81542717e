"""Plain text to pre-train on: files, cut into documents."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from outscore.records import Demonstration, Problem
from outscore.tasks.readers import check_exists

Split = Literal["file", "paragraph", "line"]


class TextTask:
    """Documents from a UTF-8 text file, or from every `*.txt` below a directory. It has no problems.

    Args:
        path: the file or directory.
        split: what a document is: a whole `file`, a `paragraph` (between empty lines), or a `line`.
        eval_fraction: the share of documents held out: every so many-th, so that they are of all files.

    Raises:
        ValueError: if there is no such file, it is no text, or there is nothing in it to train on.

    >>> TextTask(path="corpus", split="paragraph")
    """

    name = "text"

    def __init__(self, *, path: str | Path, split: Split = "paragraph", eval_fraction: float = 0.05) -> None:
        if not 0.0 <= eval_fraction < 1.0:
            raise ValueError(f"task text: eval_fraction = {eval_fraction} must be at least 0 and below 1")
        place = Path(path).expanduser()
        check_exists(place)
        files = sorted(place.rglob("*.txt")) if place.is_dir() else [place]
        documents = [document for file in files for document in _documents(file, split)]
        every = round(1.0 / eval_fraction) if eval_fraction else 0
        self._eval = documents[every - 1 :: every] if every else []
        held_out = set(self._eval)
        self._train = [document for document in documents if document not in held_out]
        if not self._train:
            raise ValueError(f"task text: {place} holds no text to train on ({len(files)} files, split: {split})")

    def train_texts(self) -> Sequence[str]:
        """Documents to train on; none of them is held out, too."""
        return self._train

    def eval_texts(self) -> Sequence[str]:
        """Held-out documents."""
        return self._eval

    def train_problems(self) -> Sequence[Problem]:
        """None."""
        return []

    def eval_problems(self) -> Sequence[Problem]:
        """None."""
        return []

    def demonstrations(self) -> Sequence[Demonstration]:
        """None."""
        return []


def _documents(file: Path, split: Split) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text: {error}") from error
    parts = [text] if split == "file" else text.split("\n\n" if split == "paragraph" else "\n")
    return [part.strip("\n") for part in parts if part.strip()]
