"""The stages of a run as a tree: which weights each began with, how far it is, and what it reached."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text
from rich.tree import Tree

from outscore.report.evaluation import Evaluation, headline
from outscore.report.text import format_value, visible
from outscore.stages import BASE, PREVIOUS, stage_kind


def parents(stages: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Stage -> the stage whose weights it begins with, or `base`. A stage that trains a reward model leaves the policy
    as it is, and so is passed over.

    Args:
        stages: the stages of the run's config.

    >>> parents([{"name": "cold", "algorithm": "sft"}, {"name": "", "algorithm": "grpo"}])
    {'cold': 'base', 'grpo': 'cold'}
    """
    found: dict[str, str] = {}
    current = BASE
    for stage in stages:
        name = stage.get("name") or stage["algorithm"]
        start = stage.get("start", PREVIOUS)
        found[name] = current if start == PREVIOUS else start
        if stage_kind(stage).trains == "policy":
            current = name
    return found


def branches(stages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the stages are more than a line of one after the other."""
    names = [BASE, *(stage.get("name") or stage["algorithm"] for stage in stages)]
    lent = any(stage.get("samples_from") for stage in stages)
    return lent or list(parents(stages).values()) != names[:-1]


def lineage_tree(
    stages: Sequence[Mapping[str, Any]], progress: Mapping[str, tuple[int, int]], evaluations: Sequence[Evaluation]
) -> Tree:
    """The tree, each stage with its state and the headline of its last evaluation.

    Args:
        stages: the stages of the run's config.
        progress: stage -> steps done and steps in all.
        evaluations: those of the run so far.
    """
    root = Tree(Text("base" + _figure([each for each in evaluations if each.label.startswith("before ")])))
    nodes = {BASE: root}
    for stage, (name, parent) in zip(stages, parents(stages).items(), strict=True):
        done, total = progress.get(name, (0, 0))
        state = "done" if done and done == total else f"step {done} of {total}" if done else "waiting"
        lent = f", samples of {stage['samples_from']}" if stage.get("samples_from") else ""
        line = Text(visible(name), style="bold" if done else "dim")
        line.append(visible(f"  {stage['algorithm']}{lent}, {state}"), style="not bold")
        own = [each for each in evaluations if each.stage == name and not each.label.startswith("before ")]
        line.append(_figure(own), style="not bold")
        nodes[name] = nodes[parent].add(line)
    return root


def _figure(evaluations: Sequence[Evaluation]) -> str:
    if not evaluations or (name := headline(evaluations[-1])) is None:
        return ""
    return f"  {name} {format_value(name, evaluations[-1].metrics[name])}"
