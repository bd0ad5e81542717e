"""What a task is, and the check that a task and its rewards agree with each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Literal, Protocol, runtime_checkable

from outscore.records import (
    Completion,
    Demonstration,
    LabelledSolution,
    Problem,
    Prompt,
    Ranking,
    Rating,
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
        """Problems to train on; empty only where a task is there to be evaluated on."""

    def eval_problems(self) -> Sequence[Problem]:
        """Held-out problems: none has the question of a training problem or a demonstration."""

    def demonstrations(self) -> Sequence[Demonstration]:
        """Responses to imitate; empty where the task has none."""


@runtime_checkable
class RankingTask(Task, Protocol):
    """A task that also has completions in the order somebody liked them."""

    def train_rankings(self) -> Sequence[Ranking]:
        """Pairs and rankings to train on; empty where there are none."""

    def eval_rankings(self) -> Sequence[Ranking]:
        """Pairs and rankings of held-out problems."""


@runtime_checkable
class CorpusTask(Task, Protocol):
    """A task that also has plain text to pre-train on."""

    def train_texts(self) -> Sequence[str]:
        """Documents to train on; empty where there are none."""

    def eval_texts(self) -> Sequence[str]:
        """Held-out documents."""


@runtime_checkable
class LabelledTask(Task, Protocol):
    """A task that also has solutions whose steps are labelled, or responses with ratings."""

    def labelled_solutions(self) -> Sequence[LabelledSolution]:
        """Solutions to train on; empty where there are none."""

    def eval_labelled_solutions(self) -> Sequence[LabelledSolution]:
        """Solutions of held-out problems."""

    def train_ratings(self) -> Sequence[Rating]:
        """Rated responses to train on; empty where there are none."""

    def eval_ratings(self) -> Sequence[Rating]:
        """Rated responses to held-out problems."""


class Scorer(Protocol):
    """The part of `outscore.rewards.Rewards` that `validate` uses."""

    @property
    def full(self) -> float | None:
        """The greatest total a completion can have, or None where a reward does not say."""

    def score(self, groups: Sequence[SampledGroup], *, step: int, on_failure: Literal["exclude"]) -> Any:
        """Score groups, a failure being a ScoringFailure; the result has `groups`, a sequence of ScoredGroup."""


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


NONSENSE = "lorem ipsum"
"""A completion that is text and answers nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """Texts to score for one problem.

    >>> Trial(problem=problem, gold=("85",), garbage={"nonsense": ("lorem ipsum",)})
    """

    problem: Problem
    """The problem."""
    gold: tuple[str, ...]
    """Ways to write its gold answer, or its demonstration; the best of them must score full."""
    garbage: Mapping[str, tuple[str, ...]]
    """What it is -> texts that must score less than gold."""


def validate(task: Task, rewards: Scorer, *, num_problems: int = 16) -> TaskCheck:
    """Check that gold answers and demonstrations score full, and that garbage does not score as high.

    Garbage is nothing, nonsense, the frames of an answer with nothing in them, and another problem's answer. Tries the
    first `num_problems` training and evaluation problems that have an answer and as many demonstrations, and looks for
    evaluation questions among those trained on. Full is `rewards.full`; where that is None, gold has only to beat
    garbage. ValueError if the task has no training problem; what rewards raise other than on single completions is
    passed on.
    """
    if not task.train_problems():
        raise ValueError(f"task {task.name!r} has no training problem")
    trials = _trials(task, num_problems)
    if not trials:
        return TaskCheck(
            num_problems=0, complaints=(f"task {task.name!r} has neither answers nor demonstrations to check",)
        )
    groups = [_group(each.problem, (*each.gold, *chain(*each.garbage.values()))) for each in trials]
    complaints = [*_overlap(task)]
    for trial, scored in zip(trials, rewards.score(groups, step=0, on_failure="exclude").groups, strict=True):
        complaints += _judge(trial, scored.scores, rewards.full)
    return TaskCheck(num_problems=len(trials), complaints=tuple(complaints))


def gold_groups(task: Task, num_problems: int) -> list[SampledGroup]:
    """Demonstrations and gold answers of the first problems as if they had been sampled."""
    return [_group(each.problem, each.gold) for each in _trials(task, num_problems)]


def question_text(problem: Problem) -> str:
    """A question as one string, for telling whether two questions are the same."""
    if isinstance(problem.question, str):
        return problem.question
    return "\n".join(f"{message['role']}: {message['content']}" for message in problem.question)


