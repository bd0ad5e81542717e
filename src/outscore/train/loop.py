"""The loop of a stage: collect, update, report, evaluate, save. It is blind to algorithms and to where groups come
from."""

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from outscore.config import EvaluationSettings, Recipe
from outscore.inputs import nearest
from outscore.objectives.returns import adaptive_kl_coef
from outscore.records import StepReport
from outscore.report import CompletionRow, Evaluation, Reporter, RunDirectory, completion_rows, given_rows
from outscore.report.evaluation import headline
from outscore.report.populations import falls
from outscore.rollout import Sampler
from outscore.stage_parts import PlateauSettings
from outscore.stages import PolicySettings, StageSettings
from outscore.train.checkpoint import Progress, prune_checkpoints, return_to, save_checkpoint
from outscore.train.evaluate import Evaluator, Judge
from outscore.train.memory import peak_bytes
from outscore.train.optim import NotFiniteError
from outscore.train.sources import Collected, Source
from outscore.train.step import Batch, Learner, Metrics, UpdatePlan, update

Updater = Callable[[Learner, Batch, UpdatePlan, Callable[[float], None] | None, Tensor | None], Metrics]
"""Takes a batch's updates; hears the share that is done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One stage, ready to run."""

    recipe: Recipe
    """The whole recipe."""
    settings: StageSettings
    """This stage's part of it."""
    learner: Learner
    """Policy and optimizer."""
    source: Source
    """Where groups come from."""
    plan: UpdatePlan
    """How they become updates."""
    sampler: Sampler
    """For evaluation; a rollout source has its own, with the recipe's `max_rows`."""
    evaluator: Evaluator | None
    """None where the recipe evaluates nothing."""
    judge: Judge
    """Says what is correct, for the record of every completion."""
    update: Updater = update
    """What turns a batch into updates."""
    closing: Callable[[], None] | None = None
    """Done to the trained model after the last step, before it is evaluated and saved."""


