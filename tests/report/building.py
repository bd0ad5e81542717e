"""Groups, reports and runs made by hand, for the tests of this room."""

from collections.abc import Sequence
from pathlib import Path

from outscore.records import (
    Completion,
    DemonstrationGroup,
    GivenGroup,
    Problem,
    Prompt,
    RankedGroup,
    SampledCompletion,
    SampledGroup,
    Score,
    ScoredGroup,
    ScoringFailure,
    StepReport,
)
from outscore.report import CompletionRow, Evaluation, RunDirectory, StagePlan, completion_rows

WEIGHTS = "1e7c8a1c726e" + "0" * 52
CONFIG = {
    "name": "hand-made",
    "seed": 0,
    "task": {"kind": "arithmetic"},
    "stages": [{"algorithm": "sft", "steps": 2}, {"algorithm": "grpo", "steps": 4}],
    "found": {"weights_sha256": WEIGHTS},
}
STAGES = (StagePlan(name="sft", num_steps=2), StagePlan(name="grpo", num_steps=4))


def scored_group(
    rewards: Sequence[float | None], *, slot: int = 0, attempt: int = 0, problem: str = "p/0", text: str = "277"
) -> ScoredGroup:
    """A group with these total rewards; None is a completion that could not be scored."""
    prompt = Prompt(
        problem=Problem(id=problem, question="325-28-20", answer="277", columns={}), text="325-28-20=", token_ids=(7, 6)
    )
    drawn = SampledCompletion(
        completion=Completion(token_ids=(5, 6, 2), text=text, counts=(True, True, True)),
        sampler_logprobs=(-0.1, -0.25, -1.0 / 3.0),
        finish="stop",
        policy_version=3,
    )
    scores = tuple(
        ScoringFailure(reward_name="answer", reason="ZeroDivisionError: division by zero")
        if reward is None
        else Score(reward=reward, parts={"format": 0.5, "answer": reward - 0.5})
        for reward in rewards
    )
    sampled = SampledGroup(prompt=prompt, completions=(drawn,) * len(rewards), slot=slot, attempt=attempt)
    return ScoredGroup(sampled=sampled, scores=scores)


def rows_of(step: int, rewards: Sequence[float | None], **group: object) -> list[CompletionRow]:
    """The rows of one group of a step of `grpo`; the advantage is the reward minus one."""
    made = scored_group(rewards, **group)  # type: ignore[arg-type]
    advantages = [[None if reward is None else reward - 1.0 for reward in rewards]]
    return completion_rows(stage="grpo", step=step, groups=[made], advantages=advantages)


def given_groups() -> list[GivenGroup]:
    """A demonstration of three tokens, the second of which carries no loss, and a ranking of two completions."""
    problem = Problem(id="p/3", question="7-5", answer=None, columns={}, population="adults")
    prompt = Prompt(problem=problem, text="7-5=", token_ids=(4, 8))
    completions = [
        Completion(token_ids=(5, 6, 2), text="277", counts=(True, False, True)),
        Completion(token_ids=(5, 2), text="2", counts=(True, True)),
        Completion(token_ids=(6, 2), text="20", counts=(True, True)),
    ]
    ranked = RankedGroup(prompt=prompt, completions=tuple(completions[1:]), ranks=(1, 0))
    return [DemonstrationGroup(prompt=prompt, completion=completions[0]), ranked]


def report(number: int, **metrics: float) -> StepReport:
    """A step with these metrics, each counted once, that took 3 seconds for 60 tokens."""
    return StepReport(
        step=number,
        policy_version=number,
        metrics={name: (value, 1.0) for name, value in metrics.items()},
        seconds={"sample": 2.0, "update": 1.0},
        num_tokens=60,
    )


def evaluation(label: str, stage: str, step: int, value: float) -> Evaluation:
    """An evaluation whose pass@1 is `value`."""
    return Evaluation(
        label=label,
        stage=stage,
        step=step,
        policy_version=step,
        num_problems=200,
        samples=8,
        metrics={"greedy": value, "pass@1": value, "pass@8": min(1.0, value + 0.25), "maj@8": value},
        intervals={"pass@1": (value - 0.05, value + 0.05)},
    )


def take_step(run: RunDirectory, stage: str, step: int) -> None:
    """Record a step whose content depends on its number alone."""
    if stage == "grpo":
        rewards = [0.5, 0.5 + 0.25 * step]
        run.write_groups(stage, step, rows_of(step, rewards) + rows_of(step, rewards[::-1], slot=1, problem="p/1"))
        run.append_step(stage, report(step, reward=0.5 + step / 8, accuracy=step / 10, zero_variance=0.0))
    else:
        run.append_step(stage, report(step, loss=1.0 / step))
    run.append_evaluation(evaluation(f"{stage} step {step}", stage, step, step / 10))
    checkpoint = run.checkpoint_path(stage, step)
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer.json").write_text(str(step))


def make_run(path: Path) -> RunDirectory:
    """A complete run of both stages."""
    run = RunDirectory.create(path, config=CONFIG)
    for stage in STAGES:
        for step in range(1, stage.num_steps + 1):
            take_step(run, stage.name, step)
    run.log("grpo: finished")
    return run
