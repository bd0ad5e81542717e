"""A judge's model on this machine: loaded from a directory and asked greedily, all questions at once, by the engine
that samples in training."""

from collections.abc import Sequence
from typing import Any

from outscore.model.frozen import load_frozen
from outscore.model.load import encode, weights_sha256
from outscore.model.policy import Policy
from outscore.records import Message, Problem, Prompt, SampleRequest, SamplingParams
from outscore.rewards.endpoint import Budget, KeptAnswers, Reply, told_once
from outscore.rollout import make_sampler

ROWS = 64
"""Answers decoded at once."""


class LocalModel:
    """Answers questions with a causal language model, at temperature 0.

    Args:
        path: a model's directory, a .gguf file or a hub id.
        max_new_tokens: how long an answer may be.
        budget: what may be spent; a question is a call, its tokens and the answer's count.
        cache: a directory for answers, kept by what the weights are; "" for none.
        trust_remote_code: let the model's directory run its own Python code.
    """

    def __init__(
        self, path: str, *, max_new_tokens: int, budget: Budget, cache: str = "", trust_remote_code: bool = False
    ) -> None:
        self._path = path
        self._params = SamplingParams(max_new_tokens=max_new_tokens, temperature=0.0)
        self._budget = budget
        self._kept = KeptAnswers(cache)
        self._trust = trust_remote_code
        self._model: tuple[Policy, str] | None = None

    def ask_all(self, questions: Sequence[Sequence[Message]], *, attempt: int = 0) -> list[Reply | Exception]:
        """The answer to each question; equal ones are asked once. A greedy answer is the same at every attempt.

        Returns BudgetError in the place of what may not be spent any more, and ValueError in that of a question the
        model cannot read.
        """
        texts = [self._rendered(question) for question in questions]
        known = {text: self._kept.look_up(self._key(text)) for text in dict.fromkeys(texts)}
        said: dict[str, Reply | Exception] = {}
        asked: dict[str, tuple[int, ...]] = {}
        for text, answer in known.items():
            if answer is not None:
                said[text] = Reply(text=answer, num_tokens=0, cached=True)
                continue
            try:
                asked[text] = self._token_ids(text)
                self._budget.spend_call()
            except (RuntimeError, ValueError) as error:
                said[text] = error
                asked.pop(text, None)
        said |= self._answered(asked)
        return told_once(texts, said)

    def _answered(self, asked: dict[str, tuple[int, ...]]) -> dict[str, Reply]:
        if not asked:
            return {}
        requests = [
            SampleRequest(prompt=Prompt(problem=_problem(text), text=text, token_ids=ids), num_samples=1, slot=slot)
            for slot, (text, ids) in enumerate(asked.items())
        ]
        sampled = make_sampler(self.model, ROWS).sample(requests, self._params, seed=0, step=0)
        replies = {}
        for (text, ids), group in zip(asked.items(), sampled, strict=True):
            completion = group.completions[0].completion
            used = len(ids) + len(completion.token_ids)
            self._budget.spent(used)
            self._kept.keep(self._key(text), completion.text, {"model": self._path})
            replies[text] = Reply(text=completion.text, num_tokens=used, cached=False)
        return replies

    @property
    def model(self) -> Policy:
        """The model, loaded at the first question."""
        return self._loaded()[0]

    def _loaded(self) -> tuple[Policy, str]:
        if self._model is None:
            model = load_frozen(self._path, trust_remote_code=self._trust)
            self._model = model, weights_sha256(model.model)
        return self._model

    def _key(self, text: str) -> str:
        return KeptAnswers.key([self._loaded()[1], text, self._params.max_new_tokens])

    def _rendered(self, question: Sequence[Message]) -> str:
        """A question by the model's chat template, else its messages' text alone."""
        tokenizer = self.model.tokenizer
        if not tokenizer.chat_template:
            return "\n".join(str(message["content"]) for message in question)
        messages: list[dict[str, Any]] = [dict(message) for message in question]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _token_ids(self, text: str) -> tuple[int, ...]:
        ids = tuple(encode(self.model.tokenizer, text))
        longest, room = self.model.context_length, self._params.max_new_tokens
        if longest is not None and len(ids) + room > longest:
            raise ValueError(
                f"the judge {self._path} holds {longest} tokens, and a question of {len(ids)} leaves no room for "
                f"{room} more: shorten completions, or lower max_new_tokens"
            )
        return ids


def _problem(text: str) -> Problem:
    return Problem(id="judged", question=text, answer=None, columns={})