@dataclass(kw_only=True, slots=True)
class StageRun:
    """Runs a stage step by step, from wherever it stands."""

    stage: Stage
    """What is run."""
    run: RunDirectory
    """Where it is recorded."""
    reporter: Reporter
    """Who is told."""
    progress: Progress
    """Where the stage stands."""
    interrupted: Callable[[], bool]
    """Whether somebody asked to stop after the step in hand."""
    waiting_seconds: dict[str, float] = field(default_factory=dict)
    """Time spent saving and evaluating since the last report."""

    def go(self) -> Progress:
        """Take the steps that are left; returns where the stage stands when it ends or is interrupted."""
        settings = self.stage.settings
        self.reporter.stage_started(settings.label, settings.steps)
        while not self.progress.finished and not self.interrupted():
            step = self.progress.step + 1
            self.take(step)
            self._refresh_reference(step)
            better = self._evaluate(step)
            last = step == settings.steps or self._out_of_patience()
            self.progress = dataclasses.replace(self.progress, finished=last)
            if last or better or step % self.stage.recipe.checkpoints.every == 0:
                self._save()
        # Asked here, whatever ended the loop: a signal may arrive at any of its lines.
        if self.progress.step and not self.run.checkpoint_path(settings.label, self.progress.step).exists():
            self._save()
        if self.progress.finished:
            patience, step = self.stage.recipe.evaluation.patience, self.progress.step
            early = f"ended after step {step} of {settings.steps}: none of the last {patience} evaluations was better"
            early += f", so that it ends with the weights of step {self.progress.best_step}"
            self.reporter.stage_ended(early if step < settings.steps else "")
        return self.progress

    def take(self, step: int) -> None:
        """One step: collect, update, report."""
        stage, learner = self.stage, self.stage.learner
        collected = stage.source.collect(step, self.reporter.activity)
        started = time.perf_counter()
        coefficients = torch.zeros(collected.batch.starts[-1])
        metrics = {**collected.metrics, **self._update(step, collected, coefficients)}
        seconds = {**collected.seconds, "update": time.perf_counter() - started, **self.waiting_seconds}
        self.waiting_seconds = {}
        rows, accuracy = self._rows(step, collected, coefficients)
        report = StepReport(
            step=step,
            policy_version=learner.policy.version,
            metrics={**metrics, **accuracy},
            seconds=seconds,
            num_tokens=collected.num_tokens,
            peak_bytes=peak_bytes(),
        )
        self.reporter.step(report, rows, shown_slot=_most_telling_slot(collected))
        self._steer_kl(collected)
        self.progress = dataclasses.replace(
            self.progress,
            step=step,
            policy_version=learner.policy.version,
            num_updates=learner.num_updates,
            critic_updates=learner.critic.num_updates if learner.critic else 0,
            kl_coef=None if stage.plan.algorithm.kl_adapt_to is None else learner.kl_coef,
        )

    def _update(self, step: int, collected: Collected, coefficients: Tensor) -> Metrics:
        learner = self.stage.learner
        self.reporter.activity("updating")
        learner.policy.model.train()
        try:
            return self.stage.update(
                learner,
                collected.batch,
                self.stage.plan,
                lambda share: self.reporter.activity(f"updating {share:.0%}"),
                coefficients,
            )
        except NotFiniteError as error:
            said = self.reporter.failed(step, {"grad_norm": error.norm})
            raise ValueError(
                f"stage {self.stage.settings.label}, step {step}: {said} Nothing of this step is kept: change "
                f"{self.run.path / 'config.yaml'}, and go on from the last checkpoint with "
                f"`outscore resume {self.run.path}`"
            ) from error

    def _rows(self, step: int, collected: Collected, coefficients: Tensor) -> tuple[list[CompletionRow], Metrics]:
        """The record of a step's completions, and how many of those that were sampled are right.

        A reward model is moved by its scores: nothing pulls at the log-probs of what was given to it.
        """
        label, judge = self.stage.settings.label, self.stage.judge
        if not collected.groups:
            given = collected.given if self.stage.plan.algorithm.trains == "policy" else ()
            own = collected.per_token(coefficients) if given else []
            return given_rows(stage=label, step=step, groups=given, coefficients=own), {}
        verdicts = [judge.correct(group) for group in collected.groups]
        rows = completion_rows(
            stage=label,
            step=step,
            groups=collected.groups,
            advantages=collected.advantages,
            extracted=[answer for group in collected.groups for answer in judge.answers(group.sampled)],
            correct=[verdict for group in verdicts for verdict in group],
            extra_columns=collected.extra_columns,
            coefficients=collected.per_token(coefficients),
        )
        # Of the groups trained on, as the other metrics of rollouts: replaced ones were chosen for being all alike.
        kept = verdicts[: collected.num_kept]
        known = [float(verdict) for group in kept for verdict in group if verdict is not None]
        return rows, {"accuracy": (sum(known), float(len(known)))}

    def _refresh_reference(self, step: int) -> None:
        settings, reference = self.stage.settings, self.stage.learner.reference
        every = settings.refresh_reference_every if isinstance(settings, PolicySettings) else 0
        if reference is not None and every and step % every == 0:
            reference.refresh()

    def _steer_kl(self, collected: Collected) -> None:
        """Bring the coefficient of a KL in the reward nearer to where it holds the KL at what the row asks for."""
        row, learner = self.stage.plan.algorithm, self.stage.learner
        if row.kl_adapt_to is not None:
            total, count = collected.metrics["completion_kl"]
            learner.kl_coef = adaptive_kl_coef(
                learner.kl_coef,
                measured_kl=total / count,
                target=row.kl_adapt_to,
                num_samples=int(count),
                horizon=row.kl_horizon,
            )

    def _evaluate(self, step: int) -> bool:
        every = self.stage.recipe.evaluation.every
        if self.stage.evaluator is None or not every or step % every or step == self.stage.settings.steps:
            return False
        found = self.evaluate(f"{self.stage.settings.label} step {step}", step, greedy_only=True)
        self.progress, better = ranked(self.progress, found, step)
        self._heed_plateau(found)
        return better

    def _heed_plateau(self, found: Evaluation) -> None:
        settings = self.stage.settings.plateau
        if settings is None:
            return
        before, self.progress = self.progress.num_plateaus, after_evaluation(self.progress, settings, found)
        if self.progress.num_plateaus > before:
            shrink(self.stage.learner, settings, self.progress.num_plateaus)
            self.reporter.message(f"{found.label}: {settings.metric} is no better, so steps become smaller")

    def evaluate(self, label: str, step: int, *, greedy_only: bool = False) -> Evaluation:
        """Evaluate the policy as it stands and record it."""
        assert self.stage.evaluator is not None
        started = time.perf_counter()
        found = self.stage.evaluator.run(
            self.stage.sampler,
            label=label,
            stage=self.stage.settings.label,
            step=step,
            policy_version=self.stage.learner.policy.version,
            greedy_only=greedy_only,
            tell=self.reporter.activity,
        )
        self._waited("evaluate", started)
        self.reporter.evaluation(found)
        return found

    def _out_of_patience(self) -> bool:
        evaluation: EvaluationSettings = self.stage.recipe.evaluation
        return bool(evaluation.patience) and self.progress.evaluations_since_best >= evaluation.patience

    def _save(self) -> None:
        started = time.perf_counter()
        if self.progress.finished and self.progress.step < self.stage.settings.steps:
            # Stopped early: what is evaluated, saved and handed on is the best. `_evaluate` has saved it.
            best = self.run.checkpoint_path(self.progress.stage, cast(int, self.progress.best_step))
            return_to(best, self.stage.learner, trust_remote_code=self.stage.recipe.model.trust_remote_code)
        if self.progress.finished and self.stage.closing is not None:
            self.stage.closing()
        if self.progress.finished and self.stage.evaluator is not None:
            found = self.evaluate(f"after {self.stage.settings.label}", self.progress.step)
            self.progress, _ = ranked(self.progress, found, self.progress.step)
            started = time.perf_counter()
        self.reporter.activity("saving")
        save_checkpoint(self.run, self.stage.learner, self.progress)
        prune_checkpoints(self.run, self.progress, self.stage.recipe.checkpoints.keep)
        self._waited("save", started)

    def _waited(self, phase: str, started: float) -> None:
        self.waiting_seconds[phase] = self.waiting_seconds.get(phase, 0.0) + time.perf_counter() - started


