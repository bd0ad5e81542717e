"""Commands that look at models, runs and completions."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import rich.console
import typer
from rich.text import Text

from outscore.cli.common import AsJson, Overrides, Target, explained, print_json


def evaluate(
    target: Target,
    overrides: Overrides = None,
    recipe: Annotated[str | None, typer.Option(help="Take task, prompt and rewards from this recipe.")] = None,
    task: Annotated[str | None, typer.Option(help="Task by kind; its options follow as task.key=value.")] = None,
    reward: Annotated[str | None, typer.Option(help="The reward that says what is correct.")] = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a model or run on held-out problems: greedy accuracy, pass@k and maj@k with 95 % intervals.

    A run is evaluated at its best checkpoint, with its own prompt, and on its own task and rewards unless others are
    given; one that trained on preferences and has no rewards, on held-out preferences. For a model say which task:
    outscore eval models/smollm2-135m --task reasoning_gym task.dataset=chain_sum --reward last_number

    On a file of your own, all of whose rows are asked:
    outscore eval models/smollm2-135m --task data task.eval_path=test.jsonl --reward last_number
    """
    with explained():
        from outscore.report.evaluation import to_line
        from outscore.report.populations import population_table
        from outscore.report.views import evaluation_table
        from outscore.train.inspect import evaluate_target, last_population_weights

        say = rich.console.Console(stderr=True).print
        found, weights = evaluate_target(
            target, recipe=recipe, task=task, reward=reward, overrides=overrides or (), say=say
        )
        last_weights = last_population_weights(target) if recipe is None and task is None else {}
        if as_json:
            print_json({**to_line(found), "weights_sha256": weights, "population_weights": last_weights})
        else:
            out = rich.console.Console()
            out.print(evaluation_table([found], weights, min(out.width, 120)))
            if (table := population_table(found, last_weights)) is not None:
                out.print(table)


def score(
    reward: Annotated[
        list[str],
        typer.Option(help="A reward by name, as file.py:function, or as {name: …, option: …}; may be repeated."),
    ],
    data: Annotated[Path, typer.Option(help="A JSONL, JSON, CSV or Parquet file with a column `completion`.")],
    as_json: AsJson = False,
) -> None:
    """Score a file of completions with rewards: a table, and a histogram of each.

    A column `question` or `prompt`, `answer` and every other reach the rewards as in training. A run's own completions
    are such a file:
    outscore score --reward fluency --data runs/demo/groups/grpo/step-000010.parquet
    """
    with explained():
        from outscore.train.score import score_file, spreads

        rows, logged = score_file(data, reward)
        found = spreads(rows, list(rows[0].parts))
        if as_json:
            summaries = {each.name: each.summary() for each in found}
            means = {name: total / count for name, (total, count) in logged.items()}
            print_json({"summary": summaries, "logged": means, "rows": [asdict(row) for row in rows]})
        else:
            _print_scores(rows, found)
        if all(row.failure is not None for row in rows):
            raise typer.Exit(1)


def show(
    run: Annotated[Path, typer.Argument(help="The run directory.")],
    stage: Annotated[str | None, typer.Option(help="Only this stage.")] = None,
    step: Annotated[int | None, typer.Option(help="Show groups of this step.")] = None,
    best: Annotated[bool, typer.Option("--best", help="Show the groups with the highest reward.")] = False,
    worst: Annotated[bool, typer.Option("--worst", help="Show the groups with the lowest reward.")] = False,
    prompt: Annotated[str | None, typer.Option(help="Show one problem (its id) over the steps.")] = None,
    sample: Annotated[
        int | None,
        typer.Option(help="Of the groups shown, this completion (from 0) token by token, with coefficients."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look at a run, also while it is training: summary, curves, and the completions behind them."""
    with explained():
        from outscore.report import show_run

        show_run(run, stage=stage, step=step, best=best, worst=worst, prompt=prompt, sample=sample, as_json=as_json)


def chat(
    target: Target,
    overrides: Overrides = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(help="Limit on new tokens.")] = 256,
) -> None:
    """Talk to a model or to a run's best checkpoint, prompted as the run prompts it. An empty line or Ctrl-D ends.

    Settings can be changed as in a recipe: prompt.system="Be brief." prompt.template=r1-zero
    """
    with explained():
        from outscore.train.inspect import Chat

        partner = Chat(target, temperature=temperature, max_new_tokens=max_new_tokens, overrides=overrides or ())
        out = rich.console.Console()
        while True:
            try:
                question = out.input("[bold]you>[/bold] ")
            except (EOFError, KeyboardInterrupt):
                return
            if not question.strip():
                return
            try:
                out.print(Text(partner.answer(question)), soft_wrap=True)
            except ValueError as error:
                out.print(Text(f"error: {error}", style="red"), soft_wrap=True)


def _print_scores(rows: Any, spreads: Any) -> None:
    from outscore.report.spread import histogram, spread_table

    out = rich.console.Console()
    out.print(spread_table({each.name: each.summary() for each in spreads}))
    for each in spreads:
        for line in histogram(each.name, each.histogram(10), min(out.width, 80)):
            out.print(line)
    failed = [row for row in rows if row.failure is not None]
    if failed:
        out.print(Text(f"{len(failed)} could not be scored, the first: {failed[0].where}: {failed[0].failure}", "red"))
