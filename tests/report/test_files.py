"""A file is complete or absent, whatever goes wrong while it is written."""

import errno
import os
import resource

import pytest

from outscore.report import files


class Broken(Exception):
    """A fault in the middle of a write."""


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_file_written_is_the_only_thing_there(tmp_path):
    files.write_text(tmp_path / "a.txt", "β\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xce\xb2\n"
    assert names(tmp_path) == ["a.txt"]


def test_a_fault_in_mid_write_leaves_the_old_file_and_no_trace(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(Broken), files.replacing(target) as file:
        file.write(b"half of the ne")
        raise Broken
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_rename_that_fails_leaves_the_old_file_and_no_trace(tmp_path, monkeypatch):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def refuse(source, destination):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError, match=r"a\.txt.*Permission denied.*unchanged"):
        files.write_text(target, "new")
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_full_disk_is_named_and_the_old_file_stays(tmp_path, monkeypatch):
    target = tmp_path / "a.txt"
    target.write_text("old")
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match=r"could not write .*a\.txt: No space left on device") as caught:
        files.write_text(target, "new")
    assert caught.value.errno == errno.ENOSPC
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def no_space(descriptor):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_the_kernel_refusing_a_line_in_its_middle_leaves_the_lines_before(tmp_path):
    target = tmp_path / "a.jsonl"
    files.append_line(target, '{"step": 1}')
    size = target.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The first write is accepted in part, the next one not at all: what a disk that fills up does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, before[1]))
    try:
        with pytest.raises(OSError, match=r"could not write .*a\.jsonl: File too large"):
            files.append_line(target, '{"step": 2}')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert target.read_text() == '{"step": 1}\n'


def test_an_appended_line_that_does_not_fit_is_taken_back(tmp_path, monkeypatch):
    target = tmp_path / "a.jsonl"
    files.append_line(target, '{"step": 1}')
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match=r"a\.jsonl"):
        files.append_line(target, '{"step": 2}')
    assert target.read_text() == '{"step": 1}\n'


def test_json_takes_no_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert names(tmp_path) == []


def test_a_directory_appears_whole(tmp_path):
    final = tmp_path / "checkpoints" / "step-1"
    with files.publishing_directory(final) as new:
        (new / "deep").mkdir()
        (new / "deep" / "weights").write_text("w")
        assert not final.exists()
    assert (final / "deep" / "weights").read_text() == "w"
    assert names(final.parent) == ["step-1"]


@pytest.mark.parametrize("fault", [Broken(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_directory_that_cannot_be_finished_never_appears(tmp_path, fault):
    with pytest.raises(type(fault)), files.publishing_directory(tmp_path / "step-1") as new:
        (new / "weights").write_text("w")
        raise fault
    assert names(tmp_path) == []


def test_a_directory_is_published_over_what_a_killed_process_left(tmp_path):
    left = tmp_path / ".tmp-step-1"
    left.mkdir()
    (left / "stale").write_text("x")
    with files.publishing_directory(tmp_path / "step-1") as new:
        (new / "weights").write_text("w")
    assert names(tmp_path / "step-1") == ["weights"]


def test_a_directory_with_something_in_it_is_not_overwritten(tmp_path):
    (tmp_path / "step-1").mkdir()
    (tmp_path / "step-1" / "weights").write_text("old")
    with pytest.raises(FileExistsError, match="not overwritten"), files.publishing_directory(tmp_path / "step-1"):
        pass
    assert (tmp_path / "step-1" / "weights").read_text() == "old"


def test_a_directory_half_removed_is_a_leftover_and_no_directory(tmp_path, monkeypatch):
    (tmp_path / "step-1").mkdir()
    (tmp_path / "step-1" / "weights").write_text("w")

    def killed(path):
        raise Broken

    with monkeypatch.context() as patch, pytest.raises(Broken):
        patch.setattr(files.shutil, "rmtree", killed)
        files.remove_directory(tmp_path / "step-1")
    assert names(tmp_path) == [".tmp-step-1"]
    assert files.remove_leftovers(tmp_path) == [tmp_path / ".tmp-step-1"]
    assert names(tmp_path) == []


def test_leftovers_are_found_at_any_depth_and_only_they_are_removed(tmp_path):
    (tmp_path / "a" / ".tmp-dir" / "deep").mkdir(parents=True)
    (tmp_path / "a" / ".tmp-dir" / ".tmp-inner").write_text("x")
    (tmp_path / "a" / ".tmp-file").write_text("x")
    (tmp_path / "a" / "kept.tmp").write_text("x")
    assert files.remove_leftovers(tmp_path) == [tmp_path / "a" / ".tmp-dir", tmp_path / "a" / ".tmp-file"]
    assert names(tmp_path / "a") == ["kept.tmp"]


def test_a_torn_last_line_is_not_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"step": 1}\n{"step": 2')
    assert files.read_lines(tmp_path / "a.jsonl") == [{"step": 1}]


def test_a_damaged_line_is_named_by_its_number(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: not JSON"):
        files.read_lines(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_bytes(b"3\n")
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1: expected a JSON object"):
        files.read_lines(tmp_path / "a.jsonl")


def test_kept_lines_keep_their_bytes(tmp_path):
    target = tmp_path / "a.jsonl"
    odd = b'{ "step":1,   "x": 1e-05}\n'
    target.write_bytes(odd + b'{"step": 2}\n{"step"')
    assert files.keep_lines(target, lambda line: line["step"] < 2) == 1
    assert target.read_bytes() == odd
    assert files.keep_lines(target, lambda line: False) == 1
    assert not target.exists()
