"""`outscore show`: a run at a glance, its curves, and the completions behind them. Also while it is still running."""

import difflib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import rich.console
from rich.console import Group, RenderableType
from rich.text import Text

from outscore.report import evaluation, lineage, populations, rows, run, tokens, views
from outscore.report.text import format_seconds, visible

NUM_GROUPS = 3
"""Groups shown at a time by `step`, `best` and `worst`."""


def show_run(
    path: Path,
    *,
    stage: str | None = None,
    step: int | None = None,
    best: bool = False,
    worst: bool = False,
    prompt: str | None = None,
    sample: int | None = None,
    as_json: bool = False,
    console: rich.console.Console | None = None,
) -> dict[str, Any]:
    """Print a run: its summary and, when asked for, groups of completions. Returns what it printed, as data.

    `stage` leaves the other stages out. `step` takes groups of that step (of `stage`, else of the last stage that has
    it); `best` and `worst` the groups with the highest or lowest mean reward, of `step` or of the whole run; `prompt`
    the groups of one problem id over the steps; `sample` completion number `sample` of each of these groups, token by
    token with its coefficients. Each raises ValueError naming what there is when there is nothing.
    With `as_json` the data are printed as JSON.
    """
    if best and worst:
        raise ValueError("ask for best or for worst, one at a time")
    directory = run.RunDirectory.open(path)
    known = [plan.name for plan in directory.stages]
    if stage is not None and stage not in known:
        raise ValueError(f"stage {stage!r}: {directory.path} has {', '.join(known)}")
    data = summarize(directory, stage)
    chosen = _choose(directory, stage=stage, step=step, best=best, worst=worst, prompt=prompt)
    if sample is not None:
        chosen = _samples(chosen, sample)
    if chosen is not None:
        data["groups"] = [[asdict(row) for row in group] for group in chosen]
    out = console or rich.console.Console()
    if as_json:
        out.file.write(json.dumps(_finite(data), indent=2, ensure_ascii=False) + "\n")
    else:
        width = min(out.width, 120)
        if sample is not None and chosen is not None:
            out.print(_tokens(directory, chosen, width))
        else:
            out.print(_render(data, chosen, width, ascii_only=not out.encoding.startswith("utf")))
    return data


def summarize(directory: run.RunDirectory, stage: str | None = None) -> dict[str, Any]:
    """Configuration, what each stage has done, evaluations and the best, checkpoints, and the last events; as data.

    With `stage`, only what belongs to that stage of stages, evaluations and checkpoints.
    """
    evaluations = [found for found in directory.evaluations() if stage in (None, found.stage)]
    found_best = evaluation.best(evaluations)
    return {
        "path": str(directory.path),
        "config": directory.config(),
        "weights_sha256": directory.weights_sha256,
        "stages": [_stage_summary(directory, plan) for plan in directory.stages if stage in (None, plan.name)],
        "evaluations": [evaluation.to_line(found) for found in evaluations],
        "best": None if found_best is None else {"metric": found_best[0], **evaluation.to_line(found_best[1])},
        "checkpoints": [str(item.path) for item in directory.checkpoints() if stage in (None, item.stage)],
        "lineage": lineage.parents(directory.config().get("stages", [])),
        "events": directory.events()[-5:],
    }


def _stage_summary(directory: run.RunDirectory, plan: run.StagePlan) -> dict[str, Any]:
    history = directory.metrics(plan.name)
    seconds = [line["seconds"] for line in directory.timings(plan.name)]
    numbers = [_numbers(line) for line in history]
    names = views.curve_names(numbers)
    return {
        "name": plan.name,
        "num_steps": plan.num_steps,
        "steps_done": history[-1]["step"] if history else 0,
        "seconds": math.fsum(seconds),
        "last": dict(history[-1]) if history else None,
        "curves": {name: views.series(numbers, name) for name in names},
        "populations": {
            name: {
                metric.removeprefix("population_"): views.series(numbers, f"{metric}/{name}")
                for metric in populations.STEP_METRICS
                if any(f"{metric}/{name}" in line for line in numbers)
            }
            for name in populations.populations_of(numbers)
        },
    }


