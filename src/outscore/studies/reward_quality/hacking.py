"""The study `reward-hacking`: a policy trained against a learned reward, against its lower confidence bound over an
ensemble, and against a rule.

A reward model learns from preferences about the demonstrated facts which answer is right. What it says of anything else
nobody has taught it; the policy, which is paid by it, finds out.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from outscore.algorithms.rows import algorithm
from outscore.model.load import quiet_transformers
from outscore.records import RankedGroup
from outscore.rewards import Rewards
from outscore.stage_parts import OptimizerSettings
from outscore.stages import RewardModelSettings
from outscore.studies.over_seeds import sem
from outscore.studies.records import Claim, Figure, Panel, Progress, Row, Series, StudyResult
from outscore.studies.reward_quality.classroom import GROUP_SIZE, NUM_SHOWN, PROMPTS, Student, practise, student
from outscore.train.preferences import PreferenceSource, ranked_batch
from outscore.train.reward_models import batch_scores, normalise, reward_learner, update_reward_model
from outscore.train.sources import Collected
from outscore.train.step import UpdatePlan

STEPS = 60
MEMBERS = 4
"""Reward models in the ensemble; the first of them is the learned reward."""
KAPPA = 1.0
"""Standard deviations that the bound takes off."""
RM_STEPS, RM_BATCH, RM_LR = 40, 10, 2e-3
NUM_WRONG = 3
"""Wrong answers below the right one in a ranking."""
WINDOW = 10
"""Steps that a point of the curves is the mean of."""

LEARNED, BOUND, RULE = "reward model", "ensemble, lower bound", "rule"
ARMS: Mapping[str, str] = {LEARNED: "learned", BOUND: "ensemble", RULE: "truth"}
"""What a run is paid by -> the reward of weight 1; the others are measured."""


@dataclass(kw_only=True)
class Course:
    """What was sampled in a run, step by step."""

    learned: list[float] = field(default_factory=list)
    """Mean score by the reward model."""
    truth: list[float] = field(default_factory=list)
    """Share of right samples."""
    spread: list[float] = field(default_factory=list)
    """Mean standard deviation of the ensemble."""
    accuracy: float = 0.0
    """Share of facts whose greedy answer is right at the end."""

    def add(self, step: int, collected: Collected) -> None:
        """Take a step's means."""
        for name, kept in (
            ("reward/learned", self.learned),
            ("reward/truth", self.truth),
            ("uncertainty/ensemble", self.spread),
        ):
            total, count = collected.metrics[name]
            kept.append(total / count)


def rankings(pupil: Student, member: int) -> list[RankedGroup]:
    """The right answer above wrong ones, for every demonstrated fact. Members see other wrong answers."""
    made = []
    for prompt in pupil.prompts[:NUM_SHOWN]:
        gold = str(prompt.problem.answer)
        draws = random.Random(f"outscore wrong {pupil.seed} {member} {prompt.text}")
        wrong = draws.sample([digit for digit in "0123456789" if digit != gold], NUM_WRONG)
        completions = tuple(pupil.completion(text) for text in (gold, *wrong))
        made.append(RankedGroup(prompt=prompt, completions=completions, ranks=(0, *(1 for _ in wrong))))
    return made


def train_member(pupil: Student, member: int, directory: Path) -> float:
    """Train one reward model from the taught policy and save it; returns how often it ranks the right answer of a fact
    that it was not shown above each wrong one."""
    pupil.begin_again()
    settings = RewardModelSettings(
        steps=RM_STEPS, batch_size=RM_BATCH, optimizer=OptimizerSettings(lr=RM_LR, warmup_steps=5)
    )
    learner = reward_learner(pupil.policy, settings, 100 * pupil.seed + member, pupil.end_token_id, None)
    shown = rankings(pupil, member)
    plan = UpdatePlan(
        algorithm=algorithm("reward-model"),
        optimizer=settings.optimizer,
        total_updates=RM_STEPS,
        token_budget=settings.token_budget,
    )
    source = PreferenceSource(rankings=shown, batch_size=RM_BATCH, ties="drop", seed=pupil.seed, stage=10 + member)
    for step in range(1, RM_STEPS + 1):
        update_reward_model(learner, source.collect(step).batch, plan)
    normalise(learner, shown, settings.token_budget)
    with quiet_transformers():
        learner.policy.base.save_pretrained(directory)
        learner.policy.tokenizer.save_pretrained(directory)
    return _held_out_accuracy(pupil, learner.policy)


