"""A process reward model as a reward: steps of the policy's own tokens, and what becomes of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from train.building import tiny_policy
from transformers import AutoModelForSequenceClassification

from outscore.model.heads import reward_model_from
from outscore.rewards import Rewards
from outscore.rewards.reward_model import reward_model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    policy = tiny_policy()
    model = reward_model_from(policy, seed=0, end_token_id=int(policy.tokenizer.eos_token_id), separators=[" "])
    model.base.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    return tmp_path


def tokens(text: str, *, end: bool = True) -> list[int]:
    tokenizer = tiny_policy().tokenizer
    return [*tokenizer.encode(text, add_special_tokens=False), *([tokenizer.eos_token_id] if end else [])]


def ask(saved: Path, texts: list[str], ids: list[list[int]], **options: Any) -> list[Any]:
    [reward] = Rewards([{"name": "process_reward_model", "path": str(saved), **options}]).rewards
    answers: list[Any] = reward.function(completions=texts, completion_ids=ids, rendered_prompts=["1+1="] * len(texts))
    return answers


def chances(saved: Path, ids: list[int], ends: list[int]) -> list[float]:
    """By Hugging Face's own forward of each beginning."""
    theirs = AutoModelForSequenceClassification.from_pretrained(saved)
    found = []
    for end in ends:
        with torch.no_grad():
            read = torch.tensor([[*tokens("1+1=", end=False), *ids[: end + 1]]])
            found.append(theirs(input_ids=read).logits.sigmoid().item())
    return found


def test_steps_are_paid_at_the_policys_tokens(saved: Path) -> None:
    texts = ["1 22 3", "7", "1 22 "]
    ids = [tokens("1 22 3"), tokens("7"), tokens("1 22 ", end=False)]
    ends = [[1, 4, 6], [1], [1, 4]]
    found = ask(saved, texts, ids, score="steps")
    for steps, own, places in zip(found, ids, ends, strict=True):
        assert [end for end, _ in steps] == places
        assert [chance for _, chance in steps] == pytest.approx(chances(saved, own, places), abs=1e-5)


@pytest.mark.parametrize("score", ["min", "product", "last"])
def test_a_completion_has_one_score_of_its_steps(saved: Path, score: str) -> None:
    one, two, three = chances(saved, tokens("1 22 3"), [1, 4, 6])
    expected = {"min": min(one, two, three), "product": one * two * three, "last": three}[score]
    # Without tokens, as from a file, it reads the text and its end token.
    for ids in (tokens("1 22 3"), []):
        assert ask(saved, ["1 22 3"], [ids], score=score) == [pytest.approx(expected, abs=1e-5)]


def test_tokens_that_are_not_its_own_cannot_be_paid(saved: Path) -> None:
    with pytest.raises(ValueError, match="score: steps pays at the policy's tokens"):
        ask(saved, ["1 2"], [[3, 3]], score="steps")


def test_what_is_no_process_reward_model_is_refused(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(ValueError, match=r"give either path .* or stage"):
        Rewards([{"name": "process_reward_model"}])
    with pytest.raises(ValueError, match=r"give either path .* or stage"):
        reward_model(path=str(saved), stage="rm")
    with pytest.raises(ValueError, match="is asked for before that stage has run"):
        ask_stage = Rewards([{"name": "process_reward_model", "stage": "rm"}]).rewards[0].function
        ask_stage(completions=["1"], completion_ids=[[3]], rendered_prompts=["1"])
    other = tmp_path_factory.mktemp("whole")
    policy = tiny_policy()
    whole = reward_model_from(policy, seed=0, end_token_id=None)
    whole.base.save_pretrained(other)
    whole.tokenizer.save_pretrained(other)
    with pytest.raises(ValueError, match="is a reward model of whole completions: it scores no steps"):
        ask(other, ["1"], [[3]])
