"""What a stage works on: prompts, demonstrations, preferences and rewards, from tasks to tokens."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

from outscore.config import Recipe
from outscore.model.load import encode, turn_end_id
from outscore.model.policy import Policy
from outscore.records import Completion, DemonstrationGroup, Problem, Prompt, RankedGroup, Ranking
from outscore.rewards import Rewards
from outscore.stages import PreferenceSettings, SamplingSettings, SamplingStage, SftSettings, StageSettings
from outscore.tasks import RankingTask, Task, render
from outscore.tasks.base import question_text
from outscore.tasks.templates import check_template
from outscore.train.evaluate import Judge
from outscore.train.populations import LEAST, placed, stage_weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Materials:
    """What a stage works on; what its kind has no use for is empty."""

    train_prompts: Sequence[Prompt] = ()
    """Prompts to sample from."""
    demonstrations: Sequence[DemonstrationGroup] = ()
    """Responses to imitate."""
    rankings: Sequence[RankedGroup] = ()
    """Preferences to learn from."""
    rewards: Rewards
    """What scores completions."""
    judge: Judge
    """What is correct."""

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts of whatever there is."""
        given = [group.prompt for group in self.demonstrations] + [group.prompt for group in self.rankings]
        return [*self.train_prompts, *given]


def stage_materials(
    stage: StageSettings,
    task: Task,
    rewards: Rewards,
    judge: Judge,
    policy: Policy,
    recipe: Recipe,
    *,
    unseen: set[str],
) -> Materials:
    """What a stage needs of its task. Problems whose question is in `unseen` are held out and left out.

    Raises:
        ValueError: if the task has none of what the stage needs, or something does not fit into the model's context.
    """
    if isinstance(stage, SamplingStage):
        problems = [placed(each, stage) for each in task.train_problems() if question_text(each) not in unseen]
        if not problems:
            raise ValueError(f"task: {task.name} has no training problems")
        room = sampling_limit(recipe)
        prompts = [render_prompt(problem, policy, recipe, room=room) for problem in problems]
        return Materials(train_prompts=prompts, rewards=rewards, judge=judge)
    if isinstance(stage, PreferenceSettings):
        known = [each for each in train_rankings(task) if question_text(each.problem) not in unseen]
        rankings = [replace(each, problem=placed(each.problem, stage)) for each in known]
        return Materials(rankings=ranked_groups(rankings, policy, recipe), rewards=rewards, judge=judge)
    assert isinstance(stage, SftSettings)
    groups = demonstration_groups(task, policy, recipe, stage)
    kept = [group for group in groups if question_text(group.prompt.problem) not in unseen]
    return Materials(demonstrations=kept, rewards=rewards, judge=judge)


def population_notices(
    stages: Sequence[StageSettings], materials: Sequence[Materials], asked: Sequence[Problem], shown: Sequence[Ranking]
) -> list[str]:
    """What is odd about the populations of stages that weigh them, in evaluations on these problems and preferences:
    one that no example was trained on has no weight, and what few held-out examples say is little.

    Raises:
        ValueError: if weights cannot be had of a stage's populations.
    """
    evaluated = max([each.population for each in asked], [each.problem.population for each in shown], key=len)
    counts = Counter(evaluated)
    notices: list[str] = []
    for stage, own in zip(stages, materials, strict=True):
        trained = [prompt.problem.population for prompt in own.prompts]
        if stage_weights(stage, trained) is None or not evaluated:
            continue
        for name in sorted({str(name) for name in counts} - {str(name) for name in trained}):
            notices.append(f"stage {stage.label}: population {name!r} is only in held-out data: it has no weight there")
        for name in sorted({str(name) for name in trained}):
            if counts[name] < LEAST:
                few = f"has {counts[name]} held-out example{'' if counts[name] == 1 else 's'}"
                notices.append(f"stage {stage.label}: population {name!r} {few}, so evaluations say little of it")
    return notices


def sampling_limit(recipe: Recipe) -> int:
    """New tokens that every sampled prompt leaves room for: the most that a stage's sampling allows, or sampling's
    default where no stage samples."""
    allowed = [stage.sampling.max_new_tokens for stage in recipe.stages if isinstance(stage, SamplingStage)]
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
        raise ValueError(f"stages: supervised fine-tuning needs demonstrations, and task {task.name} has none")
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