def _held_out_accuracy(pupil: Student, model: Any) -> float:
    """Over the facts that were not shown: the share of wrong digits that score below the right one."""
    groups = [
        RankedGroup(
            prompt=prompt,
            completions=tuple(map(pupil.completion, _gold_first(str(prompt.problem.answer)))),
            ranks=(0, *(1,) * 9),
        )
        for prompt in pupil.prompts[NUM_SHOWN:]
    ]
    scores = batch_scores(model, ranked_batch(groups, ties="drop"), 16384).view(-1, 10)
    return float((scores[:, :1] > scores[:, 1:]).double().mean())


def _gold_first(gold: str) -> list[str]:
    return [gold, *(digit for digit in "0123456789" if digit != gold)]


def rewards_of(paid_by: str, directories: Sequence[Path]) -> Rewards:
    """The three rewards of every run; one of them counts."""
    paths = [str(each) for each in directories]
    entries: dict[str, dict[str, Any]] = {
        "learned": {"name": "reward_model", "path": paths[0]},
        "ensemble": {"name": "reward_model", "path": paths, "uncertainty": KAPPA},
        "truth": {"name": "answer_exact", "form": "text"},
    }
    return Rewards([{**entry, "label": label, "weight": float(label == paid_by)} for label, entry in entries.items()])


def run(*, num_seeds: int, progress: Progress) -> StudyResult:
    """Three runs for each seed, from one SFT checkpoint and with the same reward models."""
    total, done = num_seeds * (1 + len(ARMS)), 0
    courses: dict[str, list[Course]] = {arm: [] for arm in ARMS}
    before: list[float] = []
    ranked: list[float] = []
    for seed in range(num_seeds):
        progress(f"seed {seed}, reward models", done, total)
        pupil = student(seed)
        before.append(fmean(pupil.right()))
        with TemporaryDirectory() as folder:
            directories = [Path(folder) / str(member) for member in range(MEMBERS)]
            own = [train_member(pupil, member, directory) for member, directory in enumerate(directories)]
            ranked.append(own[0])
            done += 1
            for arm, paid_by in ARMS.items():
                progress(f"seed {seed}, {arm}", done, total)
                course = Course()
                practise(pupil, rewards_of(paid_by, directories), steps=STEPS, on_step=course.add)
                course.accuracy = fmean(pupil.right())
                courses[arm].append(course)
                done += 1
    progress("done", total, total)
    return StudyResult(
        settings={"study": "reward-hacking", "steps": STEPS, "members": MEMBERS, "kappa": KAPPA, "seeds": num_seeds},
        summary=[_summary(arm, courses[arm], before) for arm in ARMS],
        curves=[
            {"paid by": arm, "seed": seed, "step": step, "learned": learned, "truth": truth, "spread": spread}
            for arm, own in courses.items()
            for seed, course in enumerate(own)
            for step, learned, truth, spread in _points(course)
        ],
        claims=_claims(courses, before),
        figures=[_figure(courses)],
        notes=(
            f"first, last: means over the first and the last {WINDOW} steps, of what was sampled ({PROMPTS} facts x "
            f"{GROUP_SIZE}); learned: by the same reward model in every run, whoever pays. accuracy: greedy, on all "
            "facts. ±: standard error over seeds.",
            f"Of facts it was not shown the reward model puts {fmean(ranked):.1%} of wrong digits below the right one.",
        ),
    )


