"""The nouns of Outscore: one frozen record for each seam between two rooms.

A new type for each stage; a record never gains a field that a later stage fills in. Everything is a *group*: one
prompt with the completions that answer it and what is known of each.

    tasks -> Problem -> Prompt            (rendered and tokenised)
    rollout -> SampledGroup               (G completions, each with the log-probs it was sampled with)
    rewards -> ScoredGroup                (each completion with a Score or a ScoringFailure)
    tasks -> DemonstrationGroup           (one completion that is to be imitated)
    tasks -> RankedGroup                  (K completions in the order they were liked, ties allowed)
    tasks, rollout -> LabelledGroup       (a completion with a label for each of its steps)

Axis words: token, completion, group. Log-probs are natural logarithms.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Finish = Literal["stop", "length", "pause"]
"""Why a completion ended: it sampled a stop token, reached the limit of new tokens, or wrote a text after which it was
to wait."""

Message = Mapping[str, str]
"""One chat turn, `{"role": "user", "content": "..."}`, as Hugging Face chat templates take it."""

PYTHON = "python"
"""The `kind` under which a run's config keeps a task or reward that was given from Python as an object; no file can
name it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A question as a task states it, before any template or tokenizer has touched it.

    >>> Problem(id="arithmetic/17", question="325-28-20", answer="277", columns={"terms": 3})
    """

    id: str
    """Unique within the task and stable over runs: it keys sampling, files and the page of one prompt over time."""
    question: str | tuple[Message, ...]
    """Plain text, or chat messages for conversational data."""
    answer: str | None
    """The gold answer, or None where the reward needs none."""
    columns: Mapping[str, Any]
    """Every other column of the data; reward functions receive them by name."""
    population: str | None = None
    """The labeler, demographic or domain group the problem belongs to, if the data say so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Demonstration:
    """A problem with a response to imitate (supervised fine-tuning)."""

    problem: Problem
    """The question that was answered."""
    response: str
    """The text of the answer, without a stop token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """A problem with responses in the order somebody liked them: a preference pair, or K responses with ties.

    >>> Ranking(problem=problem, responses=("good", "bad", "as bad"), ranks=(0, 1, 1))
    """

    problem: Problem
    """The question that was answered."""
    responses: tuple[str, ...]
    """The texts, without stop tokens; at least two."""
    ranks: tuple[int, ...]
    """The rank of each, 0 for the best; equal ranks are a tie."""

    def __post_init__(self) -> None:
        assert len(self.ranks) == len(self.responses) >= 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Rating:
    """A problem with one response and the reward it should have."""

    problem: Problem
    """The question that was answered."""
    response: str
    """The text, without a stop token."""
    reward: float
    """What a reward model should say of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledSolution:
    """A problem with a solution in steps, and what somebody said of each step (as PRM800K)."""

    problem: Problem
    """The question that was answered."""
    steps: tuple[str, ...]
    """The texts of the steps, in order; together they are the solution."""
    labels: tuple[float | None, ...]
    """For each step the chance that it is right, 1 or 0 where somebody said so; None where they said neither."""

    def __post_init__(self) -> None:
        assert len(self.labels) == len(self.steps)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A problem rendered by the prompt template and tokenised: exactly what the model reads.

    >>> Prompt(problem=problem, text="325-28-20=", token_ids=(7, 6, 9, 2, 5))
    """

    problem: Problem
    """Where the prompt comes from."""
    text: str
    """The rendered prompt, templates and special tokens included."""
    token_ids: tuple[int, ...]
    """Its tokens; never empty, never padded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One answer to a prompt, as tokens and as text."""

    token_ids: tuple[int, ...]
    """Its tokens *including the stop token* when there is one; never padded."""
    text: str
    """The decoded text, without special tokens."""
    counts: tuple[bool, ...]
    """For each token, whether it carries loss. Every token that a sampler here draws does; in completions made by other
    code, tool output and user turns do not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledCompletion:
    """A completion drawn from a policy."""

    completion: Completion
    """Tokens and text."""
    sampler_logprobs: tuple[float, ...]
    """Per token, its log-prob under the distribution really sampled from (temperature and truncation applied)."""
    finish: Finish
    """`stop` or `length`."""
    policy_version: int
    """How many optimizer steps the sampled policy had taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepScore:
    """The reward of one step of a completion, paid at the token that ends it.

    >>> StepScore(end=11, reward=0.9)
    """

    end: int
    """The step's last token, by its index among the completion's."""
    reward: float
    """What the step earned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """What the rewards said about one completion.

    >>> Score(reward=1.5, parts={"format": 0.5, "answer": 1.0})
    """

    reward: float
    """The total that training sees: the weighted sum of the parts, one that does not apply counting as its mean over
    the group."""
    parts: Mapping[str, float | None]
    """Each reward by name, before shaping and weighting; None where a reward said it does not apply."""
    steps: tuple[StepScore, ...] = ()
    """The total as it was earned, in order, where a reward scores steps: these add up to `reward`, and what has no
    steps of its own is paid at the last token. Empty where no reward does."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """Rewards that failed, and whose part is the constant that the recipe puts in their place -> what happened."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoringFailure:
    """A completion that could not be scored: a value, never a silent zero."""

    reward_name: str
    """Which reward failed."""
    reason: str
    """What happened, in a sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemonstrationGroup:
    """A group of one: a prompt and the completion to imitate."""

    prompt: Prompt
    """What the model reads."""
    completion: Completion
    """What it should have written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankedGroup:
    """A prompt with K completions in the order somebody liked them."""

    prompt: Prompt
    """What the model reads."""
    completions: tuple[Completion, ...]
    """The answers; at least two."""
    ranks: tuple[int, ...]
    """The rank of each, 0 for the best; equal ranks are a tie."""

    def __post_init__(self) -> None:
        assert len(self.ranks) == len(self.completions) >= 2


