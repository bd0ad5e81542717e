"""The work that both sides of a benchmark do: the same prompts, the same lengths, the same rewards.

Times are comparable only for equal work. Lengths are fixed here, sample by sample, and each side ends its completions
exactly there; rewards alternate between 0 and 1, so that no group is without contrast.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

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
        """1 and 0 in turn."""
        return [float(i % 2) for i in range(self.num_completions)]

    def prompts(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Different texts of words that are one token each."""
        words = _words(tokenizer)
        draw = random.Random(1)
        texts = ["".join(draw.choices(words, k=self.prompt_tokens)) for _ in range(self.num_prompts)]
        assert all(len(ids) == self.prompt_tokens for ids in tokenizer(texts)["input_ids"])
        return texts


def _words(tokenizer: PreTrainedTokenizerBase) -> Sequence[str]:
    found = []
    for token_id in range(2_000, 12_000):
        text = str(tokenizer.decode([token_id]))
        if text[:1] == " " and text[1:].isalpha() and text.isascii() and tokenizer.encode(text) == [token_id]:
            found.append(text)
    return found


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(name="short", num_prompts=4, group_size=8, prompt_tokens=45, shortest=8, longest=64),
        Workload(name="long-prompt", num_prompts=2, group_size=16, prompt_tokens=512, shortest=8, longest=64),
        Workload(name="long-tail", num_prompts=8, group_size=8, prompt_tokens=45, shortest=8, longest=256),
    )
}
"""By name."""