def ranked(progress: Progress, found: Evaluation, step: int) -> tuple[Progress, bool]:
    """The progress with this evaluation taken into account, and whether it is the best of its stage; what is no number
    is never better."""
    name = headline(found)
    assert name is not None, "an evaluation measures something"
    value = found.metrics[name]
    better = math.isfinite(value) and (progress.best_value is None or value > progress.best_value)
    if better:
        return dataclasses.replace(progress, best_value=value, best_step=step, evaluations_since_best=0), True
    return dataclasses.replace(progress, evaluations_since_best=progress.evaluations_since_best + 1), False


def after_evaluation(progress: Progress, settings: PlateauSettings, found: Evaluation) -> Progress:
    """The progress with an evaluation counted, and a plateau where it was the last of too many; one whose metric is no
    number says neither.

    Raises:
        ValueError: if it has no such metric.
    """
    value = found.metrics.get(settings.metric)
    if value is None:
        raise ValueError(
            f"plateau.metric = {settings.metric!r} is not evaluated{nearest(settings.metric, found.metrics)}"
        )
    if not math.isfinite(value):
        return progress
    best = progress.plateau_best
    if best is None or (value < best if falls(settings.metric) else value > best):
        return dataclasses.replace(progress, plateau_best=value, plateau_evaluations=0)
    waited = progress.plateau_evaluations + 1
    if waited < settings.evaluations:
        return dataclasses.replace(progress, plateau_evaluations=waited)
    return dataclasses.replace(progress, plateau_evaluations=0, num_plateaus=progress.num_plateaus + 1)


def shrink(learner: Learner, settings: PlateauSettings | None, num_plateaus: int) -> None:
    """Let a learner, and its critic, take the steps that it takes after so many plateaus."""
    if settings is None:
        return
    for each in (learner, learner.critic):
        if each is not None:
            each.lr_factor = settings.lr_factor**num_plateaus
    if learner.populations is not None:
        learner.populations.shrunk = settings.step_size_factor**num_plateaus


def _most_telling_slot(collected: Collected) -> int | None:
    """The first group whose completions differ in advantage: the one worth showing. None where nothing was sampled:
    what was given is known."""
    for group, advantages in zip(collected.groups, collected.advantages, strict=True):
        if any(advantages):
            return group.sampled.slot
    return 0 if collected.groups else None
