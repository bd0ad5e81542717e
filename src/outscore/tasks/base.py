"""What a task is, and the check that a task and its rewards agree with each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, runtime_checkable

from outscore.records import (
    Completion,
    Demonstration,
    Problem,
    Prompt,
    SampledCompletion,
    SampledGroup,
    Score,
    ScoringFailure,
)


@runtime_checkable
class Task(Protocol):
    """Where problems come from. Each method returns the same sequence every time it is asked."""

    @property
    def name(self) -> str:
        """What runs and tables call it."""

    def train_problems(self) -> Sequence[Problem]:
        """Problems to train on; never empty."""

    def eval_problems(self) -> Sequence[Problem]:
        """Held-out problems: none has the question of a training problem or a demonstration."""

    def demonstrations(self) -> Sequence[Demonstration]:
        """Responses to imitate; empty where the task has none."""


class Scorer(Protocol):
    """The part of `outscore.rewards.Rewards` that `validate` uses."""

    @property
    def full(self) -> float | None:
        """The greatest total a completion can have, or None where a reward does not say."""

    def score(self, groups: Sequence[SampledGroup], *, step: int, max_steps: int = 0) -> Any:
        """Score groups; the result has `groups`, a sequence of ScoredGroup."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskCheck:
    """What `validate` found.

    >>> TaskCheck(num_problems=8, complaints=())
    """

    num_problems: int
    """How many problems and demonstrations were tried."""
    complaints: tuple[str, ...]
    """One sentence for each thing that is wrong, naming the problem; empty when the task is sound."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.complaints


GOLD_FRAMES = (
    "{answer}",
    "<answer>\n{answer}\n</answer>\n",
    "<reasoning>\n{answer}\n</reasoning>\n<answer>\n{answer}\n</answer>\n",
    "<think>\n{answer}\n</think>\n<answer>\n{answer}\n</answer>",
    "\\boxed{{{answer}}}",
)
"""Ways to write a gold answer. A gold answer scores full if one of these does: which one is the format rewards'
business."""

_TOLERANCE = 1e-9


def validate(task: Task, rewards: Scorer, *, num_problems: int = 16) -> TaskCheck:
    """Check that gold answers and demonstrations score full and that an empty completion does not.

    Tries the first `num_problems` training and evaluation problems that have an answer and as many demonstrations, and
    looks for evaluation questions among those trained on. Full is `rewards.full`; where that is None, gold has only to
    beat the empty completion. ValueError if the task has no training problem; what rewards raise is passed on.
    """
    if not task.train_problems():
        raise ValueError(f"task {task.name!r} has no training problem")
    demonstrations = list(islice(task.demonstrations(), num_problems))
    answered = [each for each in _some(task, num_problems) if each.answer is not None]
    groups = [_group(each.problem, (each.response, "")) for each in demonstrations]
    groups += [_group(each, (*_gold_texts(each), "")) for each in answered]
    if not groups:
        return TaskCheck(
            num_problems=0, complaints=(f"task {task.name!r} has neither answers nor demonstrations to check",)
        )
    complaints = [*_overlap(task)]
    for scored in rewards.score(groups, step=0).groups:
        complaints += _judge(scored.sampled.prompt.problem.id, scored.scores, rewards.full)
    return TaskCheck(num_problems=len(groups), complaints=tuple(complaints))


def question_text(problem: Problem) -> str:
    """A question as one string, for telling whether two questions are the same."""
    if isinstance(problem.question, str):
        return problem.question
    return "\n".join(f"{message['role']}: {message['content']}" for message in problem.question)


def _some(task: Task, count: int) -> list[Problem]:
    return [*islice(task.train_problems(), count), *islice(task.eval_problems(), count)]


def _gold_texts(problem: Problem) -> list[str]:
    return [frame.format(answer=problem.answer) for frame in GOLD_FRAMES]


def _overlap(task: Task) -> list[str]:
    trained = {question_text(each) for each in task.train_problems()}
    trained |= {question_text(each.problem) for each in task.demonstrations()}
    shared = [each for each in task.eval_problems() if question_text(each) in trained]
    return [f"{len(shared)} evaluation questions are trained on, the first is {shared[0].id!r}"] if shared else []


def _judge(problem_id: str, scores: Sequence[Score | ScoringFailure], full: float | None) -> list[str]:
    """Complaints about one problem; the last score is the empty completion's, the others are gold."""
    failures = [each for each in scores[:-1] if isinstance(each, ScoringFailure)]
    golds = [each.reward for each in scores[:-1] if isinstance(each, Score)]
    if not golds:
        return [f"{problem_id}: reward {failures[0].reward_name!r} cannot score the gold answer: {failures[0].reason}"]
    gold = max(golds)
    complaints = []
    if full is not None and gold < full - _TOLERANCE:
        complaints.append(f"{problem_id}: the gold answer scores {gold:g}, full is {full:g}")
    empty = scores[-1]
    if isinstance(empty, Score) and empty.reward >= gold - _TOLERANCE:
        complaints.append(f"{problem_id}: an empty completion scores {empty.reward:g}, the gold answer {gold:g}")
    return complaints


def _group(problem: Problem, texts: Sequence[str]) -> SampledGroup:
    """The texts as if they had been sampled; rewards read text, so the tokens are a stand-in."""
    completions = tuple(
        SampledCompletion(
            completion=Completion(token_ids=(0,), text=text, counts=(True,)),
            sampler_logprobs=(0.0,),
            finish="stop",
            policy_version=0,
        )
        for text in texts
    )
    prompt = Prompt(problem=problem, text=question_text(problem), token_ids=(0,))
    return SampledGroup(prompt=prompt, completions=completions, slot=0, attempt=0)
