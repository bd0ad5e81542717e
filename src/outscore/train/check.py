"""`outscore check`: everything a run depends on, tried before the run spends time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median
from typing import Literal

from outscore.config import Recipe
from outscore.rewards.examples import NAME as EXAMPLES
from outscore.rewards.examples import Tried, try_examples
from outscore.settings import ScoringSettings
from outscore.stage_rows import stage_algorithm
from outscore.stages import PolicySettings, RejectionSettings, SftSettings, TextSettings
from outscore.tasks import Task, make_task, validate
from outscore.tasks.base import CorpusTask, gold_groups
from outscore.train.build import build_stage
from outscore.train.label_stage import locate_models
from outscore.train.memory import device_bytes, in_words
from outscore.train.plan import plan_stages
from outscore.train.plateaus import check_plateaus
from outscore.train.populations import populations_in_words
from outscore.train.rejection import RejectionSource
from outscore.train.setup import Workshop, check_before_loading, prepare
from outscore.train.sources import Collected
from outscore.train.unused import unused_settings

PROBE_GROUPS = 4
"""Groups sampled to see how the model does before training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that was tried."""

    what: str
    """What it is about."""
    status: Literal["ok", "warn", "fail"]
    """`fail` means that a run would stop or learn nothing."""
    detail: str
    """What was found, and for a problem what to do."""


def check_recipe(recipe: Recipe, findings: list[Finding] | None = None) -> list[Finding]:
    """Try data, gold answers, model, template, stop tokens, lengths and memory, then sample a few groups.

    What is found goes into `findings`, which so has all that came before an error.

    Raises:
        ValueError: where a run would raise it too: the first thing that makes the recipe impossible.
        ImportError: if a package is missing that the recipe needs.
    """
    check_before_loading(recipe)
    findings = [] if findings is None else findings
    findings += [
        Finding(what=f"stage {stage.label}", status="ok", detail=f"{stage_algorithm(stage).name}, {stage.steps} steps")
        for stage in recipe.stages
    ]
    findings += [Finding(what="unused", status="warn", detail=sentence) for sentence in unused_settings(recipe)]
    if recipe.trackers:
        findings.append(Finding(what="trackers", status="ok", detail=f"{', '.join(recipe.trackers)} can be imported"))
    task = make_task(**recipe.task)
    workshop = prepare(recipe, task=task)
    check_plateaus(recipe, workshop)
    findings.append(Finding(what="model", status="ok", detail=f"computes in {workshop.facts['precision']}"))
    layout = "ok" if workshop.policy.layout == "group_rows" else "warn"
    findings.append(Finding(what="layout", status=layout, detail=str(workshop.facts["layout_probe"])))  # type: ignore[arg-type]
    if "attention_probe" in workshop.facts:
        findings.append(Finding(what="attention", status="ok", detail=str(workshop.facts["attention_probe"])))
    findings += [Finding(what="reward", status="ok", detail=said) for said in workshop.rewards.notices]
    texts = _text_findings(recipe, task, workshop)
    if not texts or task.train_problems() or task.eval_problems():
        findings.append(_task_finding(task, workshop))
    findings += texts
    findings += _example_findings(recipe)
    findings += _judge_findings(task, workshop)
    findings += _prompt_findings(recipe, workshop)
    findings += _preference_findings(workshop)
    findings += _population_findings(recipe, workshop)
    findings.append(_memory(recipe, workshop))
    for index, stage in enumerate(recipe.stages):
        first = not any(isinstance(s, PolicySettings) for s in recipe.stages[:index])
        untrained = locate_models(workshop.materials[index].rewards, None)
        if isinstance(stage, PolicySettings) and first and not untrained:
            findings += _rollout_findings(recipe, index, workshop)
        if isinstance(stage, RejectionSettings) and not untrained:
            findings.append(_rejection_finding(recipe, index, workshop))
    return findings


def check_reward_file(path: str) -> list[Finding]:
    """Try the examples of every reward in a file of one's own.

    Raises:
        ValueError: if the file cannot be loaded or has no examples, or one of them is none.
    """
    tried = try_examples(path, scoring=ScoringSettings())
    if tried is None:
        raise ValueError(
            f"{path} has no list {EXAMPLES} to try: rows such as {{'answer': '277', 'completion': 'It is 277.', "
            "'my_reward': 1.0} beside the function my_reward"
        )
    return [_examples(place, list(own)) for place, own in groupby(tried, key=lambda each: each.place)]


def _example_findings(recipe: Recipe) -> list[Finding]:
    """What the rewards of one's own give for the examples in their files."""
    specs = [*recipe.rewards, *(spec for stage in recipe.stages for spec in stage.rewards or ())]
    names = [str(spec["name"] if isinstance(spec, Mapping) else spec) for spec in specs]
    found = []
    for name in dict.fromkeys(name for name in names if ":" in name):
        if tried := try_examples(name, scoring=recipe.scoring):
            found.append(_examples(name, tried))
    return found