def _points(course: Course) -> list[tuple[int, float, float, float]]:
    """(last step, means) of each window."""
    edges = [(first, first + WINDOW) for first in range(0, STEPS, WINDOW)]
    return [
        (last, fmean(course.learned[first:last]), fmean(course.truth[first:last]), fmean(course.spread[first:last]))
        for first, last in edges
    ]


def _summary(arm: str, courses: Sequence[Course], before: Sequence[float]) -> Row:
    accuracies = [course.accuracy for course in courses]
    return {
        "paid by": arm,
        "learned first": fmean(_points(course)[0][1] for course in courses),
        "learned last": fmean(_points(course)[-1][1] for course in courses),
        "spread last": fmean(_points(course)[-1][3] for course in courses),
        "accuracy after SFT": fmean(before),
        "accuracy": fmean(accuracies),
        "sem": sem(accuracies),
    }


def _claims(courses: Mapping[str, Sequence[Course]], before: Sequence[float]) -> list[Claim]:
    def accuracy(arm: str) -> float:
        return fmean(course.accuracy for course in courses[arm])

    def learned(arm: str, place: int) -> list[float]:
        return [_points(course)[place][1] for course in courses[arm]]

    start, seeds = fmean(before), range(len(before))
    rises = [learned(LEARNED, -1)[seed] > learned(LEARNED, 0)[seed] for seed in seeds]
    falls = [courses[LEARNED][seed].accuracy < before[seed] for seed in seeds]
    gains = [courses[RULE][seed].accuracy > before[seed] for seed in seeds]
    bounded = [courses[BOUND][seed].accuracy > courses[LEARNED][seed].accuracy for seed in seeds]
    return [
        Claim(
            where="DeepSeek-R1, rewards",
            claim="paid by a reward model, the learned reward rises",
            measured=f"{fmean(learned(LEARNED, 0)):.2f} to {fmean(learned(LEARNED, -1)):.2f}, {_count(rises)}",
            holds=all(rises),
        ),
        Claim(
            where="DeepSeek-R1, rewards",
            claim="and true accuracy falls",
            measured=f"{start:.1%} to {accuracy(LEARNED):.1%}, {_count(falls)}",
            holds=all(falls),
        ),
        Claim(
            where="DeepSeek-R1, rewards",
            claim="paid by a rule, it does not",
            measured=f"{start:.1%} to {accuracy(RULE):.1%}, rises {_count(gains)}",
            holds=all(gains),
        ),
        Claim(
            where="arXiv 2310.02743",
            claim="the lower confidence bound of an ensemble is exploited less than one model",
            measured=f"{accuracy(BOUND):.1%} against {accuracy(LEARNED):.1%}, {_count(bounded)}",
            holds=all(bounded),
        ),
    ]


def _count(held: Sequence[bool]) -> str:
    return f"in {sum(held)} of {len(held)} seeds"


def _figure(courses: Mapping[str, Sequence[Course]]) -> Figure:
    def panel(title: str, y_label: str, column: int) -> Panel:
        series = []
        for arm, own in courses.items():
            by_window = list(zip(*(_points(course) for course in own), strict=True))
            values = [[point[column] for point in window] for window in by_window]
            series.append(
                Series(
                    label=arm,
                    x=[window[0][0] for window in by_window],
                    mean=list(map(fmean, values)),
                    sem=list(map(sem, values)),
                )
            )
        return Panel(title=title, x_label="step", y_label=y_label, series=series)

    panels = [
        panel("what the reward model says", "mean score of samples", 1),
        panel("what is true", "share of right samples", 2),
        panel("how far the ensemble disagrees", "standard deviation of four scores", 3),
    ]
    return Figure(name="reward-hacking", title="a run paid by a reward model, by its bound, by a rule", panels=panels)
