"""The study `reward-noise`: how right a model becomes when its reward is wrong at a known rate, with the backward
correction and without (arXiv 2510.00915; DeepSeekMath, arXiv 2402.03300, 5.2.3)."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from outscore.rewards import Reward, Rewards
from outscore.rewards.contract import TrainerState
from outscore.rewards.shaping import Shaping
from outscore.studies.over_seeds import sem
from outscore.studies.records import Claim, Figure, Panel, Progress, Row, Series, StudyResult
from outscore.studies.reward_quality.classroom import NUM_SHOWN, Student, practise, student

RATES = (0.0, 0.2, 0.4)
"""P(1 | truly 0) = P(0 | truly 1) of each single verdict, independently of all others."""
STEPS = 60
MEAN_ONLY = {"scale": "none"}
"""The baseline is the group's mean, and nothing is divided by a deviation (Dr. GRPO's advantage)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """A way to train."""

    label: str
    """As figures and tables name it."""
    cells: dict[str, Any]
    """Choices in GRPO's row."""
    corrected: bool
    """Whether rewards are corrected by their known flip rates."""
    half: bool = False
    """Whether only the verdicts on every second fact flip, by a verifier of its own. Advantages are then not divided by
    the group's deviation: that would undo, within every group, what the correction does."""


ARMS = (
    Arm(label="GRPO", cells={}, corrected=False),
    Arm(label="GRPO, corrected", cells={}, corrected=True),
    Arm(label="half noisy", cells=MEAN_ONLY, corrected=False, half=True),
    Arm(label="half noisy, corrected", cells=MEAN_ONLY, corrected=True, half=True),
)


@dataclass(kw_only=True)
class Verdicts:
    """A verifier that flips its verdict at a rate. The flip is a function of seed, step and the place in the batch.

    It counts what it said, and what was true.
    """

    seed: int
    """What flips are drawn from."""
    rate: float
    """How often a verdict is wrong."""
    parity: int | None
    """The facts it judges, by their place modulo 2; None for all."""
    num_said: int = 0
    """Verdicts so far."""
    sum_said: float = 0.0
    """How many of them were 1."""
    sum_true: float = 0.0
    """How many of them should have been."""

    def __call__(
        self, completions: Sequence[str], answer: Sequence[str], place: Sequence[int], trainer_state: TrainerState
    ) -> list[float | None]:
        """1 or 0 for each completion, None for a fact that it does not judge."""
        draws = random.Random(f"outscore flips {self.seed} {self.parity} {trainer_state.global_step}")
        values: list[float | None] = []
        for text, gold, where in zip(completions, answer, place, strict=True):
            flips = draws.random() < self.rate
            if self.parity is not None and where % 2 != self.parity:
                values.append(None)
                continue
            truth = float(text == gold)
            said = 1.0 - truth if flips else truth
            self.num_said += 1
            self.sum_said += said
            self.sum_true += truth
            values.append(said)
        return values


