"""Rejection sampling: what is kept of the samples, that all are on record, and that a resume finds them again."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from train.stopping import Stops, contents

from outscore.config import parse_recipe
from outscore.model.policy import Policy
from outscore.records import (
    Completion,
    Problem,
    Prompt,
    SampledCompletion,
    SampledGroup,
    Score,
    ScoredGroup,
    ScoringFailure,
)
from outscore.report import RunDirectory, completion_rows
from outscore.report.rows import read_parquet
from outscore.rewards.endpoint import Endpoint
from outscore.stages import RejectionSettings
from outscore.train import rejection
from outscore.train.build import build_stage
from outscore.train.check import check_recipe
from outscore.train.checkpoint import trained_weights
from outscore.train.rejection import kept, stopped_by
from outscore.train.run import resume, run_recipe
from outscore.train.setup import prepare

RECIPE: dict[str, Any] = {
    "seed": 3,
    "model": {"source": "tiny", "tiny": {"hidden_size": 16, "num_layers": 1, "num_heads": 2}, "precision": "fp32"},
    "task": {"kind": "arithmetic", "num_train": 12, "num_eval": 4, "num_demonstrations": 8},
    "stages": [
        {"algorithm": "sft", "steps": 2, "batch_size": 4, "optimizer": {"lr": 5e-3}},
        {
            **{"algorithm": "rft", "steps": 4, "batch_size": 3, "num_prompts": 6, "group_size": 4, "min_reward": 0.4},
            **{"sampling": {"max_new_tokens": 30}, "optimizer": {"lr": 5e-3}, "keep": 2},
        },
    ],
    "evaluation": {"problems": 2, "samples": 1},
    "checkpoints": {"every": 2},
    "scoring": {"isolate": False},
}


def digits(completions: list[str], **columns: Any) -> list[float]:
    """Many completions of an untaught model have digits; the share of them differs."""
    return [sum(c.isdigit() for c in text) / max(len(text), 1) for text in completions]


def short(completions: list[str], **columns: Any) -> list[float]:
    return [1.0 - len(text) / 60 for text in completions]


def group_of(*samples: tuple[str, float | None, str]) -> ScoredGroup:
    """Samples as (text, reward or None for a failure, finish)."""
    drawn = tuple(
        SampledCompletion(
            completion=Completion(token_ids=tuple(map(ord, text)), text=text, counts=(True,) * len(text)),
            sampler_logprobs=(-1.0,) * len(text),
            finish="length" if finish == "length" else "stop",
            policy_version=0,
        )
        for text, _, finish in samples
    )
    problem = Problem(id="p", question="?", answer="1", columns={})
    prompt = Prompt(problem=problem, text="?", token_ids=(1,))
    scores = [
        ScoringFailure(reward_name="r", reason="broke") if reward is None else Score(reward=reward, parts={})
        for _, reward, _ in samples
    ]
    return ScoredGroup(sampled=SampledGroup(prompt=prompt, completions=drawn, slot=0, attempt=0), scores=tuple(scores))


SAMPLES = [
    ("right", 1.0, "stop"),
    ("wrong", 0.0, "stop"),
    ("right", 1.0, "stop"),  # a repeat
    ("right!", 1.5, "stop"),  # better
    ("right?", 2.0, "length"),  # cut off
    ("right~", None, "stop"),  # not scored
    ("right.", 1.0, "stop"),
]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"keep": 1}, [3]),
        ({"keep": 2}, [0, 3]),  # of equals the earlier one
        ({"keep": 0}, [0, 3, 6]),
        ({"keep": 0, "min_reward": 1.2}, [3]),
        ({"keep": 0, "min_reward": 0.0}, [0, 1, 3, 6]),
    ],
)
def test_what_passes_is_kept_once_and_the_best_first(settings: dict[str, Any], expected: list[int]) -> None:
    verdicts = [reward is not None and reward >= 1.0 for _, reward, _ in SAMPLES]
    none = [None] * len(SAMPLES)
    rows = completion_rows(
        stage="rft", step=0, groups=[group_of(*SAMPLES)], advantages=[none], extracted=none, correct=verdicts
    )
    coefficients = [row.advantage for row in kept(rows, RejectionSettings(steps=1, **settings))]
    assert [i for i, value in enumerate(coefficients) if value == 1.0] == expected
    assert {value for i, value in enumerate(coefficients) if i not in expected} == {None}


def test_where_too_few_pass_the_run_stops_and_a_resume_judges_its_samples_again(tmp_path: Path) -> None:
    sft, rft = RECIPE["stages"]
    strict = {**RECIPE, "stages": [sft, {**rft, "filters": {"short": 0.96}, "min_kept": 13}]}
    with pytest.raises(ValueError, match=r"24 samples of 6 prompts: .*short below 0.96.*a resume judges them again"):
        run_recipe(strict, tmp_path / "run", rewards=[digits, short])
    run = RunDirectory.open(tmp_path / "run")
    before = read_parquet(run.groups_path("rft", 0))
    config = (run.path / "config.yaml").read_text()
    (run.path / "config.yaml").write_text(config.replace("short: 0.96", "short: 0.1").replace("kept: 13", "kept: 1"))
    assert resume(run.path, rewards=[digits, short]).finished
    after = read_parquet(run.groups_path("rft", 0))
    assert [row.token_ids for row in after] == [row.token_ids for row in before]
    assert sum(bool(row.advantage) for row in before) < sum(bool(row.advantage) for row in after)


def test_filters_are_by_single_rewards_and_one_that_does_not_apply_stops_nothing() -> None:
    filters = {"language": 0.9, "repetition": 0.5}
    assert stopped_by({"language": 1.0, "repetition": 0.5}, filters) is None
    assert stopped_by({"language": 0.8, "repetition": 0.1}, filters) == "language below 0.9"
    assert stopped_by({"language": None, "repetition": 0.1}, filters) == "repetition below 0.5"


def test_the_event_log_counts_what_each_filter_took_and_demonstrations_come_on_top(tmp_path: Path) -> None:
    rft = {**RECIPE["stages"][1], "filters": {"short": 0.5}, "demonstrations": True, "batch_size": 40, "steps": 1}
    run_recipe({**RECIPE, "stages": [RECIPE["stages"][0], rft]}, tmp_path / "run", rewards=[digits, short])
    run = RunDirectory.open(tmp_path / "run")
    rows = read_parquet(run.groups_path("rft", 0))
    [told] = re.findall(r"rft: 24 samples of 6 prompts: .*", (run.path / "events.log").read_text())
    stopped = [row for row in rows if row.finish == "stop" and row.reward >= 0.4 and row.parts["short"] < 0.5]
    assert f"{len(stopped)} short below 0.5" in told and not any(row.advantage for row in stopped)
    kept_rows = [row for row in rows if row.advantage]
    lengths = [len(row.token_ids) for row in kept_rows]
    task = prepare(parse_recipe({**RECIPE, "rewards": ["tag_answer"], "stages": RECIPE["stages"][:1]}))
    given = [len(each.completion.token_ids) for each in task.materials[0].demonstrations]
    # A batch of 40 from so few takes each at least once: its mean length is that of the union, taken round and round.
    [line] = run.metrics("rft")
    taken = [*lengths, *given]
    rounds, rest = divmod(40, len(taken))
    least, most = (rounds * sum(taken) + sum(sorted(taken, reverse=way)[:rest]) for way in (False, True))
    assert least <= round(line["completion_length"] * 40) <= most


def test_other_weights_may_sample_than_the_stage_begins_with(tmp_path: Path) -> None:
    sft, rft = RECIPE["stages"]
    alone = {**RECIPE, "stages": [sft, {**rft, "optimizer": {"lr": 1e-30}}]}
    lent = {**RECIPE, "stages": [sft, {**rft, "optimizer": {"lr": 1e-30}, "start": "base", "samples_from": "sft"}]}
    for name, recipe in (("alone", alone), ("lent", lent)):
        run_recipe(recipe, tmp_path / name, rewards=[digits])
    one, other = (RunDirectory.open(tmp_path / name) for name in ("alone", "lent"))
    texts = [[row.response for row in read_parquet(run.groups_path("rft", 0))] for run in (one, other)]
    assert texts[0] == texts[1]  # sampled by the same weights
    base = dict(prepare(parse_recipe({**RECIPE, "rewards": ["tag_answer"]})).base())
    after = trained_weights(other.checkpoints()[-1].path)
    assert all(torch.allclose(after[name], base[name], atol=1e-9) for name in base)  # and the policy began again
    with pytest.raises(KeyboardInterrupt):
        run_recipe(lent, tmp_path / "stopped", rewards=[digits], console=Stops("rft", 3))
    assert resume(tmp_path / "stopped", rewards=[digits]).finished
    assert contents(tmp_path / "stopped") == contents(tmp_path / "lent")


def test_samples_may_come_from_a_directory_by_its_name_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sft, rft = RECIPE["stages"]

    def lent(place: str) -> Any:
        stages = [sft, {**rft, "samples_from": place}]
        return parse_recipe({**RECIPE, "rewards": ["tag_answer"], "stages": stages})

    with pytest.raises(
        ValueError, match=r"samples_from = 'sfft' is neither an earlier stage nor a model; did you mean `sft`"
    ):
        lent("sfft")
    prepare(lent("sft")).policy.save(tmp_path / "larger")
    (tmp_path / "sft").mkdir()  # a stage of this name comes first
    for place, is_other in (("larger", True), ("sft", False), ("base", False)):
        recipe = lent(place)
        workshop = prepare(recipe)
        source = build_stage(recipe, 1, workshop).source
        assert isinstance(source, rejection.RejectionSource)
        assert (source.sampler.policy is not workshop.policy) == is_other  # type: ignore[attr-defined]


def test_the_samples_are_those_of_the_model_the_stage_begins_with(tmp_path: Path) -> None:
    run_recipe(RECIPE, tmp_path / "run", rewards=[digits])
    run = RunDirectory.open(tmp_path / "run")
    rows = read_parquet(run.groups_path("rft", 0))
    assert len(rows) == 6 * 4 and {row.policy_version for row in rows} == {2}
    kept_rows = [row for row in rows if row.advantage == 1.0]
    assert kept_rows and all(row.reward >= 0.4 and row.finish == "stop" for row in kept_rows)
    per_prompt = [sum(row.slot == slot for row in kept_rows) for slot in range(6)]
    assert max(per_prompt) <= 2
    steps = run.metrics("rft")
    assert [line["kept_samples"] for line in steps] == [len(kept_rows) / 24] * 4
    [told] = re.findall(r"rft: 24 samples of 6 prompts: .*", (run.path / "events.log").read_text())
    assert sum(map(int, re.findall(r"(\d+) (?:kept|cut|below|repeats|right)", told))) == 24


def test_training_on_what_is_kept_is_supervised_fine_tuning_on_it() -> None:
    """The same batch as a stage of demonstrations has, and the same row of choices but for the source."""
    workshop = prepare(parse_recipe({**RECIPE, "rewards": ["tag_answer"]}))
    stage = build_stage(parse_recipe({**RECIPE, "rewards": ["tag_answer"]}), 1, workshop)
    stage.source.settings = stage.settings.model_copy(update={"min_reward": -1.0})  # type: ignore[attr-defined]
    batch = stage.source.collect(1).batch
    assert batch.advantages is None and batch.sampler_logprobs is None and len(batch.groups) == 3
    assert all(len(group.completions) == 1 for group in batch.groups)
    row = stage.plan.algorithm
    assert (row.source, row.surrogate, row.baseline) == ("samples", "log_likelihood", "none")


@pytest.mark.parametrize(("stopped_at", "from_step"), [(0, ("sft", 2)), (1, ("sft", 2)), (3, ("rft", 2))])
def test_a_resume_goes_on_with_the_same_samples(tmp_path: Path, stopped_at: int, from_step: tuple[str, int]) -> None:
    run_recipe(RECIPE, tmp_path / "whole", rewards=[digits])
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run_recipe(RECIPE, run, rewards=[digits], console=Stops("rft", stopped_at))
    newest = RunDirectory.open(run).checkpoints()[-1]
    assert (newest.stage, newest.step) == from_step
    assert resume(run, rewards=[digits]).finished
    assert contents(run) == contents(tmp_path / "whole")


def test_when_nothing_passes_the_filters_say_why(tmp_path: Path) -> None:
    stages = [RECIPE["stages"][0], {**RECIPE["stages"][1], "min_reward": 2.0}]
    with pytest.raises(ValueError, match=r"stage rft: no sample passed.*24 samples of 6 prompts: .*below 2.*raise"):
        run_recipe({**RECIPE, "stages": stages}, tmp_path / "run", rewards=[digits])
    assert (tmp_path / "run" / "groups" / "rft" / "step-000000.parquet").is_file()  # to look at


def test_check_tells_the_share_that_passes() -> None:
    findings = {finding.what: finding for finding in check_recipe(parse_recipe({**RECIPE, "rewards": ["tag_answer"]}))}
    assert findings["samples"].detail.startswith("probed 16 samples of 4 prompts: ")


def test_keys_of_other_kinds_of_stage_are_refused() -> None:
    with pytest.raises(ValueError, match="has no effect on rejection sampling"):
        parse_recipe({**RECIPE, "stages": [{"algorithm": "rft", "steps": 1, "minibatches": 2}]})
    with pytest.raises(ValueError, match="rewards: at least one is needed"):
        parse_recipe({**RECIPE, "rewards": [], "stages": [{"algorithm": "rft", "steps": 1}]})


def test_the_policy_is_not_asked_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = parse_recipe({**RECIPE, "rewards": ["tag_answer"]})
    workshop = prepare(recipe)
    assert isinstance(workshop.policy, Policy)
    stage = build_stage(recipe, 1, workshop)
    source = stage.source
    source.settings = source.settings.model_copy(update={"min_reward": -1.0})  # type: ignore[attr-defined]
    first = source.collect(1)
    monkeypatch.setattr(type(source), "_sample", None)
    again = source.collect(1)
    assert again.batch.completions == first.batch.completions and again.metrics == first.metrics


def test_what_was_sampled_before_a_judge_failed_is_not_sampled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejection, "BLOCK", 2)
    asked: list[int] = []

    def reachable(completions: list[str], **columns: Any) -> list[float]:
        return digits(completions)

    def unreachable(completions: list[str], **columns: Any) -> list[float]:
        asked.append(len(completions))
        if len(asked) > 2:
            raise ConnectionError("the judge cannot be reached")
        return digits(completions)

    for name, judge in (("whole", reachable), ("run", unreachable)):
        judge.__name__ = "judge"
        recipe = {**RECIPE, "evaluation": {"problems": 0}}
        if name == "run":
            with pytest.raises(ValueError, match="the judge cannot be reached"):
                run_recipe(recipe, tmp_path / name, rewards=[judge])
            run = RunDirectory.open(tmp_path / name)
            assert [row.slot for row in read_parquet(run.groups_path("rft", 0))] == [0] * 4 + [1] * 4 + [2] * 4 + [
                3
            ] * 4
        else:
            run_recipe(recipe, tmp_path / name, rewards=[judge])
    asked.clear()

    def back(completions: list[str], **columns: Any) -> list[float]:
        asked.append(len(completions))
        return digits(completions)

    back.__name__ = "judge"
    assert resume(tmp_path / "run", rewards=[back]).finished
    assert asked == [8]  # the last block alone
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_check_leaves_alone_what_a_reward_model_is_to_judge_that_is_not_there_yet() -> None:
    scorer = {"name": "scorer", "algorithm": "reward-model", "steps": 1, "batch_size": 2}
    judged = {**RECIPE["stages"][1], "rewards": [{"name": "reward_model", "stage": "scorer"}]}
    task = {"kind": "arithmetic", "num_train": 8, "num_eval": 3, "num_preferences": 4}
    found = check_recipe(
        parse_recipe({**RECIPE, "rewards": ["tag_answer"], "task": task, "stages": [scorer, judged], "evaluation": {}})
    )
    assert {"memory", "preferences"} <= {each.what for each in found} and "samples" not in {each.what for each in found}


def test_a_judge_at_an_address_decides_with_r1_s_verdict_what_is_imitated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge is scripted behind the endpoint's own reading of replies: it finds answers of even length correct."""

    def judged(self: Endpoint, asked: dict[str, Any], patience: Any) -> dict[str, Any]:
        response = asked["messages"][-1]["content"].partition("<response>\n")[2].partition("\n</response>")[0]
        word = "incorrect" if len(response) % 2 else "correct"
        return {"choices": [{"message": {"content": json.dumps({"analysis": "its length", "correctness": word})}}]}

    monkeypatch.setattr(Endpoint, "_call", judged)
    sft, rft = RECIPE["stages"]
    judge = {"name": "llm_judge", "url": "http://localhost/v1", "model": "scripted"}
    passes = {"rewards": ["tag_answer", judge], "filters": {"llm_judge": 1}, "min_reward": -100, "keep": 0}
    done = run_recipe({**RECIPE, "rewards": ["tag_answer"], "stages": [sft, {**rft, **passes}]}, tmp_path / "run")
    rows = read_parquet(RunDirectory.open(done.path).groups_path("rft", 0))
    whole = {row.response for row in rows if row.finish == "stop"}  # what was cut off is not imitated
    assert {row.response for row in rows if row.advantage} == {text for text in whole if len(text) % 2 == 0}
    assert {len(text) % 2 for text in whole} == {0, 1}
