"""One completion, token by token: what it is, how likely it was if it was drawn, and how hard training pulled at it."""

from collections.abc import Callable, Sequence
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from outscore.report.rows import CompletionRow
from outscore.report.run import RunDirectory
from outscore.report.text import shorten, visible

Pieces = Callable[[Sequence[int]], list[str]]
"""Token ids -> the text of each."""


def token_view(row: CompletionRow, pieces: Pieces, width: int) -> RenderableType:
    """A table with a line for each token: its text, its log-prob where it was drawn, and its coefficient.

    The coefficient is the one on the gradient of the token's log-prob in the step's first pass over it, weight
    included: the update ascends the sum of coefficient * log-prob over all tokens, before the gradient is clipped.
    """
    head = Text(shorten(f"completion {row.sample} of {visible(row.problem_id)}: {_worth(row)}", width))
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("", justify="right", width=5)
    table.add_column("token", width=max(12, min(40, width - 5 - 12 - 14 - 10 - 4)), no_wrap=True)
    drawn = row.sampler_logprobs
    if drawn is not None:
        table.add_column("log-prob", justify="right", width=12)
    table.add_column("coefficient", justify="right", width=14)
    steps = dict(zip(row.step_ends or (), row.step_rewards or (), strict=True))
    if steps:
        table.add_column("step", justify="right", width=10)
    for t, piece in enumerate(pieces(row.token_ids)):
        logprob = [] if drawn is None else [Text(f"{drawn[t]:.3f}")]
        step = [Text(f"{steps[t]:.4g}" if t in steps else "")] if steps else []
        table.add_row(Text(str(t)), Text(visible(piece)), *logprob, _coefficient(row, t), *step)
    return Group(head, table)


def _worth(row: CompletionRow) -> str:
    if row.was_given:
        return "given" if row.rank is None else f"given, rank {row.rank}"
    reward = "not scored" if row.reward is None else f"reward {row.reward:.4g}"
    return f"{reward}, " + ("left out of training" if row.advantage is None else f"advantage {row.advantage:+.4f}")


def _coefficient(row: CompletionRow, t: int) -> Text:
    if row.coefficients is None or not row.counts[t]:
        return Text("–")
    value = row.coefficients[t]
    return Text(f"{value:+.3e}" if value else "0", style="green" if value > 0 else "red" if value < 0 else "")


def pieces_of(directory: RunDirectory) -> Pieces:
    """Decodes tokens one by one with the tokenizer of the run's newest checkpoint; `#7` where there is none."""
    files = [item.path / "tokenizer.json" for item in directory.checkpoints()]
    found = [file for file in files if file.is_file()]
    return _decoder(found[-1]) if found else lambda ids: [f"#{token}" for token in ids]


def _decoder(file: Path) -> Pieces:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))

    def decode(ids: Sequence[int]) -> list[str]:
        return [tokenizer.decode([token], skip_special_tokens=False) for token in ids]

    return decode