def _examples(place: str, tried: Sequence[Tried]) -> Finding:
    wrong = [each for each in tried if not each.ok]
    if not wrong:
        return Finding(what="examples", status="ok", detail=f"{place} gives what its {len(tried)} examples say")
    more = f" (and {len(wrong) - 1} more like it)" if len(wrong) > 1 else ""
    return Finding(what="examples", status="fail", detail=f"{wrong[0]}{more}")


def _task_finding(task: Task, workshop: Workshop) -> Finding:
    counts = f"{len(task.train_problems())} training and {len(task.eval_problems())} held-out problems"
    if not workshop.rewards.names:
        return Finding(what="task", status="ok", detail=counts)
    result = validate(task, workshop.rewards)
    if result.ok:
        detail = f"{counts}; gold answers score full, garbage does not ({result.num_problems} tried)"
        return Finding(what="task", status="ok", detail=detail)
    more = f" (and {len(result.complaints) - 1} more like it)" if len(result.complaints) > 1 else ""
    return Finding(what="task", status="warn", detail=f"{counts}; {result.complaints[0]}{more}")


def _judge_findings(task: Task, workshop: Workshop) -> list[Finding]:
    """Whether the reward that says what is correct ever says so: accuracy would be 0 for ever."""
    groups = gold_groups(task, PROBE_GROUPS)
    if not workshop.rewards.names or not groups:
        return []
    judge = workshop.judge
    scored = workshop.rewards.score(groups, step=0, on_failure="exclude").groups
    if any(verdict for group in scored for verdict in judge.correct(group)):
        return [Finding(what="correct", status="ok", detail=f"gold answers are correct by {judge.reward_name}")]
    detail = (
        f"no gold answer is correct by {judge.reward_name}, which would have to give {judge.full:g}: accuracy would be "
        "0 for ever; name the reward that tells right from wrong in evaluation.correct"
    )
    return [Finding(what="correct", status="warn", detail=detail)]


def _text_findings(recipe: Recipe, task: Task, workshop: Workshop) -> list[Finding]:
    """The plain text of each stage that reads some: its documents, the pieces they are cut into, and what is kept to
    see how well it learns."""
    findings = []
    for stage, own in zip(recipe.stages, workshop.materials, strict=True):
        beside = stage.ptx if isinstance(stage, PolicySettings) else None
        if not isinstance(stage, TextSettings) and beside is None:
            continue
        place = (beside.task if beside else None) or stage.task
        corpus = task if place is None else make_task(**place)
        assert isinstance(corpus, CorpusTask)
        pieces = own.texts if beside else own.demonstrations
        documents, held_out = len(corpus.train_texts()), len(corpus.eval_texts())
        detail = f"stage {stage.label}: {documents} documents, {len(pieces)} pieces, {held_out} held out"
        findings.append(Finding(what="texts", status="ok" if held_out or beside else "warn", detail=detail))
    return findings


def _prompt_findings(recipe: Recipe, workshop: Workshop) -> list[Finding]:
    stages = zip(recipe.stages, workshop.materials, strict=True)
    prompts = [prompt for stage, own in stages if not isinstance(stage, TextSettings) for prompt in own.prompts]
    findings = []
    if prompts:
        lengths = sorted(len(prompt.token_ids) for prompt in prompts)
        detail = f"{lengths[0]} to {lengths[-1]} tokens, median {median(lengths):g}; the first: {prompts[0].text!r}"
        findings.append(Finding(what="prompts", status="ok", detail=detail))
    names = [workshop.policy.tokenizer.convert_ids_to_tokens(i) for i in sorted(workshop.policy.stop_token_ids)]
    status: Literal["ok", "fail"] = "ok" if names else "fail"
    findings.append(Finding(what="stop tokens", status=status, detail=", ".join(map(str, names)) or "none is known"))
    return findings


