"""The work that both sides of a benchmark do: the same prompts, the same lengths, the same rewards.

Times are comparable only for equal work. Lengths are fixed here, sample by sample, and each side ends its completions
exactly there; rewards alternate between 0 and 1, so that no group is without contrast, but for groups that a workload
wants `flat`.
"""

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """Shapes of one step."""

    name: str
    num_prompts: int
    group_size: int
    prompt_tokens: int
    shortest: int
    longest: int
    """Completion lengths, the end token included, are spread evenly between these two."""
    kind: Literal["step", "sampling"] = "step"
    """Whether a whole training step is timed or sampling alone, against `generate`."""
    flat_groups: int = 0
    """Groups whose rewards are all equal, which teach nothing."""
    demo_model: bool = False
    """Whether the model is of the demo's size, with random weights, instead of the one that is given."""
    max_rows: int | None = None
    """Completions that Outscore decodes at once; None for its default."""
    token_budget: int | None = None
    """Tokens of one backward pass of Outscore; None for its default."""
    trl_batch: int | None = None
    """Completions of one backward pass of TRL; None for all."""

    @property
    def num_completions(self) -> int:
        return self.num_prompts * self.group_size

    def lengths(self) -> list[int]:
        """The length of every completion, group after group, in an order that no side can profit from."""
        span, count = self.longest - self.shortest, self.num_completions
        spread = [self.shortest + round(i * span / max(count - 1, 1)) for i in range(count)]
        random.Random(0).shuffle(spread)
        return spread

    def rewards(self) -> list[float]:
        """1 and 0 in turn; 0 throughout the last groups, where those are flat."""
        contrasted = (self.num_prompts - self.flat_groups) * self.group_size
        return [float(i % 2 and i < contrasted) for i in range(self.num_completions)]

    def prompts(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Different texts of words that are one token each."""
        words = _words(tokenizer)
        draw = random.Random(1)
        texts = ["".join(draw.choices(words, k=self.prompt_tokens)) for _ in range(self.num_prompts)]
        assert all(len(ids) == self.prompt_tokens for ids in tokenizer(texts)["input_ids"])
        return texts


def _words(tokenizer: PreTrainedTokenizerBase) -> Sequence[str]:
    if len(tokenizer) < 1_000:  # of characters
        return [each for each in string.ascii_lowercase if each in tokenizer.get_vocab()]
    found = []
    for token_id in range(2_000, 12_000):
        text = str(tokenizer.decode([token_id]))
        if text[:1] == " " and text[1:].isalpha() and text.isascii() and tokenizer.encode(text) == [token_id]:
            found.append(text)
    return found


def trial_of(work: Workload) -> Workload:
    """The same at a quarter of the prompts and of the lengths, to try something on."""
    prompts = -(-work.num_prompts // 4)
    return replace(
        work,
        name=f"trial:{work.name}",
        num_prompts=prompts,
        flat_groups=0,
        shortest=max(2, work.shortest // 4),
        longest=max(2, work.longest // 4),
        trl_batch=work.trl_batch and min(work.trl_batch, prompts * work.group_size),
    )


def demo_model(directory: Path) -> Path:
    """A model of the demo's size in a directory, made if it is not there."""
    from outscore.model.tiny import tiny_model

    if not (directory / "config.json").is_file():
        model, tokenizer = tiny_model(string.ascii_lowercase, [], 0)
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    return directory


SHORT = {"group_size": 8, "prompt_tokens": 45, "shortest": 8, "longest": 64}

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(name="short", num_prompts=4, **SHORT),
        Workload(name="long-prompt", num_prompts=2, group_size=16, prompt_tokens=512, shortest=8, longest=64),
        Workload(name="long-tail", num_prompts=8, group_size=8, prompt_tokens=45, shortest=8, longest=256),
        Workload(name="sampling-32", kind="sampling", num_prompts=4, **SHORT),
        Workload(name="sampling-64", kind="sampling", num_prompts=8, **SHORT),
        Workload(name="sampling-128", kind="sampling", num_prompts=16, **SHORT),
        Workload(name="demo", num_prompts=32, group_size=8, prompt_tokens=12, shortest=8, longest=32, demo_model=True),
        Workload(name="half-flat", num_prompts=4, flat_groups=2, **SHORT),
        Workload(
            name="smoke",
            num_prompts=2,
            group_size=2,
            prompt_tokens=4,
            shortest=2,
            longest=4,
            flat_groups=1,
            demo_model=True,
        ),
        Workload(
            name="smoke-sampling",
            kind="sampling",
            num_prompts=2,
            group_size=2,
            prompt_tokens=4,
            shortest=2,
            longest=4,
            demo_model=True,
        ),
    )
}
"""By name. The last two only try whether the sides run."""
ASKED = {
    "short": 6.0,
    "long-prompt": 12.0,
    "long-tail": 10.0,
    "sampling-32": 4.0,
    "sampling-64": 4.0,
    "sampling-128": 4.0,
    "demo": 8.0,
}
"""How many times as fast as the peer a whole step, or sampling, is asked to be."""
