"""Small groups to score."""

from collections.abc import Mapping, Sequence
from typing import Any

from outscore.records import Completion, Problem, Prompt, SampledCompletion, SampledGroup, Score
from outscore.rewards import Rewards


def group(
    *texts: str,
    answer: str | None = "277",
    question: Any = "325-28-20=",
    columns: Mapping[str, Any] | None = None,
    id: str = "p/1",
    slot: int = 0,
) -> SampledGroup:
    """One prompt with these completions; token ids are the characters' code points."""
    problem = Problem(id=id, question=question, answer=answer, columns=columns or {})
    drawn: Sequence[SampledCompletion] = [
        SampledCompletion(
            completion=Completion(token_ids=tuple(map(ord, text)), text=text, counts=(True,) * len(text)),
            sampler_logprobs=(-0.5,) * len(text),
            finish="stop",
            policy_version=0,
        )
        for text in texts
    ]
    return SampledGroup(
        prompt=Prompt(problem=problem, text="rendered", token_ids=(1,)), completions=tuple(drawn), slot=slot, attempt=0
    )


def scores(spec: Any, *texts: str, **problem: Any) -> list[float | None]:
    """The reward's own values for completions of one problem; None also where it failed."""
    rewards = Rewards([spec], on_failure="exclude")
    [scored] = rewards.score([group(*texts, **problem)], step=1).groups
    return [score.parts[rewards.names[0]] if isinstance(score, Score) else None for score in scored.scores]
