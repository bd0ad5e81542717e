"""What a stage works on: prompts, demonstrations, preferences and rewards, from tasks to tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, TypeVar

from outscore.config import Recipe
from outscore.model.load import encode, turn_end_id
from outscore.model.policy import Policy
from outscore.model.steps import decoder, join_steps, step_ends
from outscore.records import (
    Completion,
    DemonstrationGroup,
    LabelledGroup,
    LabelledSolution,
    Problem,
    Prompt,
    RankedGroup,
    Ranking,
    Rating,
)
from outscore.rewards import Reward, Rewards
from outscore.stage_parts import SamplingSettings
from outscore.stages import (
    OutcomeRewardModelSettings,
    PolicySettings,
    PreferenceSettings,
    ProcessRewardModelSettings,
    RejectionSettings,
    SftSettings,
    StageSettings,
    TextSettings,
    sampling_of,
)
from outscore.tasks import RankingTask, Task, render
from outscore.tasks.base import CorpusTask, LabelledTask, question_text
from outscore.tasks.templates import check_template
from outscore.train.evaluate import Judge
from outscore.train.populations import evaluation_column, in_population, placed
from outscore.train.preferences import check_ties

Shown = TypeVar("Shown", Ranking, LabelledSolution | Rating)


def _nothing(completions: Sequence[Any]) -> list[float]:
    return [0.0] * len(completions)


NO_REWARD = Reward(name="none", function=_nothing, isolate=False)
"""What a stage that learns from a teacher alone is scored with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Materials:
    """What a stage works on; what its kind has no use for is empty."""

    train_prompts: Sequence[Prompt] = ()
    """Prompts to sample from."""
    demonstrations: Sequence[DemonstrationGroup] = ()
    """Responses, or pieces of text, to imitate."""
    texts: Sequence[DemonstrationGroup] = ()
    """Pieces of text that a stage of the policy predicts beside its samples."""
    rankings: Sequence[RankedGroup] = ()
    """Preferences to learn from."""
    eval_rankings: Sequence[RankedGroup] = ()
    """Preferences on held-out problems, to see how well it learns."""
    labelled: Sequence[LabelledGroup] = ()
    """Completions with labels to learn from."""
    eval_labelled: Sequence[LabelledGroup] = ()
    """Those of held-out problems."""
    rewards: Rewards
    """What scores completions."""
    judge: Judge
    """What is correct."""

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts of whatever there is."""
        given = [group.prompt for group in self.demonstrations] + [group.prompt for group in self.rankings]
        return [*self.train_prompts, *given, *(group.prompt for group in self.labelled)]

    @property
    def held_out(self) -> list[Prompt]:
        """The prompts of what is evaluated on besides the run's problems."""
        return [group.prompt for group in self.eval_rankings] + [group.prompt for group in self.eval_labelled]


def stage_materials(
    stage: StageSettings,
    task: Task,
    rewards: Rewards,
    judge: Judge,
    policy: Policy,
    recipe: Recipe,
    *,
    unseen: set[str],
    corpus: Task | None = None,
) -> Materials:
    """What a stage needs of its task. Problems whose question is in `unseen` are held out and left out; what texts it
    has beside (`ptx`) are those of `corpus`, or of its task.

    Raises:
        ValueError: if the task has none of what the stage needs, or something does not fit into the model's context.
    """
    if sampling_of(stage):
        problems = [placed(each, stage) for each in task.train_problems() if question_text(each) not in unseen]
        if not problems:
            raise ValueError(f"task: {task.name} has no training problems, or all of them are held out")
        if isinstance(stage, RejectionSettings):
            for name in stage.filters:
                rewards.named(name)
        room = sampling_limit(recipe)
        prompts = [render_prompt(problem, policy, recipe, room=room) for problem in problems]
        given: Sequence[DemonstrationGroup] = ()
        if isinstance(stage, RejectionSettings) and stage.demonstrations:
            given = _apart(demonstration_groups(task, policy, recipe), unseen)
        scorers = rewards if rewards.names else Rewards([NO_REWARD])  # a teacher needs none
        beside = _texts_beside(stage, corpus or task, policy)
        return Materials(train_prompts=prompts, demonstrations=given, texts=beside, rewards=scorers, judge=judge)
    if isinstance(stage, PreferenceSettings):
        known = [each for each in train_rankings(task) if question_text(each.problem) not in unseen]
        rankings = [replace(each, problem=placed(each.problem, stage)) for each in known]
        groups = ranked_groups(rankings, policy, recipe)
        check_ties(groups, stage.ties)
        return Materials(
            rankings=groups,
            eval_rankings=ranked_groups(eval_rankings(task, recipe, stage), policy, recipe),
            rewards=rewards,
            judge=judge,
        )
    if isinstance(stage, TextSettings):
        texts = train_texts(task, "stages: pre-training needs")
        return Materials(demonstrations=text_groups(texts, policy, stage.piece), rewards=rewards, judge=judge)
    if isinstance(stage, OutcomeRewardModelSettings):
        return labelled_materials(stage, task, policy, recipe, Materials(rewards=rewards, judge=judge), unseen=unseen)
    assert isinstance(stage, SftSettings)
    shown = demonstration_groups(task, policy, recipe, stage)
    return Materials(demonstrations=_apart(shown, unseen), rewards=rewards, judge=judge)


