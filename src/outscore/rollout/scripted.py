"""A sampler that says what it is told to: for tests of rewards, tasks and training loops without a model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from outscore.records import Completion, Prompt, SampledCompletion, SampledGroup, SampleRequest, SamplingParams
from outscore.rollout.completions import check_requests, groups, token_limit, wrote_one_of
from outscore.rollout.protocol import OnFinished


class ScriptTokenizer(Protocol):
    """What the script needs of a tokenizer; any Hugging Face tokenizer has it."""

    eos_token_id: int

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Text to token ids."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Token ids to text."""
        ...


class ScriptedSampler:
    """Returns given completions. Implements `Sampler`.

    Args:
        script: for each problem id the texts of its samples, sample i taking text i modulo their number; or a function
            of (prompt, sample index) that returns the text.
        tokenizer: turns texts into tokens; its end-of-sequence token is the stop token.
        logprob: the log-prob every token claims to have been sampled with.

    >>> sampler = ScriptedSampler({"arithmetic/17": ["<answer>277</answer>", "no idea"]}, tokenizer)
    """

    def __init__(
        self,
        script: Mapping[str, Sequence[str]] | Callable[[Prompt, int], str],
        tokenizer: ScriptTokenizer,
        *,
        logprob: float = -1.0,
    ) -> None:
        self._script = script
        self._tokenizer = tokenizer
        self._logprob = logprob
        self.policy_version = 0
        """Completions carry it."""

    def sample(
        self,
        requests: Sequence[SampleRequest],
        params: SamplingParams,
        *,
        seed: int,
        step: int,
        on_finished: OnFinished | None = None,
    ) -> list[SampledGroup]:
        """See `Sampler.sample`. Texts longer than `max_new_tokens` are cut there, without a stop token; seed and step
        are not used, and a temperature of 0 makes the log-probs 0.

        Raises:
            ValueError: if the script has nothing for a problem.
        """
        check_requests(requests, params, None)
        finished: dict[tuple[int, int], SampledCompletion] = {}
        for index, request in enumerate(requests):
            for sample in range(request.num_samples):
                completion = finished[index, sample] = self._completion(request, sample, params)
                if on_finished is not None:
                    on_finished(index, sample, completion)
        return groups(requests, finished)

    def _text(self, prompt: Prompt, sample: int) -> str:
        if callable(self._script):
            return self._script(prompt, sample)
        texts = self._script.get(prompt.problem.id)
        if not texts:
            raise ValueError(
                f"the script has no completion for problem {prompt.problem.id!r}; it has {sorted(self._script)}"
            )
        return texts[sample % len(texts)]

    def _completion(self, request: SampleRequest, sample: int, params: SamplingParams) -> SampledCompletion:
        ids = [
            *self._tokenizer.encode(self._text(request.prompt, sample), add_special_tokens=False),
            self._tokenizer.eos_token_id,
        ]
        limit = token_limit(request, params)
        pauses = (t for t in range(len(ids) - 1) if wrote_one_of(params.until, ids[: t + 1], self._tokenizer.decode))
        waits = next(pauses, limit) if params.until else limit
        kept = tuple(ids[: min(limit, waits + 1)])
        return SampledCompletion(
            completion=Completion(
                token_ids=kept,
                text=self._tokenizer.decode(kept, skip_special_tokens=True),
                counts=(True,) * len(kept),
            ),
            sampler_logprobs=(self._logprob if params.temperature > 0 else 0.0,) * len(kept),
            finish="stop" if len(kept) == len(ids) else "length" if len(kept) == limit else "pause",
            policy_version=self.policy_version,
        )
