"""Metrics by population, worked by hand, and how they are shown."""

import io
import math

import rich.console

from outscore.records import StepReport
from outscore.report import Evaluation, RunDirectory, show_run
from outscore.report.evaluation import is_by_population
from outscore.report.populations import (
    by_population,
    falls,
    last_weights,
    means_by_population,
    population_curves,
    population_table,
)
from outscore.report.views import evaluation_table


def test_the_worst_of_a_loss_is_the_largest_and_of_an_accuracy_the_smallest() -> None:
    assert by_population("preference_loss", {"b": 2.0, "a": 5.0}) == {
        "preference_loss/a": 5.0,
        "preference_loss/b": 2.0,
        "worst/preference_loss": 5.0,
        "spread/preference_loss": 3.0,
    }
    assert by_population("greedy", {"b": 0.25, "a": 0.75})["worst/greedy"] == 0.25
    assert by_population("greedy", {"a": 0.75}) == {}
    assert falls("calibration_error") and not falls("preference_accuracy")
    # Of one population, named however; of the worst-off one; and a spread is best small, whatever it is of.
    assert falls("preference_loss/Japan") and falls("worst/preference_loss") and falls("spread/greedy")
    assert not falls("greedy/error") and not falls("worst/greedy")


def test_means_are_weighted_and_leave_out_what_has_no_population() -> None:
    found = means_by_population("x", [1.0, 2.0, 4.0, 9.0], ["a", "b", "b", None], [1.0, 3.0, 1.0, 1.0])
    assert found == {"x/a": 1.0, "x/b": 2.5, "worst/x": 1.0, "spread/x": 1.5}


METRICS = {
    "greedy": 0.5,
    **by_population("greedy", {"Japan": 0.75, "Egypt": 0.25}),
    **by_population("preference_loss", {"Japan": 12.0, "Egypt": 21.5}),
}
FOUND = Evaluation(
    label="after ipo", stage="ipo", step=2, policy_version=2, num_problems=8, samples=1, metrics=METRICS, intervals={}
)


def printed(content: object, width: int = 80) -> str:
    out = rich.console.Console(file=io.StringIO(), width=width)
    out.print(content)
    return out.file.getvalue()  # type: ignore[attr-defined]


def test_the_table_has_a_row_for_each_population_the_worst_and_the_spread() -> None:
    table = population_table(FOUND, {"Japan": 0.4, "Egypt": 0.6})
    rows = {line.split()[0]: line.split()[1:] for line in printed(table).splitlines()[2:] if line.strip()}
    assert rows == {
        "Egypt": ["60.0", "25.0", "21.5"],
        "Japan": ["40.0", "75.0", "12.0"],
        "worst": ["–", "25.0", "21.5"],
        "spread": ["–", "50.0", "9.500"],
    }
    assert population_table(Evaluation(**{**vars_of(FOUND), "metrics": {"greedy": 0.5}})) is None


def test_on_a_narrow_screen_heads_are_broken_and_never_cut() -> None:
    several = {"likelihood_accuracy": 0.8, "preference_accuracy": 0.7, "preference_loss": 12.0}
    metrics: dict[str, float] = {}
    for metric, value in several.items():
        metrics |= by_population(metric, {"China": value, "Nigeria": value})
    found = Evaluation(**{**vars_of(FOUND), "metrics": metrics})
    lines = printed(population_table(found, {"China": 0.4, "Nigeria": 0.6}), 56).splitlines()
    head = " ".join(" ".join(lines[: next(i for i, line in enumerate(lines) if "─" in line)]).split())
    for word, times in (("likelihood", 1), ("preference", 2), ("accuracy", 2), ("loss", 1), ("weight", 1), ("%", 3)):
        assert head.split().count(word) == times, head
    assert all(len(line) <= 56 for line in lines)


def test_what_is_by_population_is_not_in_the_table_of_evaluations_and_rewards_are() -> None:
    found = Evaluation(**{**vars_of(FOUND), "metrics": {**METRICS, "part/worst": 0.5, "part/tidy": 2.0}})
    assert [name for name in found.metrics if is_by_population(name)] == [name for name in METRICS if "/" in name]
    shown = printed(evaluation_table([found]))
    assert "part/worst" in shown and "part/tidy" in shown
    assert not any(name in shown for name in ("Japan", "worst/greedy", "spread/greedy"))
    assert "part" not in printed(population_table(found))


def vars_of(found: Evaluation) -> dict[str, object]:
    return {name: getattr(found, name) for name in Evaluation.__dataclass_fields__}


HISTORY = [
    {f"population_weight/{name}": weight, f"population_loss/{name}": loss}
    for step in (0, 1)
    for name, weight, loss in (("Egypt", 0.5 + step / 10, 25.0),)
]


def test_curves_show_weight_and_loss_of_each_population() -> None:
    [line] = population_curves(HISTORY, 80)
    assert "Egypt" in line.plain and "weight   60.0 %" in line.plain and "loss" in line.plain
    assert population_curves([{"loss": 1.0}], 80) == []
    assert last_weights([*HISTORY, {"loss": 1.0}]) == {"Egypt": 0.6}


def test_show_tells_weights_over_time_and_the_last_evaluation_by_population(tmp_path) -> None:
    run = RunDirectory.create(tmp_path / "run", config={"stages": [{"algorithm": "ipo", "steps": 2}]})
    with run.lock():
        for step, egypt in ((1, 0.5), (2, 0.6)):
            weights = {"population_weight/Egypt": (egypt, 1.0), "population_weight/Japan": (1 - egypt, 1.0)}
            losses = {"population_loss/Egypt": (25.0, 1.0), "population_loss/Japan": (0.0, 0.0)}
            report = StepReport(
                step=step,
                policy_version=step,
                metrics={"loss": (25.0, 1.0), **weights, **losses},
                seconds={"update": 1.0},
                num_tokens=4,
            )
            run.append_step("ipo", report)
        run.append_evaluation(FOUND)
    out = rich.console.Console(file=io.StringIO(), width=80)
    data = show_run(run.path, console=out)
    courses = data["stages"][0]["populations"]
    assert courses["Egypt"]["weight"] == [0.5, 0.6] and math.isnan(courses["Japan"]["loss"][0])
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert "Egypt" in text and "60.0 %" in text and "spread" in text
    assert all(len(line) <= 80 for line in text.splitlines()[2:])
