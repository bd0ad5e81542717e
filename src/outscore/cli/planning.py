"""The command that counts memory before a run."""

from typing import Annotated, Any

import rich.console
import typer
from rich.table import Table
from rich.text import Text

from outscore.cli.common import AsJson, Overrides, explained, print_json


def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe file (YAML).")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Count the memory that each stage of a recipe will need, phase by phase, without loading weights.

    Phases take turns, so a stage needs the largest of them, which stands in bold:
    keys and values when sampling; activations and logits when the backward pass begins; gradients when it ends.
    Lower token_budget for activations, sampling.max_rows for the KV cache; model.activation_checkpointing keeps the
    inputs of layers only; model.lora has gradients and moments for adapters alone; kl_coef: 0 needs no reference,
    and a rule for a reward no reward model. Try it: outscore plan recipe.yaml stages.grpo.token_budget=2048
    """
    with explained():
        from outscore.config import load_recipe
        from outscore.train.plan import ASSUMPTIONS, plan_recipe

        found = plan_recipe(load_recipe(recipe, overrides or ()))
        if as_json:
            print_json(_as_data(found, ASSUMPTIONS))
        else:
            _print_plan(found, ASSUMPTIONS)


def _as_data(plan: Any, assumptions: Any) -> dict[str, Any]:
    stages = [
        {
            "stage": stage.label,
            "algorithm": stage.algorithm,
            "peak": stage.peak,
            "total": stage.total,
            "dominant": stage.dominant,
            "phases": {phase: dict(parts) for phase, parts in stage.phases.items()},
        }
        for stage in plan.stages
    ]
    return {
        "device": plan.device,
        "precision": plan.precision,
        "available": plan.available,
        "interpreter": plan.interpreter,
        "total": plan.total,
        "stages": stages,
        "assumptions": list(assumptions),
    }


def _print_plan(plan: Any, assumptions: Any) -> None:
    out = rich.console.Console()
    for stage in plan.stages:
        out.print(_stage_table(stage))
        share = stage.parts[stage.dominant] / stage.total
        out.print(
            Text(
                f"{stage.label}: {_size(stage.total)} at the peak, {stage.peak}; "
                f"most of it {stage.dominant} ({_size(stage.parts[stage.dominant])}, {share:.0%})\n"
            )
        )
    whole = f"The run: {_size(plan.total)} of {_size(plan.available)} on this machine's {plan.device}"
    whole += f", {_size(plan.interpreter)} of it interpreter and libraries" if plan.interpreter else ""
    out.print(Text(f"{whole}; it computes in {plan.precision}.", style="" if plan.total <= plan.available else "red"))
    out.print(Text(f"Taken for granted: {'; '.join(assumptions)}.", style="dim"), soft_wrap=True)


def _stage_table(stage: Any) -> Table:
    from outscore.train.memory import unit_of

    unit, divisor = unit_of(stage.total)
    title = f"{stage.label} ({stage.algorithm}), {unit}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for phase in stage.phases:
        table.add_column(phase, justify="right", style="bold" if phase == stage.peak else "")
    parts = dict.fromkeys(part for own in stage.phases.values() for part, size in own.items() if size)
    for part in parts:
        sizes = (own.get(part, 0) / divisor for own in stage.phases.values())
        table.add_row(part, *(f"{size:.2f}" if size >= 0.005 else "" for size in sizes))
    table.add_row("total", *(f"{sum(own.values()) / divisor:.2f}" for own in stage.phases.values()))
    return table


def _size(count: int) -> str:
    """Bytes in the unit that suits them.

    >>> _size(3 << 29), _size(5 << 20)
    ('1.50 GiB', '5 MiB')
    """
    return f"{count / 2**30:.2f} GiB" if count >= 1 << 30 else f"{count / 2**20:.0f} MiB"
