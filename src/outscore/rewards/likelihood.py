"""How likely completions are to a language model, in batches."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch

from outscore.model.frozen import load_frozen
from outscore.model.load import encode
from outscore.model.logprobs import token_logprobs
from outscore.model.policy import Policy
from outscore.model.rows import TrainingGroup, flat_starts, group_rows, separate_rows, split_groups
from outscore.records import Completion
from outscore.rewards.contract import completion_text


class Likelihood:
    """A reward function that asks a language model how likely a completion is.

    The model that the run began with reads what the policy read and wrote, token by token. Another one reads messages
    by its own chat template and plain text as it is, cut into its own tokens.

    Args:
        path: where the model is; "" for the one that the run began with, which `bind` brings.
        token_budget: tokens forwarded at once.
        trust_remote_code: let the model's directory run its own Python code.
    """

    def __init__(self, path: str, *, token_budget: int, trust_remote_code: bool = False) -> None:
        self._path = path
        self._token_budget = token_budget
        self._trust = trust_remote_code
        self._initial: Callable[[], Policy] | None = None
        self._model: Policy | None = None

    def bind(self, initial: Callable[[], Policy] | None) -> None:
        """Take what loads the model that the run began with; None where that is built from scratch."""
        if initial is None and not self._path:
            raise ValueError(
                "reward 'perplexity': this run builds its model from scratch (model.source = 'tiny'), to which all "
                "texts are alike: give the `path` of a model that knows some"
            )
        self._initial = initial

    def __call__(
        self,
        *,
        prompts: Sequence[Any],
        rendered_prompts: Sequence[str],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        log_metric: Callable[[str, float], None],
    ) -> list[float]:
        """exp(mean log-prob) of each completion; equal ones are computed once."""
        read = self._own_tokens if self._path else self._run_tokens
        rows = list(map(read, prompts, rendered_prompts, map(completion_text, completions), completion_ids))
        different = [row for row in dict.fromkeys(rows) if row[1]]
        means = dict(zip(different, self._mean_logprobs(different), strict=True))
        for row in rows:
            if row in means:
                log_metric("perplexity", math.exp(min(-means[row], 700.0)))  # beyond that a float is infinite
        return [math.exp(means[row]) if row in means else 0.0 for row in rows]

    @property
    def model(self) -> Policy:
        """The model, loaded at the first use."""
        if self._model is None and self._path:
            self._model = load_frozen(self._path, trust_remote_code=self._trust)
        elif self._model is None:
            if self._initial is None:
                raise ValueError("there is no run whose first model it could ask: give `path`")
            self._model = self._initial()
            self._model.model.requires_grad_(False)
        return self._model

    def _run_tokens(self, _: Any, rendered: str, text: str, ids: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """Prompt and completion as the policy had them."""
        tokenizer = self.model.tokenizer
        return tuple(encode(tokenizer, rendered)), tuple(ids) or tuple(encode(tokenizer, text))

    def _own_tokens(self, prompt: Any, _: str, text: str, __: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """Prompt and completion as another model reads them, with something before the first token."""
        tokenizer = self.model.tokenizer
        if isinstance(prompt, str):
            around = tokenizer("")["input_ids"]
            opening = tuple(around[:1]) if around and around[0] == tokenizer.bos_token_id else ()
            before = (*opening, *encode(tokenizer, prompt))
        else:
            written = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
            before = tuple(encode(tokenizer, str(written)))
        start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        return before or (int(start or 0),), tuple(encode(tokenizer, text))

    @torch.no_grad()
    def _mean_logprobs(self, rows: Sequence[tuple[tuple[int, ...], ...]]) -> list[float]:
        """The mean log-prob of the tokens of each completion after its prompt."""
        model = self.model
        groups = [
            TrainingGroup(
                prompt_ids=prompt,
                completions=(Completion(token_ids=ids, text="", counts=(True,) * len(ids)),),
                completion_index=(number,),
            )
            for number, (prompt, ids) in enumerate(rows)
        ]
        starts = flat_starts([group.completions[0] for group in groups])
        pack = group_rows if model.layout == "group_rows" else separate_rows
        found = torch.zeros(starts[-1], dtype=torch.float64)
        for micro in split_groups(groups, self._token_budget):
            packed = pack(micro, starts, model.device)
            found[packed.order.cpu()] = token_logprobs(model, packed).logprobs.double().cpu()
        return [float(found[first:last].mean()) for first, last in pairwise(starts)]
