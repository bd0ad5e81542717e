"""Rollouts, refills and evaluation with a sampler that says what it is told to."""

from types import SimpleNamespace

import pytest
import torch
from rewards.building import group
from train.building import prompt_of, tiny_policy

from outscore.algorithms.rows import algorithm
from outscore.rewards import Rewards
from outscore.rollout import ScriptedSampler
from outscore.stages import PolicySettings
from outscore.train.evaluate import Evaluator, Judge
from outscore.train.loop import StageRun
from outscore.train.sources import RolloutSource

POLICY = tiny_policy()


def source_of(script, rewards, *, num_prompts: int = 3, **settings) -> RolloutSource:
    given = {"steps": 5, "prompts_per_step": 2, "group_size": 4, "sampling": {"max_new_tokens": 6}, **settings}
    return RolloutSource(
        prompts=[prompt_of(POLICY, f"{n}+{n}=", str(2 * n), n) for n in range(num_prompts)],
        sampler=ScriptedSampler(script, POLICY.tokenizer),
        rewards=Rewards(rewards),
        settings=PolicySettings(algorithm="grpo", **given),
        algorithm=algorithm("grpo", kl_coef=0.0, advantage_eps=0.0),
        seed=0,
        stage=0,
    )


def right(completions, answer, **columns):
    return [float(text == gold) for text, gold in zip(completions, answer, strict=True)]


def alternating(prompt, sample):
    return prompt.problem.answer if sample % 2 else "9"


def test_half_right_gives_plus_and_minus_one():
    collected = source_of(alternating, [right]).collect(1)
    assert [list(group) for group in collected.advantages] == [[-1.0, 1.0, -1.0, 1.0]] * 2
    assert collected.metrics["reward"] == (4.0, 8.0)
    assert collected.metrics["zero_variance"] == (0.0, 2.0)
    # "9" and the stop token; every token of a completion carries the completion's advantage.
    assert collected.batch.advantages[:4].tolist() == [-1.0, -1.0, 1.0, 1.0]


def test_rewards_read_where_training_stands():
    seen = []

    def reads(completions, trainer_state):
        seen.append((trainer_state.global_step, trainer_state.max_steps, trainer_state.epoch))
        return [0.0] * len(completions)

    source = source_of(alternating, [reads])
    source.collect(1)
    source.collect(3)
    # Two of three problems a step: after three steps each has been seen twice.
    assert seen == [(1, 5, 2 / 3), (3, 5, 2.0)]


def test_the_greatest_value_of_the_judging_reward_is_what_is_correct():
    rewards = Rewards(["format_tags"])
    tagged = "<reasoning>\n1\n</reasoning>\n<answer>\n2\n</answer>\n"
    [scored] = rewards.score([group(tagged, "2")], step=0).groups
    assert Judge(reward_name="format_tags", full=0.5, extract=str.strip).correct(scored) == [True, False]


def test_equal_rewards_give_exactly_zero_and_are_counted():
    def tenth(completions, **columns):
        return [0.1] * len(completions)

    collected = source_of(alternating, [tenth]).collect(1)
    assert not collected.batch.advantages.any()
    assert collected.metrics["zero_variance"] == (2.0, 2.0)


def test_flat_groups_are_refilled_within_the_budget_and_kept_on_record():
    def flat_for_problem_zero(prompt, sample):
        return "9" if prompt.problem.id == "p0" else alternating(prompt, sample)

    counts = []
    for step in range(1, 5):
        collected = source_of(flat_for_problem_zero, [right], refills=2).collect(step)
        replaced = [group for group in collected.groups if group.sampled.prompt.problem.id == "p0"]
        counts.append(len(collected.groups) - 2)
        assert len(collected.batch.groups) == 2
        assert collected.metrics["replaced_groups"][0] == len(collected.groups) - 2
        for extra in collected.groups[2:]:
            assert extra in replaced
    assert sum(counts) > 0


def test_metrics_are_those_of_the_groups_trained_on():
    # Problem 0 is all wrong and is replaced wherever it comes up; the others are half right.
    def flat_for_problem_zero(prompt, sample):
        return "9" if prompt.problem.id == "p0" else alternating(prompt, sample)

    def odd(completions, **columns):
        return [0.25 if text == "9" else None for text in completions]

    source = source_of(flat_for_problem_zero, [odd, right], refills=20)
    collected = next(found for step in range(1, 9) if (found := source.collect(step)).metrics["replaced_groups"][0])
    assert collected.num_kept == 2
    assert {group.sampled.prompt.problem.id for group in collected.groups[2:]} == {"p0"}
    assert collected.metrics["reward/right"] == (4.0, 8.0)
    assert collected.metrics["reward/odd"] == (1.0, 4.0)
    assert collected.metrics["not_applicable/odd"] == (4.0, 8.0)
    assert "not_applicable/right" not in collected.metrics
    assert all(set(group) == {None} for group in collected.advantages[2:])
    stage = SimpleNamespace(judge=Judge(reward_name="right", extract=str.strip), settings=source.settings)
    coefficients = torch.zeros(collected.batch.starts[-1])
    rows, accuracy = StageRun._rows(SimpleNamespace(stage=stage), 1, collected, coefficients)
    assert accuracy == {"accuracy": (4.0, 8.0)}
    assert len(rows) == 4 * len(collected.groups)