GivenGroup = DemonstrationGroup | RankedGroup
"""A group whose completions were given, and not sampled, to train a policy on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledGroup:
    """A group of one: a prompt and a completion, with a number for some of its beginnings, such as a label for each
    step, or for all of it.

    >>> LabelledGroup(prompt=prompt, completion=completion, ends=(4, 11), labels=(1.0, 0.25))
    """

    prompt: Prompt
    """What the model reads."""
    completion: Completion
    """The answer."""
    ends: tuple[int, ...]
    """The last token of each beginning, by its index among the completion's; rising."""
    labels: tuple[float, ...]
    """What each is: the chance that the step which ends there is right, or a rating."""

    def __post_init__(self) -> None:
        assert len(self.ends) == len(self.labels)


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledGroup:
    """One prompt with the G completions that were sampled for it, not yet scored."""

    prompt: Prompt
    """The prompt all completions share."""
    completions: tuple[SampledCompletion, ...]
    """In sample order: index i is sample i of the group."""
    slot: int
    """The group's place in its step; with `attempt` it keys the random draws."""
    attempt: int
    """0 for the first draw of this slot, 1 and up for refills."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredGroup:
    """A sampled group with a score, or a failure, for each completion."""

    sampled: SampledGroup
    """The prompt and its completions."""
    scores: tuple[Score | ScoringFailure, ...]
    """One for each completion, in the same order."""

    def __post_init__(self) -> None:
        assert len(self.scores) == len(self.sampled.completions)


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How completions are drawn. Filters apply in the order temperature, top-k, top-p, min-p, then renormalise."""

    max_new_tokens: int
    """Limit on new tokens, the stop token included."""
    temperature: float = 1.0
    """Divides the logits; 0 means greedy decoding, whose sampler log-probs are 0."""
    top_k: int = 0
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of most probable tokens whose probability reaches p; 1 keeps all."""
    min_p: float = 0.0
    """Keep tokens at least this fraction as probable as the most probable one; 0 keeps all."""
    until: tuple[str, ...] = ()
    """Texts that end a completion once it has written one of them, with finish `pause`: where a step ends."""

    @property
    def truncates(self) -> bool:
        """Whether top-k, top-p or min-p can remove tokens, so that the sampled distribution is not the policy's own."""
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRequest:
    """A group to be sampled: the unit the engine is asked for."""

    prompt: Prompt
    """What to complete."""
    num_samples: int
    """How many completions: the group size G."""
    slot: int
    """The group's place in its step."""
    attempt: int = 0
    """0 for the first draw of this slot, 1 and up for refills."""
    max_new_tokens: int | None = None
    """A limit of this group's own, below that of the parameters: what is left of an answer that has begun."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """What one optimizer step did. Metrics are (sum, count) pairs so that they reduce over micro-batches and ranks."""

    step: int
    """1 for the first step of the stage."""
    policy_version: int
    """Optimizer updates taken so far."""
    metrics: Mapping[str, tuple[float, float]]
    """Name -> (sum, count); the value shown is sum / count."""
    seconds: Mapping[str, float]
    """Wall-clock by phase: sample, score, update, save, evaluate."""
    num_tokens: int
    """Completion tokens sampled or imitated in this step."""
    peak_bytes: Mapping[str, int] = field(default_factory=dict)
    """The most memory held since the process began: `rss`, and `cuda` where there is a GPU."""

    def mean(self, name: str) -> float:
        """The value of a metric; NaN when nothing was counted."""
        total, count = self.metrics[name]
        return total / count if count else float("nan")
