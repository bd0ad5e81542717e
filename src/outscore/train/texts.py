"""Plain text in an evaluation: how well the policy predicts documents it was not trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from outscore.model.policy import Policy
from outscore.objectives.estimators import Estimate
from outscore.records import DemonstrationGroup
from outscore.train.activity import Tell, tell_nobody
from outscore.train.demonstrations import demonstration_batch
from outscore.train.step import batch_logprobs


@dataclass(frozen=True, kw_only=True)
class TextMeasure:
    """`text_logprob`: the mean log-prob of a token of held-out text, in nats; exp(-text_logprob) is the perplexity."""

    pieces: Sequence[DemonstrationGroup]
    """Held-out text, in pieces as it is trained on."""
    policy: Policy
    """The model as it stands when `run` is called."""
    token_budget: int
    """Tokens forwarded at once."""

    @property
    def num_problems(self) -> int:
        """How many pieces there are."""
        return len(self.pieces)

    def run(self, tell: Tell = tell_nobody) -> Mapping[str, Estimate | float]:
        """The mean over tokens."""
        tell("reading held-out text")
        batch = demonstration_batch(self.pieces)
        logprobs = batch_logprobs(self.policy, batch, batch.groups, self.token_budget)
        return {"text_logprob": float(logprobs.double().mean())}