def _numbers(line: Any) -> dict[str, float | None]:
    return {name: value for name, value in line.items() if name not in run.RESERVED}


def _choose(
    directory: run.RunDirectory, *, stage: str | None, step: int | None, best: bool, worst: bool, prompt: str | None
) -> list[list[rows.CompletionRow]] | None:
    if step is None and prompt is None and not best and not worst:
        return None
    every = [item for item in directory.group_files() if stage in (None, item.stage)]
    if not every:
        raise ValueError(f"{directory.path} has no groups" + (f" in stage {stage!r}" if stage else " yet"))
    selected = every if step is None else [item for item in every if item.step == step][-1:]
    if not selected:
        steps = [item.step for item in every]
        there = f"steps {min(steps)} to {max(steps)}"
        raise ValueError(f"step {step}: {directory.path} has groups of {there}")
    if prompt is not None:
        groups = _of_prompt(selected, prompt)
        if not best and not worst:
            return groups
        scored = [group for group in groups if any(row.reward is not None for row in group)]
        return _some(sorted(scored, key=_mean_reward, reverse=best)[:NUM_GROUPS])
    if best or worst:
        return _some(_ranked(selected, worst=worst))
    return _groups(rows.read_parquet(selected[0].path))[:NUM_GROUPS]


def _some(ranked: list[list[rows.CompletionRow]]) -> list[list[rows.CompletionRow]]:
    if not ranked:
        raise ValueError("best and worst are by reward, and no completion here has one: ask for a step or a prompt")
    return ranked


def _samples(chosen: list[list[rows.CompletionRow]] | None, sample: int) -> list[list[rows.CompletionRow]]:
    """Completion number `sample` of each of the groups."""
    if chosen is None:
        raise ValueError(f"sample {sample}: say of which groups: step, best, worst or prompt")
    size = max(len(group) for group in chosen)
    if not 0 <= sample < size:
        raise ValueError(f"sample {sample}: these groups have completions 0 to {size - 1}")
    return [[row for row in group if row.sample == sample] for group in chosen]


def _tokens(directory: run.RunDirectory, chosen: Sequence[Sequence[rows.CompletionRow]], width: int) -> RenderableType:
    pieces = tokens.pieces_of(directory)
    return Group(
        *(
            part
            for group in chosen
            for row in group
            for part in (
                *views.heading(row, width),
                tokens.token_view(row, pieces, width),
                Text(""),
            )
        )
    )


def _of_prompt(selected: Sequence[run.StepFile], prompt: str) -> list[list[rows.CompletionRow]]:
    groups = [group for item in selected for group in _groups(rows.read_parquet(item.path, problem_id=prompt))]
    if not groups:
        seen = {row.problem_id for item in selected for row in rows.read_parquet(item.path)}
        near = difflib.get_close_matches(prompt, sorted(seen), n=3, cutoff=0.0)
        raise ValueError(f"prompt {prompt!r} is not in these groups; the nearest that are: {', '.join(near)}")
    return groups


def _ranked(selected: Sequence[run.StepFile], *, worst: bool) -> list[list[rows.CompletionRow]]:
    # Only the reward column of every file is read; then the files of the few winners.
    found: list[tuple[float, int, int, int]] = []
    for index, item in enumerate(selected):
        rewards: dict[tuple[int, int], list[float]] = {}
        for slot, attempt, reward in rows.read_rewards(item.path):
            if reward is not None:
                rewards.setdefault((slot, attempt), []).append(reward)
        # Of equals the latest step comes first, for best and worst alike.
        sign = 1.0 if worst else -1.0
        found += [(sign * math.fsum(r) / len(r), -index, slot, attempt) for (slot, attempt), r in rewards.items()]
    return [
        [row for row in rows.read_parquet(selected[-index].path) if (row.slot, row.attempt) == (slot, attempt)]
        for _, index, slot, attempt in sorted(found)[:NUM_GROUPS]
    ]


