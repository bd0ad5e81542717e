"""Completions scored by a reward model, in batches."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import torch

from outscore.model.heads import RewardModel, completion_scores, is_reward_model, load_reward_model
from outscore.model.load import encode
from outscore.model.rows import TrainingGroup, flat_starts, separate_rows, split_groups
from outscore.records import Completion
from outscore.rewards.contract import completion_text
from outscore.rewards.shaping import UNCERTAINTY

TOKEN_BUDGET = 16384
"""Tokens scored at once."""


class ModelScorer:
    """A reward function that asks a reward model.

    A reward model that was trained here reads what it was trained on: the prompt as it was rendered for the policy, the
    text, and its end token. Another one reads messages by its own chat template, and plain text as it is, with its end
    of text.

    Args:
        directory: where the model is.
        token_budget: tokens scored at once.
        trust_remote_code: let the model's directory run its own Python code.
    """

    def __init__(self, directory: Path, *, token_budget: int = TOKEN_BUDGET, trust_remote_code: bool = False) -> None:
        self.directory = directory
        self._token_budget = token_budget
        self._trust = trust_remote_code
        self._is_own = is_reward_model(directory)
        self._model: RewardModel | None = None

    def __call__(
        self, *, prompts: Sequence[Any], completions: Sequence[Any], rendered_prompts: Sequence[str]
    ) -> list[float]:
        """A score for each completion; equal texts are scored once."""
        texts = [
            (rendered if self._is_own else self._read(prompt), completion_text(completion))
            for prompt, completion, rendered in zip(prompts, completions, rendered_prompts, strict=True)
        ]
        scores = dict(zip(dict.fromkeys(texts), self._scores(list(dict.fromkeys(texts))), strict=True))
        return [scores[text] for text in texts]

    @property
    def model(self) -> RewardModel:
        """The model, loaded at the first use, on the GPU where there is one."""
        if self._model is None:
            self._model = load_reward_model(self.directory, trust_remote_code=self._trust)
            torch.nn.Module.to(self._model.model, "cuda" if torch.cuda.is_available() else "cpu")
        return self._model

    def _read(self, prompt: Any) -> str:
        if isinstance(prompt, str):
            return prompt
        template = self.model.tokenizer.apply_chat_template
        return str(template(prompt, tokenize=False, add_generation_prompt=True))

    @torch.no_grad()
    def _scores(self, texts: Sequence[tuple[str, str]]) -> list[float]:
        model = self.model
        end = () if model.end_token_id is None else (model.end_token_id,)
        groups = []
        for number, (prompt, text) in enumerate(texts):
            ids = (*encode(model.tokenizer, text), *end)
            completion = Completion(token_ids=ids, text=text, counts=(True,) * len(ids))
            prompt_ids = tuple(encode(model.tokenizer, prompt))
            groups.append(TrainingGroup(prompt_ids=prompt_ids, completions=(completion,), completion_index=(number,)))
        starts = flat_starts([group.completions[0] for group in groups])
        scores = torch.zeros(len(texts))
        for micro in split_groups(groups, self._token_budget):
            rows = separate_rows(micro, starts, model.device)
            scores[rows.ended.cpu()] = completion_scores(model, rows).float().cpu()
        found: list[float] = scores.tolist()
        return found


class Ensemble:
    """A reward function that asks several reward models: the mean of their scores, and as its uncertainty their
    population standard deviation (spec A57; Coste et al., arXiv 2310.02743).

    Members whose scores are on one scale belong together, as those that were trained here are: mean 0 and variance 1.

    Args:
        members: the models.
    """

    def __init__(self, members: Sequence[ModelScorer]) -> None:
        self.members = tuple(members)

    def __call__(
        self,
        *,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        rendered_prompts: Sequence[str],
        log_extra: Callable[[str, Sequence[float]], None],
    ) -> list[float]:
        """The mean score of each completion."""
        asked = {"prompts": prompts, "completions": completions, "rendered_prompts": rendered_prompts}
        by_completion = list(zip(*(member(**asked) for member in self.members), strict=True))
        log_extra(UNCERTAINTY, [pstdev(scores) for scores in by_completion])
        return [fmean(scores) for scores in by_completion]
