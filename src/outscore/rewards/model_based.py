"""Completions scored by a reward model, in batches."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import torch

from outscore.model.heads import RewardModel, completion_scores, is_reward_model, load_reward_model
from outscore.model.load import encode
from outscore.model.probe import with_group_rows
from outscore.model.rows import TrainingGroup, flat_starts, group_rows, separate_rows, split_groups
from outscore.records import Completion
from outscore.rewards.contract import Part, shown_part
from outscore.rewards.shaping import UNCERTAINTY

TOKEN_BUDGET = 16384
"""Tokens scored at once."""


class ModelScorer:
    """A reward function that asks a reward model.

    A reward model that was trained here reads what it was trained on: the prompt as it was rendered for the policy, the
    text, and its end token. Another one reads messages by its own chat template, and plain text as it is, with its end
    of text.

    Args:
        directory: where the model is; None where a stage of the run is to train it, and `locate` will say.
        stage: the name of that stage.
        part: whether it reads whole completions or what follows their chain of thought.
        token_budget: tokens scored at once.
        trust_remote_code: let the model's directory run its own Python code.
    """

    def __init__(
        self,
        directory: Path | None,
        *,
        stage: str = "",
        part: Part = "all",
        token_budget: int = TOKEN_BUDGET,
        trust_remote_code: bool = False,
    ) -> None:
        self.directory = directory
        self.stage = stage
        self._part: Part = part
        self._token_budget = token_budget
        self._trust = trust_remote_code
        self._model: RewardModel | None = None

    def locate(self, directory: Path) -> None:
        """Take the model from here, from now on."""
        if directory != self.directory:
            self.directory, self._model = directory, None

    def __call__(
        self, *, prompts: Sequence[Any], completions: Sequence[Any], rendered_prompts: Sequence[str]
    ) -> list[float]:
        """A score for each completion; equal texts are scored once."""
        is_own = is_reward_model(self._found())
        texts = [
            (rendered if is_own else self._read(prompt), shown_part(completion, self._part))
            for prompt, completion, rendered in zip(prompts, completions, rendered_prompts, strict=True)
        ]
        scores = dict(zip(dict.fromkeys(texts), self._scores(list(dict.fromkeys(texts))), strict=True))
        return [scores[text] for text in texts]

    @property
    def model(self) -> RewardModel:
        """The model, loaded at the first use, on the GPU where there is one."""
        if self._model is None:
            model = load_reward_model(self._found(), trust_remote_code=self._trust)
            torch.nn.Module.to(model.model, "cuda" if torch.cuda.is_available() else "cpu")
            self._model = with_group_rows(model)
        return self._model

    def _found(self) -> Path:
        if self.directory is None:
            raise ValueError(f"the reward model of stage {self.stage!r} is asked for before that stage has run")
        return self.directory

    def _read(self, prompt: Any) -> str:
        if isinstance(prompt, str):
            return prompt
        template = self.model.tokenizer.apply_chat_template
        return str(template(prompt, tokenize=False, add_generation_prompt=True))

    def _scores(self, texts: Sequence[tuple[str, str]]) -> list[float]:
        model = self.model
        read = [(tuple(encode(model.tokenizer, prompt)), closed(model, text)) for prompt, text in texts]
        return beginning_scores(model, [(prompt, [ids]) for prompt, ids in read], self._token_budget)


def closed(model: RewardModel, text: str) -> tuple[int, ...]:
    """The tokens of a text with the model's end token."""
    end = () if model.end_token_id is None else (model.end_token_id,)
    return (*encode(model.tokenizer, text), *end)


@torch.no_grad()
def beginning_scores(
    model: RewardModel, given: Sequence[tuple[tuple[int, ...], Sequence[tuple[int, ...]]]], token_budget: int
) -> list[float]:
    """A score for each of the token sequences that answer each prompt, in order; up to `token_budget` tokens at a
    time. Sequences that are beginnings of others cost nothing where the model takes group rows."""
    groups: list[TrainingGroup] = []
    completions: list[Completion] = []
    for prompt_ids, answers in given:
        first = len(completions)
        completions += [Completion(token_ids=ids, text="", counts=(False,) * len(ids)) for ids in answers]
        numbers = tuple(range(first, len(completions)))
        own = TrainingGroup(prompt_ids=prompt_ids, completions=tuple(completions[first:]), completion_index=numbers)
        groups.append(own)
    starts = flat_starts(completions)
    scores = torch.zeros(len(completions))
    build = group_rows if model.layout == "group_rows" else separate_rows
    for micro in split_groups(groups, token_budget):
        rows = build(micro, starts, model.device)
        scores[rows.ended.cpu()] = completion_scores(model, rows).float().cpu()
    found: list[float] = scores.tolist()
    return found


class Ensemble:
    """A reward function that asks several reward models: the mean of their scores, and as its uncertainty their
    population standard deviation (Coste et al., arXiv 2310.02743).

    Members whose scores are on one scale belong together, as those that were trained here alike are: of preferences
    mean 0 and variance 1, of labels log-odds or ratings.

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
