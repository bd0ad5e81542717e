"""What a study leaves behind, for a made-up study and for the command."""

import csv
import io
import json
import sys
from pathlib import Path

import pytest
import rich.console
from typer.testing import CliRunner

from outscore.cli import app
from outscore.studies.output import view, write_result
from outscore.studies.plots import draw
from outscore.studies.records import Claim, Figure, Panel, Series, StudyResult

LINES = Panel(
    title="a curve",
    x_label="step",
    y_label="loss",
    series=[Series(label="one", x=[0, 1], mean=[1.0, 0.5], sem=[0.1, 0.1])],
)
BARS = Panel(
    title="bars",
    x_label="",
    y_label="error",
    kind="bars",
    series=[Series(label=name, x=[0], mean=[0.2], sem=[0.01]) for name in ("one", "two")],
)
RESULT = StudyResult(
    settings={"study": "made-up", "seeds": 2},
    summary=[{"method": "one", "loss": 0.123456, "steps": None}, {"method": "χ=1", "loss": 20.0, "steps": 5}],
    curves=[{"step": 0, "loss": 1.0}, {"step": 1, "loss": 0.5}],
    claims=[Claim(where="fig. 1", claim="one < two", measured="0.1, 0.2", holds=True)],
    figures=[Figure(name="figure-1", title="made up", panels=[LINES, BARS])],
    notes=["nothing of this is so"],
)


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_everything_is_written(tmp_path: Path) -> None:
    write_result(RESULT, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"result.json", "summary.csv", "claims.csv", "curves.csv", "figure-1.png", "figure-1.svg"}
    data = json.loads((tmp_path / "out" / "result.json").read_text())
    assert data["summary"][1] == {"method": "χ=1", "loss": 20.0, "steps": 5} and data["claims"][0]["holds"] is True
    rows = list(csv.reader(io.StringIO((tmp_path / "out" / "curves.csv").read_text())))
    assert rows == [["step", "loss"], ["0", "1.0"], ["1", "0.5"]]
    assert (tmp_path / "out" / "figure-1.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(FileExistsError, match="already exists"):
        write_result(RESULT, tmp_path / "out")


def test_the_same_numbers_are_the_same_picture_with_their_labels(tmp_path: Path) -> None:
    texts = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        png, svg = draw(RESULT.figures, tmp_path / name)
        assert (png.name, svg.name) == ("figure-1.png", "figure-1.svg")
        texts.append(svg.read_text())
    assert texts[0] == texts[1]
    assert all(word in texts[0] for word in ("made up", "a curve", "two"))


def test_the_tables_fit_eighty_columns() -> None:
    console = rich.console.Console(width=80, file=io.StringIO(), record=True)
    console.print(view(RESULT))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert "0.1235" in text and "–" in text and "yes" in text and "nothing of this is so" in text


def test_without_matplotlib_the_extra_is_named_before_any_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.chdir(tmp_path)
    result = run("reproduce", "group-robust-bandit")
    assert result.exit_code == 1 and "pip install 'outscore[plots]'" in result.output.replace("\n", " ")
    assert not list(tmp_path.iterdir())


def test_the_command_writes_and_prints(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    first = run("reproduce", "group-robust-bandit", "figures=[6]", "--seeds", "2")
    assert first.exit_code == 0, first.output
    assert "χ=0.4" in first.output and max(map(len, first.output.splitlines())) <= 80
    assert (tmp_path / "reproduced" / "group-robust-bandit" / "figure-6.svg").is_file()
    second = run("reproduce", "group-robust-bandit", "figures=[6]", "--seeds", "2", "--json")
    found = json.loads(second.stdout)
    assert found["settings"]["seeds"] == 2 and found["directory"].endswith("group-robust-bandit-2")


def test_errors_of_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, message in (
        (("group-robust-bandt",), "did you mean `group-robust-bandit`?"),
        (("group-robust-bandit", "figurs=[2]"), "did you mean `figures`?"),
        (("group-robust-bandit", "--seeds", "1"), "at least 2"),
    ):
        result = run("reproduce", *arguments)
        assert result.exit_code == 1 and "Traceback" not in result.output
        assert message in result.output.replace("\n", " ")
    assert not list(tmp_path.iterdir())


def test_help_lists_the_studies() -> None:
    shown = " ".join(run("reproduce", "--help").output.split())
    assert "group-robust-bandit" in shown and "2405.20304" in shown