def _apart(groups: Sequence[DemonstrationGroup], unseen: set[str]) -> list[DemonstrationGroup]:
    return [group for group in groups if question_text(group.prompt.problem) not in unseen]


def _texts_beside(stage: StageSettings, corpus: Task, policy: Policy) -> Sequence[DemonstrationGroup]:
    """The pieces of text that a stage predicts beside its samples; ValueError where it asks for some and has none."""
    if not isinstance(stage, PolicySettings) or stage.ptx is None:
        return ()
    texts = train_texts(corpus, f"stage `{stage.label}`: ptx needs")
    return text_groups(texts, policy, stage.ptx.piece)


def train_texts(task: Task, needs: str) -> Sequence[str]:
    """The task's texts to train on; ValueError, beginning with what `needs` them, where it has none."""
    texts = task.train_texts() if isinstance(task, CorpusTask) else []
    if not texts:
        raise ValueError(
            f"{needs} plain text, and task {task.name} has none (kind: text has, and toy_assistant with num_texts)"
        )
    return texts


def text_groups(texts: Sequence[str], policy: Policy, piece: int) -> list[DemonstrationGroup]:
    """Texts as groups of one, every token of which is predicted once: a document follows an end token and is closed by
    one; where it is cut into pieces, a piece follows the last token of the one before."""
    end = end_token_id(policy, False)
    longest = piece if policy.context_length is None else min(piece, policy.context_length - 1)
    groups = []
    for number, text in enumerate(texts):
        tokens = (*encode(policy.tokenizer, text), end)
        before = end
        for first in range(0, len(tokens), longest):
            ids = tokens[first : first + longest]
            problem = Problem(id=f"text/{number}/{first}", question="", answer=None, columns={})
            groups.append(
                DemonstrationGroup(
                    prompt=Prompt(problem=problem, text="", token_ids=(before,)),
                    completion=Completion(
                        token_ids=ids, text=str(policy.tokenizer.decode(list(ids))), counts=(True,) * len(ids)
                    ),
                )
            )
            before = ids[-1]
    return groups


def sampling_limit(recipe: Recipe) -> int:
    """New tokens that every sampled prompt leaves room for: the most that a stage's sampling allows, or sampling's
    default where no stage samples."""
    allowed = [sampling.max_new_tokens for stage in recipe.stages if (sampling := sampling_of(stage))]
    return max(allowed, default=SamplingSettings().max_new_tokens)


def answer_limit(recipe: Recipe) -> int:
    """New tokens that an answer may have in an evaluation: what the recipe says, or as many as a stage may sample."""
    return recipe.evaluation.max_new_tokens or sampling_limit(recipe)


def render_prompt(problem: Problem, policy: Policy, recipe: Recipe, *, room: int) -> Prompt:
    """Render a problem with the recipe's template; ValueError where the model's context has not `room` more tokens."""
    return render(
        problem,
        policy.tokenizer,
        recipe.prompt.template,
        system=recipe.prompt.system,
        limit=policy.context_length,
        room=room,
    )