def test_a_hopeless_slot_is_accepted_when_refills_are_used_up():
    collected = source_of(lambda prompt, sample: "9", [right], refills=2).collect(1)
    assert collected.metrics["zero_variance"] == (2.0, 2.0)
    assert sorted(group.sampled.attempt for group in collected.groups) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(("choice", "counted"), [("keep", 6), ("mask", 0)])
def test_cut_completions_count_in_the_baseline_and_carry_loss_only_if_kept(choice: str, counted: int):
    def long_when_even(prompt, sample):
        return "123456789" if sample % 2 == 0 else prompt.problem.answer

    collected = source_of(long_when_even, [right], truncated=choice).collect(1)
    assert [sum(c.counts) for c in collected.batch.completions[:2]] == [counted, 2]
    assert collected.metrics["truncated"] == (4.0, 8.0)
    # In each group two kinds of completion, twice each: 6 tokens and 2.
    assert collected.metrics["distinct_share"] == (2 * (6.0 + 2.0), 4 * (6.0 + 2.0))
    first = None if choice == "mask" else -1.0
    assert list(collected.advantages[0]) == [first, 1.0, first, 1.0]


def test_a_completion_that_could_not_be_scored_stays_out_of_its_groups_baseline():
    def fails_on_nine(completions, answer, **columns):
        if any(text == "9" for text in completions):
            raise RuntimeError("no nines")
        return [float(len(text)) for text in completions]

    def texts(prompt, sample):
        return ["9", "1", "11", "1"][sample]

    source = source_of(texts, [fails_on_nine])
    object.__setattr__(source, "rewards", Rewards([fails_on_nine], on_failure="exclude"))
    collected = source.collect(1)
    rewards = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
    expected = (rewards - rewards.mean()) / rewards.std(correction=0)
    assert collected.advantages[0][0] is None
    assert list(collected.advantages[0][1:]) == pytest.approx(expected.tolist(), abs=1e-6)
    assert not any(collected.batch.completions[0].counts)


def test_evaluation_by_hand():
    # Problem 0: samples right, wrong(9), wrong(9), right; problem 1: all wrong and different.
    texts = {"p0": ["0", "9", "9", "0"], "p1": ["3", "4", "5", "6"]}
    rewards = Rewards([right])
    evaluator = Evaluator(
        prompts=[prompt_of(POLICY, "0+0=", "0", 0), prompt_of(POLICY, "1+1=", "2", 1)],
        rewards=rewards,
        judge=Judge(reward_name="right", extract=str.strip),
        samples=4,
        temperature=1.0,
        max_new_tokens=4,
        seed=0,
    )
    found = evaluator.run(ScriptedSampler(texts, POLICY.tokenizer), label="now", stage="grpo", step=3, policy_version=7)
    assert found.metrics["greedy"] == 0.5  # the first scripted sample of each
    assert found.metrics["pass@1"] == 0.25
    assert found.metrics["pass@2"] == pytest.approx(5 / 12)  # of the 6 pairs of problem 0 one is of two wrong ones
    assert found.metrics["pass@4"] == 0.5
    assert found.metrics["maj@4"] == 0.25  # a tie of two against two counts one half
    assert found.metrics["reward"] == 0.25


@pytest.mark.parametrize(
    ("samples", "budgets"), [(1, []), (2, [1, 2]), (5, [1, 2, 4, 5]), (8, [1, 2, 4, 8]), (9, [1, 2, 4, 8, 9])]
)
def test_pass_at_k_is_told_for_one_sample_for_powers_of_two_and_for_all(samples: int, budgets: list[int]) -> None:
    evaluator = Evaluator(
        prompts=[prompt_of(POLICY, "0+0=", "0", 0)],
        rewards=Rewards([right]),
        judge=Judge(reward_name="right", extract=str.strip),
        samples=samples,
        temperature=1.0,
        max_new_tokens=4,
        seed=0,
    )
    sampler = ScriptedSampler({"p0": ["0"] * samples}, POLICY.tokenizer)
    found = evaluator.run(sampler, label="now", stage="grpo", step=3, policy_version=7).metrics
    assert sorted(int(name.removeprefix("pass@")) for name in found if name.startswith("pass@")) == budgets
    assert {found[f"pass@{budget}"] for budget in budgets} <= {1.0}
    assert [name for name in found if name.startswith("maj@")] == [f"maj@{samples}"] * (samples > 1)


def test_a_watcher_hears_of_every_completion_refills_included() -> None:
    heard: list[str] = []
    source_of(lambda prompt, sample: "9", [right], refills=1).collect(1, heard.append)
    first = [f"sampling {n}/8" for n in range(9)]
    again = [f"sampling refill 1 of 1: {n}/8" for n in range(9)]
    assert heard == [*first, "scoring", *again, "scoring"]
