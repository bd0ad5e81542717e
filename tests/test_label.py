"""Asking a person: what is shown is blind and repeatable, and what is said is kept at once and can be trained on."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from outscore.cli import app
from outscore.label import LabelFile, Sheet, ask, in_editor, ranking_row, review_row, sheets
from outscore.records import Problem, SamplingParams
from outscore.tasks import make_task

RECIPE = """\
name: micro
model: {source: tiny, tiny: {hidden_size: 16, num_layers: 1, num_heads: 2}, precision: fp32}
task: {kind: arithmetic, num_train: 8, num_eval: 4, num_demonstrations: 4}
stages:
  - {algorithm: sft, steps: 1, batch_size: 2}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("label")
    (folder / "micro.yaml").write_text(RECIPE)
    result = CliRunner().invoke(app, ["train", str(folder / "micro.yaml"), "--run", str(folder / "run")])
    assert result.exit_code == 0, result.output
    return folder / "run"


def sheet_of(**completions: str) -> Sheet:
    problem = Problem(id="p/1", question="2+2=", answer="4", columns={})
    return Sheet(problem=problem, completions=completions, model="abc")


def answers(*lines: str) -> Console:
    """A console at which these lines are typed, and then Ctrl-D."""
    typed = iter(lines)
    console = Console(file=io.StringIO(), width=80)

    def read(*_: object, **__: object) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    console.input = read  # type: ignore[method-assign]
    return console


def asked(tmp_path: Path, sheet: Sheet, *lines: str, edit: object = None) -> list[dict]:
    file = LabelFile(tmp_path / "labels.jsonl")
    ask([sheet], file, answers(*lines), limit=9, edit=edit or (lambda text: None))  # type: ignore[arg-type]
    return [json.loads(line) for line in file.path.read_text().splitlines()] if file.path.exists() else []


def test_a_ranking_is_asked_for_until_it_can_be_read(tmp_path: Path) -> None:
    sheet = sheet_of(A="4", B="5", C="five")
    [row] = asked(tmp_path, sheet, "A > ", "A > B", "a > b = c")
    assert row["ranking"] == "A > B = C" and row["completions"] == {"A": "4", "B": "5", "C": "five"}
    assert row["id"] == "p/1" and row["prompt"] == "2+2=" and row["answer"] == "4"


@pytest.mark.parametrize(
    ("lines", "verdict", "response"),
    [(("a",), "accepted", "4"), (("x", "r"), "rejected", None), (("e",), "edited", "4 changed")],
)
def test_a_single_completion_is_accepted_edited_or_rejected(
    tmp_path: Path, lines: tuple[str, ...], verdict: str, response: str | None
) -> None:
    [row] = asked(tmp_path, sheet_of(A="4"), *lines, edit=lambda text: text + " changed\n")
    assert row["verdict"] == verdict and row.get("response") == response and row["sampled"] == "4"


@pytest.mark.parametrize("line", ["s", "q", ""])
def test_skipping_and_ending_keep_nothing(tmp_path: Path, line: str) -> None:
    assert asked(tmp_path, sheet_of(A="4", B="5"), line) == []


def test_an_edit_that_saves_nothing_asks_again(tmp_path: Path) -> None:
    [row] = asked(tmp_path, sheet_of(A="4"), "e", "a")
    assert row["verdict"] == "accepted"


def test_an_editor_gives_what_was_saved_and_nothing_where_nothing_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "editor"
    script.write_text("#!/bin/sh\nprintf 'better\\n' > \"$1\"\n")
    script.chmod(0o755)
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", str(script))
    assert in_editor("4") == "better"
    monkeypatch.setenv("EDITOR", "true")
    assert in_editor("4") is None
    monkeypatch.setenv("EDITOR", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="set EDITOR"):
        in_editor("4")


def test_a_line_that_a_crash_cut_off_is_removed_and_other_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text('{"id": "p/1"}\n{"id": "p/')
    file = LabelFile(path)
    assert file.done == {"p/1"} and path.read_text() == '{"id": "p/1"}\n'
    path.write_text('{"no": 1}\n{"id": "p/2"}\n')
    with pytest.raises(ValueError, match=r"labels.jsonl:1 is no label"):
        LabelFile(path)
    assert path.read_text() == '{"no": 1}\n{"id": "p/2"}\n'


def test_sheets_are_the_same_every_time_and_leave_out_what_is_done(trained: Path) -> None:
    def drawn(done: set[str], seed: int = 0) -> list[Sheet]:
        params = SamplingParams(max_new_tokens=5)
        return list(sheets(str(trained), num_samples=3, params=params, seed=seed, done=done))

    first = drawn(set())
    assert first == drawn(set()) and first != drawn(set(), seed=1)
    assert drawn({first[0].problem.id}) == first[1:]
    assert all(len(set(sheet.completions.values())) == len(sheet.completions) >= 2 for sheet in first)
    assert any(list(sheet.completions) == ["A", "B", "C"] for sheet in first)


def test_what_was_said_can_be_trained_on(tmp_path: Path) -> None:
    ranked, reviewed = tmp_path / "ranked.jsonl", tmp_path / "reviewed.jsonl"
    rejected = Sheet(
        problem=Problem(id="p/2", question="3+3=", answer="6", columns={}), completions={"A": "7"}, model="abc"
    )
    LabelFile(ranked).append(ranking_row(sheet_of(A="4", B="5", C="5!"), "A > C = B"))
    file = LabelFile(reviewed)
    file.append(review_row(sheet_of(A="4"), "accepted", "4"))
    file.append(review_row(rejected, "rejected", None))
    [ranking] = make_task("data", path=str(ranked), eval_fraction=0.0).train_rankings()
    assert ranking.responses == ("4", "5", "5!") and ranking.ranks == (0, 1, 1)
    demonstrations = make_task("data", path=str(reviewed), eval_fraction=0.0).demonstrations()
    assert [each.response for each in demonstrations] == ["4"]


def test_the_command_goes_on_where_it_stopped(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels.jsonl"
    command = ["label", str(trained), str(out), "--samples", "1", "--max-new-tokens", "4", "--limit", "2"]
    first = CliRunner().invoke(app, command, input="a\nr\n")
    assert first.exit_code == 0, first.output
    assert "2 answered" in first.output
    second = CliRunner().invoke(app, command, input="a\nq\n")
    assert "1 answered" in second.output
    assert len({json.loads(line)["id"] for line in out.read_text().splitlines()}) == 3