def make_judge(recipe: Recipe, rewards: Rewards, *, own: bool = False) -> Judge:
    """The judge of the recipe's evaluation: by the reward it names, or the one that `Rewards.says_correct` chooses.

    The rewards that a stage has to itself (`own`) need not have the one that is named.
    """
    name = recipe.evaluation.correct
    if own and name not in rewards.names:
        name = ""
    if rewards.names and name and name not in rewards.names:
        raise ValueError(f"evaluation.correct = {name!r} is none of the rewards: {', '.join(rewards.names)}")
    chosen = rewards.named(name) if rewards.names and name else rewards.says_correct()
    if chosen is None:
        return Judge(reward_name="", extract=str.strip)
    return Judge(reward_name=chosen.name, full=1.0 if chosen.full is None else chosen.full, extract=chosen.extract)


def demonstration_groups(
    task: Task, policy: Policy, recipe: Recipe, stage: StageSettings | None = None
) -> list[DemonstrationGroup]:
    """The task's demonstrations as groups of one, each closed by its end token.

    Raises:
        ValueError: if there is none, or one does not fit into the model's context with its prompt.
    """
    groups = []
    answered = partial(_answered, "demonstration", policy, recipe, cache(partial(end_token_id, policy)))
    for demonstration in task.demonstrations():
        prompt, [completion] = answered(placed(demonstration.problem, stage), [demonstration.response])
        groups.append(DemonstrationGroup(prompt=prompt, completion=completion))
    if not groups:
        rated = isinstance(task, LabelledTask) and bool(task.train_ratings())
        only = ": its responses are rated, good and bad (outcome-reward-model learns them)" if rated else ""
        raise ValueError(f"stages: supervised fine-tuning needs demonstrations, and task {task.name} has none{only}")
    return groups


def train_rankings(task: Task) -> Sequence[Ranking]:
    """The task's preferences to train on; ValueError where it has none."""
    rankings = task.train_rankings() if isinstance(task, RankingTask) else []
    if not rankings:
        raise ValueError(
            f"stages: training on preferences needs pairs or rankings, and task {task.name} has none (columns `chosen` "
            "and `rejected`, or `completions` and `ranking`)"
        )
    return rankings


def eval_rankings(task: Task, recipe: Recipe, stage: StageSettings | None = None) -> Sequence[Ranking]:
    """The task's preferences on held-out problems, as many as problems are evaluated on; empty where it has none. The
    task is the run's, or that of a `stage`."""
    shown = task.eval_rankings()[: recipe.evaluation.problems] if isinstance(task, RankingTask) else []
    return _split(shown, evaluation_column(recipe.stages, stage))


def ranked_groups(rankings: Sequence[Ranking], policy: Policy, recipe: Recipe) -> list[RankedGroup]:
    """Preferences as groups, each completion closed by its end token.

    Raises:
        ValueError: if one does not fit into the model's context with its prompt.
    """
    groups = []
    answered = partial(_answered, "preference", policy, recipe, cache(partial(end_token_id, policy)))
    for ranking in rankings:
        prompt, completions = answered(ranking.problem, ranking.responses)
        groups.append(RankedGroup(prompt=prompt, completions=tuple(completions), ranks=ranking.ranks))
    return groups


def labelled_materials(
    stage: OutcomeRewardModelSettings,
    task: Task,
    policy: Policy,
    recipe: Recipe,
    empty: Materials,
    *,
    unseen: set[str],
) -> Materials:
    """The task's labelled solutions, or its ratings, as groups to train on and held-out ones.

    Raises:
        ValueError: if there is none, or one does not fit into the model's context with its prompt.
    """
    train: Sequence[LabelledSolution | Rating] = ()
    held_out: Sequence[LabelledSolution | Rating] = ()
    of_steps = isinstance(stage, ProcessRewardModelSettings)
    if isinstance(task, LabelledTask):
        train = task.labelled_solutions() if of_steps else task.train_ratings()
        held_out = task.eval_labelled_solutions() if of_steps else task.eval_ratings()
    known = [each for each in train if question_text(each.problem) not in unseen]
    kept = [replace(each, problem=placed(each.problem, stage)) for each in known]
    if not kept:
        wanted = "columns `completions` and `labels`" if of_steps else "a column `expected_reward`"
        raise ValueError(
            f"stage `{stage.label}`: task {task.name} has no {'labelled steps' if of_steps else 'ratings'} ({wanted}); "
            "give it some, or let the stage `sample` the policy"
        )
    labelled = partial(labelled_groups, stage, policy=policy, recipe=recipe)
    shown = _split(held_out[: recipe.evaluation.problems], evaluation_column(recipe.stages, stage))
    return replace(empty, labelled=labelled(kept), eval_labelled=labelled(shown))