def characters_of(task: Task) -> str:
    """Every character of a task's text, for a tokenizer made for it."""
    problems = [*task.train_problems(), *task.eval_problems()]
    demonstrations = task.demonstrations()
    rankings = [*task.train_rankings(), *task.eval_rankings()] if isinstance(task, RankingTask) else []
    labelled = [*task.labelled_solutions(), *task.eval_labelled_solutions()] if isinstance(task, LabelledTask) else []
    rated = [*task.train_ratings(), *task.eval_ratings()] if isinstance(task, LabelledTask) else []
    answered = [*problems, *(d.problem for d in demonstrations), *(r.problem for r in rankings)]
    texts = [p.question for p in answered if isinstance(p.question, str)]
    texts += [p.answer for p in problems if p.answer is not None] + [d.response for d in demonstrations]
    texts += [response for ranking in rankings for response in ranking.responses]
    texts += [*task.train_texts(), *task.eval_texts()] if isinstance(task, CorpusTask) else []
    texts += [rating.response for rating in rated] + [step for each in labelled for step in each.steps]
    texts += [" \n"] if labelled else []  # what a stage may put between steps
    return "".join(sorted({character for text in texts for character in text}))


def _some(task: Task, count: int) -> list[Problem]:
    return [*islice(task.train_problems(), count), *islice(task.eval_problems(), count)]


def _trials(task: Task, num_problems: int) -> list[Trial]:
    shown: list[tuple[Problem, tuple[str, ...]]]
    shown = [(each.problem, (each.response,)) for each in islice(task.demonstrations(), num_problems)]
    asked = [(each, _framed(each.answer)) for each in _some(task, num_problems) if each.answer is not None]
    return [
        Trial(problem=problem, gold=gold, garbage=_garbage(problem, [other for other, _ in tried]))
        for tried in (shown, asked)
        for problem, gold in tried
    ]


def _framed(answer: str) -> tuple[str, ...]:
    return tuple(frame.format(answer=answer) for frame in GOLD_FRAMES)


def _garbage(problem: Problem, others: Sequence[Problem]) -> dict[str, tuple[str, ...]]:
    """What must score less than the gold answer."""
    garbage = {"an empty completion": ("",), "nonsense": (NONSENSE,), "a frame with no answer in it": _framed("")[1:]}
    wrong = next((other.answer for other in others if _answers_differ(problem, other)), None)
    if wrong is not None:
        garbage["another problem's answer"] = _framed(wrong)
    return garbage


def _answers_differ(problem: Problem, other: Problem) -> bool:
    """Whether an answer to one is surely none to the other: both are known, and are not one word or number."""
    return None not in (problem.answer, other.answer) and _folded(problem.answer) != _folded(other.answer)


def _folded(answer: str | None) -> str | float:
    text = str(answer).strip().casefold()
    try:
        return float(text)
    except ValueError:
        return text


def _overlap(task: Task) -> list[str]:
    trained = {question_text(each) for each in task.train_problems()}
    trained |= {question_text(each.problem) for each in task.demonstrations()}
    held_out = list(task.eval_problems())
    if isinstance(task, RankingTask):
        trained |= {question_text(each.problem) for each in task.train_rankings()}
        known = {each.id for each in held_out}
        held_out += [each.problem for each in task.eval_rankings() if each.problem.id not in known]
    shared = [each for each in held_out if question_text(each) in trained]
    return [f"{len(shared)} evaluation questions are trained on, the first is {shared[0].id!r}"] if shared else []


def _judge(trial: Trial, scores: Sequence[Score | ScoringFailure], full: float | None) -> list[str]:
    """Complaints about one problem; `scores` are those of gold and then of garbage, in the trial's order."""
    place = trial.problem.id
    left = iter(scores)
    golds = list(islice(left, len(trial.gold)))
    gold = _highest(golds)
    if gold is None:
        failure = next(each for each in golds if isinstance(each, ScoringFailure))
        return [f"{place}: reward {failure.reward_name!r} cannot score the gold answer: {failure.reason}"]
    complaints = []
    if full is not None and gold < full - _TOLERANCE:
        complaints.append(f"{place}: the gold answer scores {gold:g}, full is {full:g}")
    for what, texts in trial.garbage.items():
        own = list(islice(left, len(texts)))
        failures = [each for each in own if isinstance(each, ScoringFailure)]
        complaints += [f"{place}: reward {f.reward_name!r} cannot score {what}: {f.reason}" for f in failures[:1]]
        highest = _highest(own)
        if highest is not None and highest >= (gold if full is None else full) - _TOLERANCE:
            complaints.append(f"{place}: {what} scores {highest:g}, the gold answer {gold:g}")
    return complaints


def _highest(scores: Sequence[Score | ScoringFailure]) -> float | None:
    """The highest reward; None where none could be scored."""
    return max((each.reward for each in scores if isinstance(each, Score)), default=None)


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