def _preference_findings(workshop: Workshop) -> list[Finding]:
    """How many preferences there are, and whether any is held out to tell whether they are learnt."""
    findings = []
    for own in workshop.materials:
        if own.rankings:
            detail = f"{len(own.rankings)} pairs and rankings to train on, {len(own.eval_rankings)} held out"
            findings.append(Finding(what="preferences", status="ok" if own.eval_rankings else "warn", detail=detail))
    return findings


def _population_findings(recipe: Recipe, workshop: Workshop) -> list[Finding]:
    """Who is weighed, and what is odd about that."""
    findings = []
    for stage, own in zip(recipe.stages, workshop.materials, strict=True):
        if detail := populations_in_words(stage, [prompt.problem.population for prompt in own.prompts]):
            findings.append(Finding(what="populations", status="ok", detail=detail))
    return findings + [Finding(what="populations", status="warn", detail=notice) for notice in workshop.notices]


def _memory(recipe: Recipe, workshop: Workshop) -> Finding:
    largest = max(plan_stages(recipe, workshop), key=lambda stage: stage.total)
    detail = f"stage {largest.label}, {largest.peak}: {in_words(largest.parts)}"
    there = device_bytes(workshop.policy.device)
    if largest.total <= there:
        return Finding(what="memory", status="ok", detail=detail)
    advice = "lower token_budget, or set model.activation_checkpointing or model.lora; `outscore plan` has every phase"
    return Finding(what="memory", status="warn", detail=f"{detail}; there are {there / 2**30:.1f} GiB: {advice}")


def _rollout_findings(recipe: Recipe, index: int, workshop: Workshop) -> list[Finding]:
    settings = recipe.stages[index]
    assert isinstance(settings, PolicySettings)
    small = settings.model_copy(update={"prompts_per_step": min(PROBE_GROUPS, settings.prompts_per_step), "refills": 0})
    stages = [*recipe.stages[:index], small, *recipe.stages[index + 1 :]]
    probed = recipe.model_copy(update={"stages": tuple(stages)})
    collected = build_stage(probed, index, workshop).source.collect(1)
    is_untaught = any(isinstance(stage, SftSettings) for stage in recipe.stages[:index])
    found = [_truncation(collected, is_untaught)]
    compares = stage_algorithm(settings).reward != "none"  # else a teacher says what is good
    return [_variance(collected, is_untaught), *found] if compares else found


def _rejection_finding(recipe: Recipe, index: int, workshop: Workshop) -> Finding:
    """How many samples of a few prompts would be imitated."""
    settings = recipe.stages[index]
    assert isinstance(settings, RejectionSettings)
    small = settings.model_copy(update={"num_prompts": min(PROBE_GROUPS, settings.num_prompts or PROBE_GROUPS)})
    stages = [*recipe.stages[:index], small, *recipe.stages[index + 1 :]]
    source = build_stage(recipe.model_copy(update={"stages": tuple(stages)}), index, workshop).source
    assert isinstance(source, RejectionSource)
    detail = f"probed {source.fill()}"
    if source.num_kept:
        return Finding(what="samples", status="ok", detail=detail)
    if any(isinstance(stage, SftSettings) for stage in recipe.stages[:index]):
        return Finding(what="samples", status="ok", detail=detail + EXPECTED)
    return Finding(what="samples", status="warn", detail=f"{detail}: there would be nothing to imitate")


EXPECTED = "; before supervised fine-tuning that is expected"
"""Ends what a model cannot do yet when a stage before this one is to teach it the form."""


def _variance(collected: Collected, is_untaught: bool) -> Finding:
    total, count = collected.metrics["zero_variance"]
    reward, scored = collected.metrics["reward"]
    detail = f"mean reward {reward / max(scored, 1):.3f}; {total:g} of {count:g} probed groups have all rewards equal"
    if total < count or not count:
        return Finding(what="rewards", status="ok", detail=detail)
    if is_untaught:
        return Finding(what="rewards", status="ok", detail=detail + EXPECTED)
    return Finding(what="rewards", status="warn", detail=detail + "; nothing would be learned from them")


def _truncation(collected: Collected, is_untaught: bool) -> Finding:
    cut, count = collected.metrics["truncated"]
    length, _ = collected.metrics["completion_length"]
    detail = f"mean {length / count:.0f} tokens; {cut:g} of {count:g} probed completions reached the limit"
    if cut <= count / 2:
        return Finding(what="lengths", status="ok", detail=detail)
    if is_untaught:
        return Finding(what="lengths", status="ok", detail=detail + EXPECTED)
    return Finding(what="lengths", status="warn", detail=detail + "; raise sampling.max_new_tokens or shorten the task")
