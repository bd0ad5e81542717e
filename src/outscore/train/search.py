"""Using more samples of a question well: accuracy against budget of voting, best-of-n, beam and tree search by a
reward model."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import torch

from outscore.inputs import nearest
from outscore.model.heads import RewardModel, is_reward_model
from outscore.model.load import encode
from outscore.model.steps import Decode, StepScores, decoder, solution_score
from outscore.objectives.estimators import Estimate, mean_interval
from outscore.objectives.selection import best_is_right, mean_over_blocks, vote_is_right
from outscore.records import Completion, Prompt, SampledCompletion, SampledGroup, SampleRequest, SamplingParams
from outscore.rewards import Rewards
from outscore.rewards.model_based import TOKEN_BUDGET, beginning_scores
from outscore.rewards.process_model import StepScorer
from outscore.rewards.reward_model import newest_checkpoint
from outscore.rollout import Sampler, make_sampler
from outscore.train.activity import Tell, counting, tell_nobody
from outscore.train.build import EVALUATION_ROWS
from outscore.train.evaluate import EVALUATION_SEED, Judge
from outscore.train.growing import Beginning, Grower, Guide
from outscore.train.inspect import check_named, target_recipe
from outscore.train.materials import answer_limit
from outscore.train.setup import prepare

Method = Literal["majority", "best-of-n", "weighted", "beam", "tree"]
"""The answer with the most votes; the sample of the highest score; the answer with the largest sum of scores; beam
search and best-first tree search over steps, guided by a process reward model."""
METHODS: tuple[Method, ...] = get_args(Method)
BY_STEPS: tuple[Method, ...] = ("beam", "tree")
"""Those that need scores of beginnings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchRow:
    """What a method makes of a budget."""

    method: str
    """How the answer is chosen."""
    budget: int
    """Samples of each problem; `beam`: how many beginnings there are at any time; `tree`: how many are continued."""
    accuracy: Estimate
    """The share of problems whose chosen answer is right, with a 95 % interval."""
    tokens: float
    """Tokens sampled for a problem, in the mean."""