def _groups(completions: Sequence[rows.CompletionRow]) -> list[list[rows.CompletionRow]]:
    groups: dict[tuple[int, int], list[rows.CompletionRow]] = {}
    for row in completions:
        groups.setdefault((row.slot, row.attempt), []).append(row)
    return list(groups.values())


def _mean_reward(group: Sequence[rows.CompletionRow]) -> float:
    rewards = [row.reward for row in group if row.reward is not None]
    return math.fsum(rewards) / len(rewards)


def _render(
    data: dict[str, Any], chosen: Sequence[Sequence[rows.CompletionRow]] | None, width: int, *, ascii_only: bool
) -> RenderableType:
    if chosen is not None:
        return Group(
            *(part for group in chosen for part in (views.group_view(group, width, max_rows=64, lines=4), Text("")))
        )
    parts: list[RenderableType] = [Text(visible(data["path"]), style="bold")]
    if len(data["stages"]) > 1 and lineage.branches(data["config"].get("stages", [])):
        progress = {stage["name"]: (stage["steps_done"], stage["num_steps"]) for stage in data["stages"]}
        found = [evaluation.from_line(line) for line in data["evaluations"]]
        parts += [Text(""), lineage.lineage_tree(data["config"]["stages"], progress, found)]
    for stage in data["stages"]:
        parts += _stage_view(stage, width, ascii_only)
    if data["evaluations"]:
        evaluations = [evaluation.from_line(line) for line in data["evaluations"]]
        parts += [Text(""), views.evaluation_table(evaluations, data["weights_sha256"], width)]
        own = next((stage for stage in data["stages"] if stage["name"] == evaluations[-1].stage), None)
        weights = populations.last_weights([_numbers(own["last"])]) if own and own["last"] else {}
        table = populations.population_table(evaluations[-1], weights)
        parts += [Text(""), table] if table is not None else []
    if data["best"]:
        best = data["best"]
        parts += [
            Text(""),
            Text(visible(f"best by {best['metric']}: {best['label']} ({best['stage']} step {best['step']})")),
        ]
    if data["checkpoints"]:
        last = Path(data["checkpoints"][-1]).relative_to(data["path"])
        parts.append(Text(visible(f"checkpoints: {len(data['checkpoints'])}, the last is {last}")))
    parts += [views.literal(event, width, style="dim") for event in data["events"]]
    return Group(*parts)


def _stage_view(stage: dict[str, Any], width: int, ascii_only: bool) -> list[RenderableType]:
    time = format_seconds(stage["seconds"])
    head = Text(visible(f"{stage['name']}  {stage['steps_done']}/{stage['num_steps']} steps, {time}"), style="bold")
    if stage["last"] is None:
        return [Text(""), head]
    last = _numbers(stage["last"])
    count = max(len(values) for values in stage["curves"].values()) if stage["curves"] else 0
    history = [{name: values[i] for name, values in stage["curves"].items()} for i in range(count)]
    curves = views.curves(history, width, ascii_only=ascii_only) if history else []
    return [
        Text(""),
        head,
        *curves,
        *populations.population_curves(_by_step(stage["populations"]), width, ascii_only=ascii_only),
        *(Text(line, style="dim") for line in views.pack(views.metric_chunks(last), width)),
    ]


def _by_step(courses: dict[str, dict[str, list[float]]]) -> list[dict[str, float | None]]:
    """Courses of populations as a mapping for each step, as the metrics of steps are."""
    flat = {f"population_{m}/{name}": values for name, own in courses.items() for m, values in own.items()}
    return [dict(zip(flat, step, strict=True)) for step in zip(*flat.values(), strict=True)]


def _finite(value: Any) -> Any:
    # JSON has no NaN: a missing value is null.
    if isinstance(value, float):
        return evaluation.finite(value)
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
