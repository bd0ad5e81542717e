"""Reward models: the head's beginning, group rows against Hugging Face's own forward, and the directory on the disk."""

import math
from pathlib import Path

import pytest
import torch
from train.building import tiny_policy
from transformers import AutoModelForSequenceClassification

from outscore.model.adapters import add_lora, trainable_parameters
from outscore.model.heads import RewardModel, completion_scores, is_reward_model, load_reward_model, reward_model_from
from outscore.model.policy import Policy
from outscore.model.probe import with_group_rows
from outscore.model.rows import TrainingGroup, flat_starts, group_rows, separate_rows
from outscore.records import Completion


def completions_of(*ids: tuple[int, ...]) -> tuple[Completion, ...]:
    return tuple(Completion(token_ids=each, text="", counts=(True,) * len(each)) for each in ids)


# Completions that begin alike share tokens; one is of a single token.
FIRST = TrainingGroup(
    prompt_ids=(5, 6, 7), completions=completions_of((4, 4, 8, 1), (4, 4, 9, 9, 1), (1,)), completion_index=(0, 1, 2)
)
SECOND = TrainingGroup(prompt_ids=(8, 2), completions=completions_of((3, 1), (4, 1)), completion_index=(3, 4))
STARTS = flat_starts([*FIRST.completions, *SECOND.completions])


def made(policy: Policy | None = None) -> RewardModel:
    return reward_model_from(policy or tiny_policy(), seed=3, end_token_id=1)


def scores_in(model: RewardModel, layout: str) -> torch.Tensor:
    build = group_rows if layout == "group_rows" else separate_rows
    rows = build([SECOND, FIRST], STARTS)
    scores = torch.zeros(5)
    return scores.index_copy(0, rows.ended, completion_scores(model, rows).detach())


def test_the_head_begins_small_and_the_backbone_as_the_policy() -> None:
    policy = tiny_policy()
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    model = made(policy)
    backbone = dict(model.base.base_model.named_parameters())
    assert all(torch.equal(p, backbone[name]) for name, p in policy.base.base_model.named_parameters())
    assert all(torch.equal(p, before[name]) for name, p in policy.model.named_parameters())
    backbone["norm.weight"].data.add_(1.0)
    assert torch.equal(policy.model.get_parameter("model.norm.weight"), before["model.norm.weight"])
    assert model.bias == 0.0 and model.end_token_id == 1
    assert torch.equal(made(policy).head.weight, model.head.weight)


def test_head_weights_are_normal_with_one_over_the_root_of_width_plus_one() -> None:
    from outscore.model.tiny import tiny_model

    network, tokenizer = tiny_model("0123", [], 0, hidden_size=512, num_layers=1, num_heads=2)
    policy = Policy(network, tokenizer, stop_token_ids=frozenset({1}))
    weights = torch.cat([reward_model_from(policy, seed=s, end_token_id=1).head.weight[0] for s in range(4)])
    # 2048 draws: the standard deviation of the estimate is 1.6 %.
    assert weights.std().item() == pytest.approx(1 / math.sqrt(513), rel=0.06)
    assert abs(weights.mean().item()) < 4 / math.sqrt(2048 * 513)


def test_group_rows_score_as_hugging_faces_own_forward_of_each_completion(tmp_path: Path) -> None:
    model = made()
    grouped = scores_in(model, "group_rows")
    model.base.save_pretrained(tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert theirs.config.num_labels == 1
    for group in (FIRST, SECOND):
        for number, completion in zip(group.completion_index, group.completions, strict=True):
            ids = torch.tensor([[*group.prompt_ids, *completion.token_ids]])
            with torch.no_grad():
                own = theirs(input_ids=ids).logits.item()
            assert grouped[number].item() == pytest.approx(own, abs=1e-5)


def test_both_layouts_give_the_same_scores_and_gradients() -> None:
    found = []
    for layout in ("group_rows", "separate_rows"):
        model = made(Policy(tiny_policy().model, tiny_policy().tokenizer, stop_token_ids=frozenset({1}), layout=layout))
        build = group_rows if layout == "group_rows" else separate_rows
        rows = build([FIRST, SECOND], STARTS)
        scores = completion_scores(model, rows)
        (scores * torch.arange(1.0, 6.0)[rows.ended]).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in model.model.parameters() if p.grad is not None])
        found.append((scores_in(model, layout), gradient))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0.0, atol=1e-5)
    assert (found[0][1] - found[1][1]).norm() <= 1e-4 * found[0][1].norm()