class ModelGuide:
    """A reward model as a guide, whose scores are in [0, 1].

    Args:
        directory: a process reward model, or a reward model of whole completions whose score is the log-odds of being
            right; either trained here.
        how: what becomes of the chances of steps.
        token_budget: tokens scored at once.

    Raises:
        ValueError: if there is no such model.
    """

    def __init__(self, directory: Path, *, how: StepScores = "min", token_budget: int = TOKEN_BUDGET) -> None:
        if not is_reward_model(directory):
            raise ValueError(f"{directory} holds no reward model that was trained here")
        self.how: StepScores = how
        self._budget = token_budget
        self._steps = StepScorer(directory, token_budget=token_budget)
        self.model: RewardModel = self._steps.model

    @property
    def separators(self) -> tuple[str, ...]:
        """What ends a step; () for a model of whole completions."""
        return self.model.separators or ()

    def scores(self, given: Sequence[tuple[Prompt, tuple[int, ...]]]) -> list[float]:
        """A score for each (prompt, tokens); equal ones are scored once."""
        distinct = list(dict.fromkeys((prompt.text, ids) for prompt, ids in given))
        if self.separators:
            chances = [[chance for _, chance in steps] for steps in self._steps.steps(distinct)]
            found = [solution_score(each, self.how) for each in chances]
        else:
            read = [(tuple(encode(self.model.tokenizer, prompt)), [ids]) for prompt, ids in distinct]
            found = torch.tensor(beginning_scores(self.model, read, self._budget)).sigmoid().tolist()
        known = dict(zip(distinct, found, strict=True))
        return [known[prompt.text, ids] for prompt, ids in given]


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """Answers held-out problems with more samples than one.

    >>> Search(prompts=prompts, sampler=engine, rewards=rewards, judge=judge, decode=decode, params=params, seed=0)
    """

    prompts: Sequence[Prompt]
    """The problems."""
    sampler: Sampler
    """Samples the policy."""
    rewards: Rewards
    """What scores completions, so that the judge can say which are right: no method sees it."""
    judge: Judge
    """Says what is right."""
    decode: Decode
    """Tokens to text."""
    params: SamplingParams
    """How samples are drawn."""
    seed: int
    """Decides them."""
    guide: Guide | None = None
    """What chooses; `majority` needs none."""
    width: int = 4
    """Beam and tree search: continuations of a beginning."""

    def run(self, methods: Sequence[str], budgets: Sequence[int], tell: Tell = tell_nobody) -> list[SearchRow]:
        """Accuracy for every method and budget; without methods, for all that the guide allows. Methods that choose
        among samples share these, and a budget below the largest is the mean over disjoint parts of them.

        Raises:
            ValueError: for a method that needs a guide, or one of steps, and has none.
        """
        asked = methods or [method for method in METHODS if self._lacks(method) is None]
        self._check(asked, budgets)
        choosing = [method for method in asked if method not in BY_STEPS]
        rows = self._choose(choosing, budgets, tell) if choosing else []
        if "beam" in asked:
            rows += [self._row("beam", budget, *self.grower.beams(budget, tell)) for budget in budgets]
        if "tree" in asked:
            rows += [self._row("tree", *found) for found in self.grower.trees(budgets, tell)]
        return rows

    @property
    def grower(self) -> Grower:
        """What grows answers step by step."""
        assert self.guide is not None
        return Grower(
            prompts=self.prompts,
            sampler=self.sampler,
            guide=self.guide,
            decode=self.decode,
            params=self.params,
            seed=self.seed + EVALUATION_SEED,
            width=self.width,
        )

    def _lacks(self, method: str) -> str | None:
        """What this method needs and there is not; None where it can be used."""
        if method != "majority" and self.guide is None:
            return "a reward model"
        if method in BY_STEPS and not (self.guide and self.guide.separators):
            return "a process reward model: one of whole completions scores no beginnings"
        return None

    def _check(self, methods: Sequence[str], budgets: Sequence[int]) -> None:
        for method in methods:
            if method not in METHODS:
                raise ValueError(f"method {method!r} is not known{nearest(method, METHODS)}")
            if lacking := self._lacks(method):
                raise ValueError(f"method {method!r} needs {lacking}")
        if not budgets or min(budgets) < 1 or self.width < 1:
            raise ValueError(f"budgets = {list(budgets)} and width = {self.width} must be at least 1")

    def _choose(self, methods: Sequence[str], budgets: Sequence[int], tell: Tell) -> list[SearchRow]:
        largest = max(budgets)
        requests = [
            SampleRequest(prompt=prompt, num_samples=largest, slot=slot) for slot, prompt in enumerate(self.prompts)
        ]
        told = counting("sampling", largest * len(requests), tell)
        drawn = self.sampler.sample(requests, self.params, seed=self.seed + EVALUATION_SEED, step=0, on_finished=told)
        scored = self.rewards.score(drawn, step=0).groups
        answered = [self.judge.votes(group) for group in scored]
        verdicts = [[bool(verdict) for verdict in self.judge.correct(group)] for group in scored]
        scores = [[0.0] * largest for _ in drawn]
        if any(method != "majority" for method in methods):
            assert self.guide is not None
            tell("scoring")
            given = [(group.prompt, each.completion.token_ids) for group in drawn for each in group.completions]
            flat = iter(self.guide.scores(given))
            scores = [[next(flat) for _ in group.completions] for group in drawn]
        lengths = [len(each.completion.token_ids) for group in drawn for each in group.completions]
        rows = []
        for method in methods:
            for budget in budgets:
                chances = [
                    mean_over_blocks(largest, budget, partial(_chance, method, *answers, own, right))
                    for answers, own, right in zip(answered, scores, verdicts, strict=True)
                ]
                tokens = budget * sum(lengths) / len(lengths)
                rows.append(SearchRow(method=method, budget=budget, accuracy=mean_interval(chances), tokens=tokens))
        return rows

    def _row(self, method: str, budget: int, found: Sequence[Sequence[Beginning]], tokens: int) -> SearchRow:
        """What the best answer to each problem is worth: the first of those found."""
        best = [
            self._ended(prompt, slot, own[0])
            for slot, (prompt, own) in enumerate(zip(self.prompts, found, strict=True))
        ]
        verdicts = [bool(self.judge.correct(group)[0]) for group in self.rewards.score(best, step=0).groups]
        return SearchRow(
            method=method,
            budget=budget,
            accuracy=mean_interval([float(verdict) for verdict in verdicts]),
            tokens=tokens / len(self.prompts),
        )

    def _ended(self, prompt: Prompt, slot: int, answer: Beginning) -> SampledGroup:
        """An answer that has ended as a group of one, for the judge."""
        ids = answer.token_ids
        assert answer.finish is not None
        drawn = SampledCompletion(
            completion=Completion(token_ids=ids, text=self.decode(ids), counts=(True,) * len(ids)),
            sampler_logprobs=(0.0,) * len(ids),
            finish=answer.finish,
            policy_version=0,
        )
        return SampledGroup(prompt=prompt, completions=(drawn,), slot=slot, attempt=0)


def search_target(
    target: str,
    *,
    reward_model: Path | None,
    methods: Sequence[str],
    budgets: Sequence[int],
    how: StepScores = "min",
    width: int = 4,
    recipe: str | None = None,
    task: str | None = None,
    reward: str | None = None,
    overrides: Sequence[str] = (),
    tell: Tell = tell_nobody,
) -> list[SearchRow]:
    """Search with a run, checkpoint or model; see `outscore search --help`.

    Raises:
        ValueError: if it is not said what to answer, or anything in it cannot work.
    """
    settings = target_recipe(target, recipe=recipe, task=task, reward=reward, overrides=overrides)
    check_named(target, settings)
    guide = None if reward_model is None else ModelGuide(newest_checkpoint(reward_model, "search"), how=how)
    workshop = prepare(settings, evaluation_only=True)
    if not workshop.eval_prompts:
        raise ValueError(f"task {settings.task['kind']!r} has no held-out problems to answer")
    search = Search(
        prompts=workshop.eval_prompts,
        sampler=make_sampler(workshop.policy, EVALUATION_ROWS),
        rewards=workshop.rewards,
        judge=workshop.judge,
        decode=decoder(workshop.policy.tokenizer),
        params=SamplingParams(max_new_tokens=answer_limit(settings), temperature=settings.evaluation.temperature),
        seed=settings.seed,
        guide=guide,
        width=width,
    )
    try:
        return search.run(methods, budgets, tell)
    finally:
        workshop.rewards.close()


def _chance(
    method: str,
    votes: Sequence[str | None],
    right_votes: Sequence[bool],
    scores: Sequence[float],
    correct: Sequence[bool],
    block: Sequence[int],
) -> float:
    """The chance that the choice among these samples is right."""
    if method == "best-of-n":
        return best_is_right([scores[i] for i in block], [correct[i] for i in block])
    weights = None if method == "majority" else [scores[i] for i in block]
    return vote_is_right([votes[i] for i in block], [right_votes[i] for i in block], weights)
