"""The parts of the studies of rewards, against what their definitions say."""

from pathlib import Path
from statistics import fmean

import pytest
import torch
from rewards.building import group

from outscore.rewards import Rewards
from outscore.rewards.contract import TrainerState
from outscore.rewards.shaping import Shaping
from outscore.studies.registry import STUDIES, run_study
from outscore.studies.reward_quality import classroom, hacking, noise
from outscore.studies.reward_quality.classroom import NUM_SHOWN, Student, practise, student


@pytest.fixture(scope="module")
def pupil() -> Student:
    return student(7)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classroom, "SFT_STEPS", 3)
    monkeypatch.setattr(noise, "STEPS", 2)
    monkeypatch.setattr(hacking, "STEPS", 4)
    monkeypatch.setattr(hacking, "WINDOW", 2)
    monkeypatch.setattr(hacking, "RM_STEPS", 2)
    monkeypatch.setattr(hacking, "MEMBERS", 2)


def test_a_pupil_knows_what_it_was_shown_and_less_of_the_rest(pupil: Student) -> None:
    right = pupil.right()
    assert len({prompt.text for prompt in pupil.prompts}) == len(right) == 100
    assert all(eval(f"({p.text[:-1]}) % 10") == int(str(p.problem.answer)) for p in pupil.prompts)
    assert fmean(right[:NUM_SHOWN]) > 0.9 > 0.6 > fmean(right[NUM_SHOWN:])


def test_every_run_begins_with_the_same_weights_and_draws_the_same(pupil: Student) -> None:
    courses = []
    for _ in range(2):
        rewards: list[float] = []
        practise(
            pupil,
            Rewards(["answer_exact"]),
            steps=2,
            on_step=lambda step, collected, kept=rewards: kept.append(collected.metrics["reward"][0]),
        )
        courses.append(rewards)
        assert any(not torch.equal(pupil.taught[n], w) for n, w in pupil.masters.state_dict().items())
    assert courses[0] == courses[1]
    pupil.begin_again()
    assert all(torch.equal(pupil.taught[name], weight) for name, weight in pupil.masters.state_dict().items())


def test_verdicts_flip_at_the_rate_that_is_said() -> None:
    rewards, noisy = noise.verifiers(noise.Arm(label="x", cells={}, corrected=False), 0.2, seed=3)
    right, wrong = 0.0, 0.0
    for step in range(1, 101):
        sampled = group(*["1"] * 10, *["2"] * 10, answer="1", columns={"place": 0})
        scores = [score.reward for score in rewards.score([sampled], step=step).groups[0].scores]  # type: ignore[union-attr]
        right, wrong = right + sum(scores[:10]), wrong + sum(scores[10:])
    # 1,000 draws each: four standard deviations are 0.051.
    assert right / 1000 == pytest.approx(0.8, abs=0.051) and wrong / 1000 == pytest.approx(0.2, abs=0.051)
    assert (noisy.num_said, noisy.sum_true, noisy.sum_said) == (2000, 1000.0, right + wrong)


def test_flips_are_a_function_of_seed_and_step() -> None:
    def said(seed: int, step: int) -> list[float | None]:
        _, noisy = noise.verifiers(noise.Arm(label="x", cells={}, corrected=True), 0.4, seed=seed)
        return noisy(["1"] * 20, ["1"] * 20, [0] * 20, TrainerState(global_step=step, max_steps=9))

    assert said(0, 1) == said(0, 1) != said(0, 2) != said(1, 2)


def test_half_the_facts_have_a_verifier_that_never_errs() -> None:
    rewards, _ = noise.verifiers(noise.Arm(label="x", cells={}, corrected=True, half=True), 0.4, seed=0)
    sure = group(*["1"] * 50, answer="1", columns={"place": 3})
    noisy = group(*["1"] * 50, answer="1", columns={"place": 2}, id="p/2", slot=1)
    first, second = rewards.score([sure, noisy], step=1).groups
    assert {score.reward for score in first.scores} == {1.0}  # type: ignore[union-attr]
    corrected = Shaping(flip_rates=(0.4, 0.4))
    allowed = {corrected.one(1.0), corrected.one(0.0)}  # 3 and -2
    assert {score.reward for score in second.scores} == allowed  # type: ignore[union-attr]


def test_within_a_group_the_correction_is_undone_by_the_deviation() -> None:
    """(r - mean) / std is the same for r and for any a r + b with a > 0."""
    from outscore.objectives.advantages import group_advantages

    said = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    corrected = torch.tensor([Shaping(flip_rates=(0.3, 0.1)).one(float(value)) for value in said], dtype=torch.float64)
    plain, after = (
        group_advantages(each, baseline="group_mean", scale="population_std", eps=0.0) for each in (said, corrected)
    )
    assert torch.allclose(plain, after, atol=1e-12)


def test_a_ranking_has_the_right_answer_above_wrong_ones(pupil: Student) -> None:
    shown = hacking.rankings(pupil, 0)
    assert len(shown) == NUM_SHOWN
    for ranking in shown:
        texts = [completion.text for completion in ranking.completions]
        assert texts[0] == ranking.prompt.problem.answer and len(set(texts)) == 4 and ranking.ranks == (0, 1, 1, 1)
    other = [[c.text for c in ranking.completions] for ranking in hacking.rankings(pupil, 1)]
    assert other != [[c.text for c in ranking.completions] for ranking in shown]


def test_a_reward_model_learns_what_it_is_shown(pupil: Student, tmp_path: Path) -> None:
    hacking.train_member(pupil, 0, tmp_path / "0")
    rewards = Rewards([{"name": "reward_model", "path": str(tmp_path / "0")}])
    better = 0
    for ranking in hacking.rankings(pupil, 0)[:10]:
        texts = [completion.text for completion in ranking.completions]
        sampled = group(*texts, question=ranking.prompt.text)
        object.__setattr__(sampled.prompt, "text", ranking.prompt.text)
        values = [score.reward for score in rewards.score([sampled], step=1).groups[0].scores]  # type: ignore[union-attr]
        better += values[0] == max(values)
    assert better >= 8


@pytest.mark.usefixtures("short")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["reward-noise", "reward-hacking"])
def test_a_study_of_few_steps_gives_tables_figures_and_claims(name: str) -> None:
    told: list[tuple[int, int]] = []
    result = run_study(name, num_seeds=2, progress=lambda part, done, total: told.append((done, total)))
    assert result.settings["study"] == name and result.settings["seeds"] == 2 and STUDIES[name].num_seeds == 3
    assert result.claims and result.curves and result.notes and len({tuple(row) for row in result.summary}) == 1
    assert told[-1][0] == told[-1][1] and [done for done, _ in told] == sorted(done for done, _ in told)
    for figure in result.figures:
        for panel in figure.panels:
            assert all(len(series.x) == len(series.mean) == len(series.sem) for series in panel.series)