def test_rescaling_is_gain_times_score_plus_bias_and_survives_the_disk(tmp_path: Path) -> None:
    model = made()
    before = scores_in(model, "group_rows")
    model.rescale(2.0, 0.5)
    model.rescale(0.5, -3.0)
    after = scores_in(model, "group_rows")
    torch.testing.assert_close(after, 0.5 * (2.0 * before + 0.5) - 3.0)
    model.base.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    assert is_reward_model(tmp_path) and not is_reward_model(tmp_path.parent)
    loaded = load_reward_model(tmp_path)
    assert (loaded.bias, loaded.end_token_id, loaded.layout) == (model.bias, 1, "separate_rows")
    torch.testing.assert_close(scores_in(loaded, "separate_rows"), after, rtol=0.0, atol=1e-5)


def test_adapters_are_merged_into_the_copy_and_stay_in_the_policy() -> None:
    policy = tiny_policy()
    add_lora(policy.model, rank=2, alpha=4.0)
    with torch.no_grad():
        for parameter in trainable_parameters(policy.model).values():
            parameter.add_(0.3)
    model = made(policy)
    from outscore.model.attention import TreeAttention
    from outscore.model.forest import Segment

    ids, tree = torch.tensor([[5, 6, 7, 4]]), TreeAttention([Segment(start=0, length=4, parent=-1)])
    with torch.no_grad():
        theirs, ours = (m.hidden(ids, tree.positions[None], tree) for m in (policy, model))
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=1e-5)
    assert trainable_parameters(policy.model)
    assert all(parameter.requires_grad for parameter in model.model.parameters())


def test_what_is_no_reward_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_reward_model(tmp_path)
    policy = tiny_policy()
    policy.base.save_pretrained(tmp_path / "lm")
    policy.tokenizer.save_pretrained(tmp_path / "lm")
    with pytest.raises(ValueError, match=r"lacks the weights score\.weight"):
        load_reward_model(tmp_path / "lm")
    config = made().base.config
    config.num_labels = 3
    several = AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa")
    several.save_pretrained(tmp_path / "several")
    policy.tokenizer.save_pretrained(tmp_path / "several")
    with pytest.raises(ValueError, match="with 3 labels is no reward model"):
        load_reward_model(tmp_path / "several")


def saved_and_loaded(model: RewardModel, directory: Path) -> RewardModel:
    model.base.save_pretrained(directory)
    model.tokenizer.save_pretrained(directory)
    return load_reward_model(directory)


def test_a_model_from_a_directory_is_asked_in_group_rows_where_that_gives_its_own_scores(tmp_path: Path) -> None:
    plain = saved_and_loaded(made(), tmp_path)
    expected = scores_in(plain, "separate_rows")
    found = with_group_rows(plain)
    assert (plain.layout, found.layout) == ("separate_rows", "group_rows")
    torch.testing.assert_close(scores_in(found, "group_rows"), expected, rtol=0, atol=1e-5)


def test_a_model_that_scores_otherwise_in_group_rows_stays_as_it_is(tmp_path: Path) -> None:
    plain = saved_and_loaded(made(), tmp_path)
    expected = scores_in(plain, "separate_rows")
    attention = plain.base.base_model.layers[0].self_attn
    original, scaling = type(attention).forward, attention.scaling

    def forward(self, *args, **kwargs):
        self.scaling = 2 * scaling if "context" in kwargs else scaling
        return original(self, *args, **kwargs)

    attention.forward = forward.__get__(attention)
    assert with_group_rows(plain) is plain
    torch.testing.assert_close(scores_in(plain, "separate_rows"), expected, rtol=0, atol=0)
