"""The sampler that fits a policy."""

from outscore.model.policy import Policy
from outscore.rollout.engine import GroupEngine
from outscore.rollout.separate import SeparateEngine


def make_sampler(policy: Policy, max_rows: int) -> GroupEngine | SeparateEngine:
    """The built-in sampler for this policy: `GroupEngine` if the model takes group rows, else `SeparateEngine`.

    Args:
        policy: the model, its tokenizer and its stop tokens.
        max_rows: how many completions are decoded at once.
    """
    return (GroupEngine if policy.layout == "group_rows" else SeparateEngine)(policy, max_rows=max_rows)