def _split(shown: Sequence[Shown], column: str | None) -> Sequence[Shown]:
    """What is evaluated on, its problems in the populations that a column names; as it is where there is no column."""
    return shown if column is None else [replace(each, problem=in_population(each.problem, column)) for each in shown]


def labelled_groups(
    stage: OutcomeRewardModelSettings, given: Sequence[LabelledSolution | Rating], *, policy: Policy, recipe: Recipe
) -> list[LabelledGroup]:
    """Labelled solutions and ratings as groups, each closed by its end token; a label stands where its step ends.

    Raises:
        ValueError: if one does not fit into the model's context, two of its steps end in one token, or a rating is no
            chance where it has to be one.
    """
    groups = []
    answered = partial(_answered, "labelled solution", policy, recipe, cache(partial(end_token_id, policy)))
    neutral = {"right": 1.0, "wrong": 0.0, "drop": None}
    decode = decoder(policy.tokenizer)
    for each in given:
        if isinstance(each, LabelledSolution):
            assert isinstance(stage, ProcessRewardModelSettings)
            steps = join_steps(each.steps, stage.separators)
            labels = [neutral[stage.neutral] if label is None else label for label in each.labels]
        else:
            steps, labels = (each.response,), [each.reward]
            if stage.cells.get("surrogate") != "squared_error" and not 0 <= each.reward <= 1:
                raise ValueError(
                    f"rating {each.problem.id!r} is {each.reward:g}, which is no chance from 0 to 1; regress on it in "
                    f"stage `{stage.label}` with cells: {{surrogate: squared_error}}"
                )
        prompt, [completion] = answered(each.problem, ["".join(steps)])
        ends = step_ends(steps, completion.token_ids, decode)
        if len(set(ends)) < len(ends):
            raise ValueError(
                f"labelled solution {each.problem.id!r}: two of its {len(steps)} steps end in the same token, so that "
                f"their labels cannot be told apart; a separator such as '\\n' between them helps: {steps[:3]!r}"
            )
        known = [(end, label) for end, label in zip(ends, labels, strict=True) if label is not None]
        if known:
            places, values = zip(*known, strict=True)
            groups.append(LabelledGroup(prompt=prompt, completion=completion, ends=places, labels=values))
    return groups


def _answered(
    what: str, policy: Policy, recipe: Recipe, end: Callable[[bool], int], problem: Problem, responses: Sequence[str]
) -> tuple[Prompt, list[Completion]]:
    """The prompt of a problem, and the responses to it with their end token."""
    prompt = render_prompt(problem, policy, recipe, room=0)
    template = check_template(problem, policy.tokenizer, recipe.prompt.template, recipe.prompt.system)
    completions = []
    for response in responses:
        ids = (*encode(policy.tokenizer, response), end(template == "chat"))
        total = len(prompt.token_ids) + len(ids)
        if policy.context_length is not None and total > policy.context_length:
            raise ValueError(
                f"{what} {problem.id!r} has {total} tokens with its prompt, more than the model's context of "
                f"{policy.context_length}: shorten it or leave it out; its prompt begins {prompt.text[:80]!r}"
            )
        completions.append(Completion(token_ids=ids, text=response, counts=(True,) * len(ids)))
    return prompt, completions


def end_token_id(policy: Policy, is_chat: bool) -> int:
    """The token that closes a demonstration: the turn end of the chat template where the prompt is chat, else the
    tokenizer's end of text, else any token that ends a completion.

    Raises:
        ValueError: if the model has none.
    """
    candidates: list[int | None] = [policy.tokenizer.eos_token_id, *sorted(policy.stop_token_ids)]
    if is_chat:
        candidates.insert(0, turn_end_id(policy.tokenizer))
    known = [token for token in candidates if token is not None]
    if not known:
        raise ValueError(
            "model: neither tokenizer nor config names an end token, so demonstrations cannot teach where to stop; "
            "set eos_token in its tokenizer_config.json"
        )
    return known[0]
