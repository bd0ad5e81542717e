"""Plain text as documents."""

import pytest

from outscore.tasks import make_task


@pytest.mark.parametrize(
    ("split", "expected"),
    [("file", ["a b\nc\n\nd", "e"]), ("paragraph", ["a b\nc", "d", "e"]), ("line", ["a b", "c", "d", "e"])],
)
def test_documents_are_files_paragraphs_or_lines(tmp_path, split, expected):
    (tmp_path / "one.txt").write_text("a b\nc\n\nd\n")
    (tmp_path / "below").mkdir()
    (tmp_path / "two.txt").write_text("e\n\n\n")
    (tmp_path / "two.md").write_text("no text file")
    assert make_task("text", path=tmp_path, split=split, eval_fraction=0.0).train_texts() == expected


def test_every_so_many_th_document_is_held_out_and_its_copies_are_not_trained_on(tmp_path):
    (tmp_path / "t.txt").write_text("\n".join(f"line {n % 9}" for n in range(20)))
    task = make_task("text", path=tmp_path / "t.txt", split="line", eval_fraction=0.2)
    assert task.eval_texts() == ["line 4", "line 0", "line 5", "line 1"]
    assert set(task.train_texts()) == {"line 2", "line 3", "line 6", "line 7", "line 8"}
    assert not task.train_problems() and not task.eval_problems() and not task.demonstrations()


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "corpus.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        make_task("text", path=tmp_path / "corpus.txt")
    with pytest.raises(ValueError, match=r"corpus\.txt"):
        make_task("text", path=tmp_path / "corpse.txt")
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(ValueError, match="no text to train on"):
        make_task("text", path=tmp_path / "empty.txt")
    with pytest.raises(ValueError, match="eval_fraction"):
        make_task("text", path=tmp_path, eval_fraction=1.0)