def verifiers(arm: Arm, rate: float, seed: int) -> tuple[Rewards, Verdicts]:
    """The rewards of an arm, and the verifier among them that flips."""
    noisy = Verdicts(seed=seed, rate=rate, parity=0 if arm.half else None)
    shaping = Shaping(flip_rates=(rate, rate)) if arm.corrected else Shaping()
    made = [Reward(name="noisy", function=noisy, full=1.0, shaping=shaping, isolate=False)]
    if arm.half:
        made.append(Reward(name="sure", function=Verdicts(seed=seed, rate=0.0, parity=1), full=1.0, isolate=False))
    return Rewards(made), noisy


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What one run ended with."""

    accuracy: float
    """The share of facts whose greedy answer is right; with a noisy half, of the facts in that half."""
    others: float | None
    """The same of the other half."""
    bias: float
    """The mean of what was trained on, corrected or not, less the mean of the truth, over all verdicts that may
    flip."""
    error: float
    """The standard deviation of that difference if the correction is unbiased: of the flips alone."""


def measure(pupil: Student, arm: Arm, rate: float) -> Found:
    """One run."""
    rewards, noisy = verifiers(arm, rate, pupil.seed)
    practise(pupil, rewards, steps=STEPS, cells=arm.cells)
    right = pupil.right()
    judged = [hit for place, hit in enumerate(right) if not arm.half or place % 2 == 0]
    rest = [hit for place, hit in enumerate(right) if arm.half and place % 2 == 1]
    shaping = rewards.rewards[0].shaping
    # The correction is affine, so that the mean of corrected values is the corrected mean.
    mean = shaping.one(noisy.sum_said / noisy.num_said)
    scale = 1.0 / (1.0 - 2.0 * rate) if arm.corrected else 1.0
    return Found(
        accuracy=fmean(judged),
        others=fmean(rest) if rest else None,
        bias=mean - noisy.sum_true / noisy.num_said,
        error=scale * math.sqrt(rate * (1.0 - rate) / noisy.num_said),
    )


def run(*, num_seeds: int, progress: Progress) -> StudyResult:
    """All arms at all rates, from one SFT checkpoint for each seed. Where nothing flips there is nothing to correct,
    and corrected arms are the others."""
    plan = [(arm, rate) for arm in ARMS for rate in RATES if rate or not arm.corrected]
    found: dict[tuple[str, float], list[Found]] = {(arm.label, rate): [] for arm, rate in plan}
    before: list[tuple[float, float]] = []
    for seed in range(num_seeds):
        pupil = student(seed)
        right = pupil.right()
        before.append((fmean(right), fmean(right[:NUM_SHOWN])))
        for done, (arm, rate) in enumerate(plan):
            progress(f"seed {seed}, {arm.label}, rate {rate:g}", seed * len(plan) + done, num_seeds * len(plan))
            found[arm.label, rate].append(measure(pupil, arm, rate))
    progress("done", num_seeds * len(plan), num_seeds * len(plan))
    summary = [_summary(arm, rate, found[arm.label, rate]) for arm, rate in plan]
    return StudyResult(
        settings={"study": "reward-noise", "steps": STEPS, "seeds": num_seeds},
        summary=[_taught(before), *summary],
        curves=[
            {"arm": arm.label, "rate": rate, "seed": seed, "accuracy": each.accuracy, "others": each.others}
            for arm, rate in plan
            for seed, each in enumerate(found[arm.label, rate])
        ],
        claims=_claims(found),
        figures=[_figure(found)],
        notes=(
            "accuracy: share of the facts whose greedy answer is right after the run; with a noisy half, of the facts "
            "in that half. others: of the other half. ±: standard error over seeds.",
            "z: the mean reward that was trained on less the mean truth, in standard deviations of the flips.",
        ),
    )


def _taught(before: Sequence[tuple[float, float]]) -> Row:
    everything = [every for every, _ in before]
    return {"arm": "after SFT", "rate": None, "accuracy": fmean(everything), "sem": sem(everything)} | {
        "others": None,
        "z": None,
    }


def _summary(arm: Arm, rate: float, found: Sequence[Found]) -> Row:
    accuracies = [each.accuracy for each in found]
    others = [each.others for each in found if each.others is not None]
    errors = math.sqrt(sum(each.error**2 for each in found))
    return {
        "arm": arm.label,
        "rate": rate,
        "accuracy": fmean(accuracies),
        "sem": sem(accuracies),
        "others": fmean(others) if others else None,
        "z": sum(each.bias for each in found) / errors if errors else None,
    }


def _mean(found: dict[tuple[str, float], list[Found]], label: str, rate: float) -> float:
    return fmean(each.accuracy for each in found[label, rate])


def _claims(found: dict[tuple[str, float], list[Found]]) -> list[Claim]:
    highest = RATES[-1]
    levels = [_mean(found, "GRPO", rate) for rate in RATES]
    claims = [
        Claim(
            where="DeepSeekMath, 5.2.3",
            claim="GRPO depends on the quality of its reward: the more verdicts are wrong, the less it learns",
            measured=", ".join(f"{level:.1%} at {rate:g}" for rate, level in zip(RATES, levels, strict=True)),
            holds=all(after < before for before, after in pairwise(levels)),
        )
    ]
    noisy = [each for (label, rate), own in found.items() if "corrected" in label and rate for each in own]
    worst = max(abs(each.bias) / each.error for each in noisy)
    claims.append(
        Claim(
            where="arXiv 2510.00915",
            claim="(r - ρ0) / (1 - ρ0 - ρ1) has the mean of the true reward",
            measured=f"{len(noisy)} corrected runs, the largest deviation {worst:.1f} standard deviations",
            holds=worst < 4.0,
        )
    )
    for plain in ("GRPO", "half noisy"):
        without, corrected = _mean(found, plain, highest), _mean(found, f"{plain}, corrected", highest)
        both = zip(found[plain, highest], found[f"{plain}, corrected", highest], strict=True)
        better = sum(after.accuracy > before.accuracy for before, after in both)
        num_seeds = len(found[plain, highest])
        claims.append(
            Claim(
                where="2510.00915",
                claim=f"the correction helps ({plain}, rate {highest:g})",
                measured=f"{without:.1%} without, {corrected:.1%} with; better in {better} of {num_seeds} seeds",
                holds=corrected > without and better == num_seeds,
            )
        )
    return claims


def _figure(found: dict[tuple[str, float], list[Found]]) -> Figure:
    def series(arm: Arm) -> Series:
        plain = arm.label.removesuffix(", corrected")
        own = [found.get((arm.label, rate)) or found[plain, rate] for rate in RATES]
        accuracies = [[each.accuracy for each in runs] for runs in own]
        return Series(label=arm.label, x=RATES, mean=list(map(fmean, accuracies)), sem=list(map(sem, accuracies)))

    panels = [
        Panel(
            title=title,
            x_label="flip rate of a verdict",
            y_label="accuracy, facts with noise",
            series=[series(arm) for arm in ARMS if arm.half == half],
        )
        for title, half in (("every verdict may flip", False), ("one verifier of two flips", True))
    ]
    return Figure(name="reward-noise", title="accuracy against reward flip rate", panels=panels)
