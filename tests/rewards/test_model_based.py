"""A reward model as a reward: found on the disk, loaded when it is needed, and asked in batches."""

from pathlib import Path

import pytest
import torch
from rewards.building import group
from train.building import tiny_policy
from transformers import AutoModelForSequenceClassification

from outscore.model.heads import SETTINGS, reward_model_from
from outscore.records import SampledGroup
from outscore.rewards import Rewards
from outscore.rewards.model_based import ModelScorer
from outscore.rewards.reward_model import newest_checkpoint


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    policy = tiny_policy()
    model = reward_model_from(policy, seed=0, end_token_id=int(policy.tokenizer.eos_token_id))
    model.rescale(1.5, 0.25)
    model.base.save_pretrained(tmp_path / "step-000002")
    model.tokenizer.save_pretrained(tmp_path / "step-000002")
    return tmp_path / "step-000002"


def own_score(directory: Path, text: str, *, end: bool = True) -> float:
    """By Hugging Face's own forward."""
    policy = tiny_policy()
    ids = policy.tokenizer(text, add_special_tokens=False)["input_ids"] + [policy.tokenizer.eos_token_id] * end
    theirs = AutoModelForSequenceClassification.from_pretrained(directory)
    with torch.no_grad():
        score: float = theirs(input_ids=torch.tensor([ids])).logits.item()
    return score + (getattr(theirs.config, SETTINGS, None) or {"bias": 0.0})["bias"]


def ask(scorer: ModelScorer, questions: list[str], texts: list[str]) -> list[float]:
    return scorer(prompts=["?"] * len(texts), rendered_prompts=questions, completions=texts)


def test_scores_are_the_models_own_for_prompt_text_and_end_token(saved: Path) -> None:
    scorer = ModelScorer(saved, token_budget=12)
    texts = ["2", "33333333", "", "2"]
    found = ask(scorer, ["1+1="] * 4, texts)
    assert found == pytest.approx([own_score(saved, f"1+1={text}") for text in texts], abs=1e-5)
    assert found[0] == found[3]
    assert scorer.model.layout == "group_rows"  # what begins alike is read once


def test_another_model_reads_the_question_as_it_is(saved: Path) -> None:
    theirs = AutoModelForSequenceClassification.from_pretrained(saved)
    delattr(theirs.config, SETTINGS)
    theirs.save_pretrained(saved)
    found = ModelScorer(saved)(prompts=["1+1="], rendered_prompts=["7+7="], completions=["2"])
    assert found == pytest.approx([own_score(saved, "1+1=2")], abs=1e-5)


def test_a_recipe_names_it_by_the_directory_of_its_checkpoints(saved: Path) -> None:
    (saved.parent / "step-000001").mkdir()
    assert newest_checkpoint(saved.parent) == newest_checkpoint(saved) == saved
    rewards = Rewards([{"name": "reward_model", "path": str(saved.parent), "weight": 2.0}])
    sampled = group("1", "22", question="1+1=")
    object.__setattr__(sampled.prompt, "text", "1+1=")
    [scored] = rewards.score([sampled], step=1).groups
    assert [score.reward for score in scored.scores] == pytest.approx(
        [2 * own_score(saved, "1+1=1"), 2 * own_score(saved, "1+1=22")], abs=1e-5
    )
    assert rewards.full is None


def test_a_missing_reward_model_is_said_when_the_recipe_is_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"reward 'reward_model': path = '.*nothing' is no model's directory"):
        Rewards([{"name": "reward_model", "path": str(tmp_path / "nothing")}])


def rendered(sampled: SampledGroup) -> SampledGroup:
    """The group with its question as the prompt that was read."""
    object.__setattr__(sampled.prompt, "text", sampled.prompt.problem.question)
    return sampled


def member(folder: Path, seed: int) -> Path:
    policy = tiny_policy()
    model = reward_model_from(policy, seed=seed, end_token_id=int(policy.tokenizer.eos_token_id))
    model.base.save_pretrained(folder / str(seed))
    model.tokenizer.save_pretrained(folder / str(seed))
    return folder / str(seed)


def test_an_ensemble_gives_the_mean_and_says_how_far_its_members_differ(tmp_path: Path) -> None:
    paths = [member(tmp_path, seed) for seed in range(3)]
    entry = {"name": "reward_model", "path": [str(path) for path in paths], "uncertainty": 1.5}
    result = Rewards([entry]).score([rendered(group("1", "22", question="1+1="))], step=1)
    totals, spreads = [], []
    for text, score in zip(("1", "22"), result.groups[0].scores, strict=True):
        each = [own_score(path, f"1+1={text}") for path in paths]
        mean = sum(each) / 3
        spreads.append((sum((one - mean) ** 2 for one in each) / 3) ** 0.5)  # population
        totals.append(mean - 1.5 * spreads[-1])
        assert score.parts["reward_model"] == pytest.approx(mean, abs=1e-5)  # type: ignore[union-attr]
    assert [score.reward for score in result.groups[0].scores] == pytest.approx(totals, abs=1e-5)  # type: ignore[union-attr]
    assert result.extra_columns["reward_model_uncertainty"] == pytest.approx(spreads, abs=1e-5)
    assert result.metrics["uncertainty/reward_model"] == pytest.approx((sum(spreads), 2.0), abs=1e-5)


def test_one_model_alone_is_not_unsure(saved: Path) -> None:
    entry = {"name": "reward_model", "path": [str(saved)], "uncertainty": 1.0}
    with pytest.raises(ValueError, match=r"reward 'reward_model': uncertainty = 1 needs to know how unsure it is"):
        Rewards([entry]).score([rendered(group("1", question="1+1="))], step=1)


def test_an_ensemble_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"path = \[\] names no model"):
        Rewards([{"name": "reward_model", "path": []}])
