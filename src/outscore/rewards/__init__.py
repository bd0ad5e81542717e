"""Completion -> score: the reward contract, built-in rules, composition."""

from outscore.rewards.answers import boxed, extract_answer, last_number, parse_number, tag_content
from outscore.rewards.builtin import BUILTIN_REWARDS
from outscore.rewards.compose import Rewards, ScoringResult
from outscore.rewards.contract import Reward, RewardError, TrainerState
from outscore.rewards.loading import make_reward

__all__ = [
    "BUILTIN_REWARDS",
    "Reward",
    "RewardError",
    "Rewards",
    "ScoringResult",
    "TrainerState",
    "boxed",
    "extract_answer",
    "last_number",
    "make_reward",
    "parse_number",
    "tag_content",
]
