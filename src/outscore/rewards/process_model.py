"""Completions scored step by step by a process reward model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from outscore.model.heads import RewardModel, is_reward_model
from outscore.model.load import encode
from outscore.model.steps import decoder, solution_score, split_steps, step_ends
from outscore.rewards.contract import completion_text
from outscore.rewards.model_based import TOKEN_BUDGET, ModelScorer, beginning_scores, closed


class StepScorer(ModelScorer):
    """A reward function that asks a process reward model, which was trained here.

    It reads the rendered prompt and the policy's own tokens; where it is given none, or others than the text has, those
    of the text with its end token.

    Args:
        directory: where the model is; None where a stage of the run is to train it.
        stage: the name of that stage.
        score: what becomes of the chances of a completion's steps: the smallest, their product, the last, or all of
            them, each with its step's last token.
        token_budget: tokens scored at once.
    """

    def __init__(
        self,
        directory: Path | None,
        *,
        stage: str = "",
        score: Literal["min", "product", "last", "steps"] = "min",
        token_budget: int = TOKEN_BUDGET,
    ) -> None:
        super().__init__(directory, stage=stage, token_budget=token_budget)
        self._score = score
        if directory is not None and not is_reward_model(directory):
            raise ValueError(
                f"reward 'process_reward_model': path = {str(directory)!r} holds no process reward model that was "
                "trained here; train one with a stage process-reward-model"
            )

    def __call__(  # type: ignore[override]  # a reward function names the arguments it is given
        self, *, completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], rendered_prompts: Sequence[str]
    ) -> list[Any]:
        """For each completion its score, or its steps as (last token, chance); equal ones are scored once."""
        read = [
            (prompt, *self._tokens(completion_text(completion), tuple(ids)))
            for prompt, completion, ids in zip(rendered_prompts, completions, completion_ids, strict=True)
        ]
        distinct = list(dict.fromkeys((prompt, ids) for prompt, ids, _ in read))
        found = dict(zip(distinct, self.steps(distinct), strict=True))
        rewards: list[Any] = []
        for prompt, ids, is_own in read:
            steps = found[prompt, ids]
            if self._score != "steps":
                rewards.append(solution_score([chance for _, chance in steps], self._score))
                continue
            if not is_own:
                raise ValueError(
                    "score: steps pays at the policy's tokens, and their text by the process reward model's tokenizer "
                    "is not the completion: train it on this policy"
                )
            rewards.append(steps)
        return rewards

    def steps(self, given: Sequence[tuple[str, tuple[int, ...]]]) -> list[list[tuple[int, float]]]:
        """For each (rendered prompt, tokens) the steps, as (index of the last token, chance that the step is right)."""
        model = self.model
        separators = model.separators
        if separators is None:
            raise ValueError(
                f"{self.directory} is a reward model of whole completions: it scores no steps; use `reward_model`"
            )
        decode = decoder(model.tokenizer)
        ends = [sorted(set(step_ends(split_steps(decode(ids), separators), ids, decode))) for _, ids in given]
        asked = [
            (tuple(encode(model.tokenizer, prompt)), [ids[: end + 1] for end in own])
            for (prompt, ids), own in zip(given, ends, strict=True)
        ]
        scores = iter(torch.tensor(beginning_scores(model, asked, self._token_budget)).sigmoid().tolist())
        return [[(end, next(scores)) for end in own] for own in ends]

    def _tokens(self, text: str, ids: tuple[int, ...]) -> tuple[tuple[int, ...], bool]:
        """The tokens to read, and whether they are the policy's."""
        model: RewardModel = self.model
        if ids and max(ids) < model.vocab_size and decoder(model.tokenizer)(ids) == text:
            return ids, True
        return closed(model, text), False
