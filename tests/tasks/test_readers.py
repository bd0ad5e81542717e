"""Hugging Face data sets on disk, offline."""

import sys

import pytest

from outscore.tasks import DataTask
from outscore.tasks.readers import read_hub

ROWS = [{"question": f"{n}+1=", "answer": str(n + 1)} for n in range(20)]


@pytest.fixture(scope="module")
def datasets():
    return pytest.importorskip("datasets")


@pytest.fixture(scope="module")
def splits(datasets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "sums"
    parts = {"train": datasets.Dataset.from_list(ROWS[:15]), "test": datasets.Dataset.from_list(ROWS[15:])}
    datasets.DatasetDict(parts).save_to_disk(folder)
    return folder


def test_splits_of_a_saved_data_set(splits):
    task = DataTask(hub=str(splits), eval_split="test")
    assert [problem.question for problem in task.train_problems()] == [row["question"] for row in ROWS[:15]]
    assert [problem.answer for problem in task.eval_problems()] == [row["answer"] for row in ROWS[15:]]


def test_a_directory_may_stand_as_path(splits):
    assert len(DataTask(path=splits, eval_fraction=0).train_problems()) == 15


def test_a_single_saved_data_set(datasets, tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    assert [row.values for row in read_hub(str(tmp_path / "one"), subset=None, split="train")] == ROWS


def test_an_unknown_split_names_the_nearest(splits):
    with pytest.raises(ValueError, match=r"split 'tests': no split 'tests'; did you mean `test`\?"):
        DataTask(hub=str(splits), eval_split="tests")


def test_a_data_set_that_cannot_be_loaded_is_named(datasets):
    with pytest.raises(ValueError, match=r"data set 'outscore-tests/no-such-data', subset 'main', split 'train': "):
        DataTask(hub="outscore-tests/no-such-data", subset="main")


def test_an_empty_data_set_is_an_error(datasets, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_dict({"question": []}))
    with pytest.raises(ValueError, match=r"data set 'a/b', split 'train': the data set is empty"):
        read_hub("a/b", subset=None, split="train")


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"outscore\[data\]"):
        DataTask(hub="a/b")
