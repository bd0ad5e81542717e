"""The command that spends several samples on a question."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import rich.console
import typer
from rich.table import Table

from outscore.cli.common import AsJson, Overrides, Target, explained, print_json


class How(StrEnum):
    """How the chances of steps become a score."""

    min = "min"
    product = "product"
    last = "last"


def search(
    target: Target,
    overrides: Overrides = None,
    reward_model: Annotated[
        Path | None, typer.Option(help="A (process) reward model: RUN/checkpoints/STAGE, or a directory in it.")
    ] = None,
    methods: Annotated[
        str, typer.Option(help="Some of majority, best-of-n, weighted, beam, tree; all that the reward model allows.")
    ] = "",
    budgets: Annotated[str, typer.Option(help="Samples of a problem; tree: beginnings continued.")] = "1,2,4,8,16",
    score: Annotated[How, typer.Option(help="What a solution is worth by the chances of its steps.")] = How.min,
    width: Annotated[int, typer.Option(min=1, help="Beam and tree search: continuations of a beginning.")] = 4,
    recipe: Annotated[str | None, typer.Option(help="Take task, prompt and rewards from this recipe.")] = None,
    task: Annotated[str | None, typer.Option(help="Task by kind; its options follow as task.key=value.")] = None,
    reward: Annotated[str | None, typer.Option(help="The reward that says what is correct.")] = None,
    as_json: AsJson = False,
) -> None:
    """Accuracy against budget: what several samples of a question are worth, chosen among by votes or a reward model.

    Choosing never sees the gold answer. Samples are those that `outscore eval` draws, at evaluation.temperature:
    outscore search runs/prm --reward-model runs/prm/checkpoints/process-reward-model --budgets 1,4,16
    """
    with explained():
        from outscore.train.search import search_target

        asked = [each.strip() for each in methods.split(",") if each.strip()]
        rows = search_target(
            target,
            reward_model=reward_model,
            methods=asked,
            budgets=_numbers(budgets),
            how=score.value,
            width=width,
            recipe=recipe,
            task=task,
            reward=reward,
            overrides=overrides or (),
        )
        if as_json:
            print_json(
                [
                    {
                        "method": row.method,
                        "budget": row.budget,
                        "accuracy": row.accuracy.value,
                        "interval": [row.accuracy.low, row.accuracy.high],
                        "tokens": row.tokens,
                    }
                    for row in rows
                ]
            )
            return
        table = Table(box=None, pad_edge=False)
        for heading in ("method", "budget", "accuracy", "95 % interval", "tokens a problem"):
            table.add_column(heading, justify="left" if heading == "method" else "right")
        for row in rows:
            interval = f"{row.accuracy.low:.1%} to {row.accuracy.high:.1%}"
            table.add_row(row.method, str(row.budget), f"{row.accuracy.value:.1%}", interval, f"{row.tokens:.0f}")
        rich.console.Console().print(table)


def _numbers(text: str) -> list[int]:
    try:
        return [int(each) for each in text.split(",")]
    except ValueError:
        raise ValueError(f"--budgets {text!r} must be whole numbers with commas, such as 1,4,16") from None
