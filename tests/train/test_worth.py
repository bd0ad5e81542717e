"""From scores to advantages, and the coefficient that was applied to every token, through a source and an update."""

from dataclasses import replace

import pytest
import torch
from oracles.worth import _compared
from train.building import batch_of, learner_of, plan_of, prompt_of, tiny_policy

from outscore.algorithms.rows import Algorithm, algorithm
from outscore.records import StepScore
from outscore.report.rows import completion_rows, read_parquet, to_parquet
from outscore.rewards import Rewards
from outscore.rollout import ScriptedSampler
from outscore.stages import PolicySettings
from outscore.train.evaluate import Judge
from outscore.train.sources import RolloutSource
from outscore.train.step import accumulate, batch_logprobs, update

POLICY = tiny_policy()
TEXTS = ["1+1=2", "9", "2", "1=1"]


def source_of(rewards, row: Algorithm, *, penalty=None, texts=TEXTS, num_prompts=2, **settings) -> RolloutSource:
    given = {
        "steps": 5,
        "prompts_per_step": num_prompts,
        "group_size": 4,
        "sampling": {"max_new_tokens": 8},
        **settings,
    }
    return RolloutSource(
        prompts=[prompt_of(POLICY, f"{n}+{n}=", str(2 * n), n) for n in range(1, num_prompts + 1)],
        sampler=ScriptedSampler(lambda prompt, sample: texts[sample], POLICY.tokenizer),
        rewards=Rewards(rewards),
        settings=PolicySettings(**given),
        algorithm=row,
        seed=0,
        stage=0,
        penalty=penalty,
        verdict=Judge(reward_name="right", extract=str.strip).correct,
    )


def right(completions, answer):
    return [float(text == gold) for text, gold in zip(completions, answer, strict=True)]


def length(completion_ids):
    return [float(len(ids)) for ids in completion_ids]


def each_character(completions, completion_ids):
    """A step for each token: 1 for a digit, 0 for a sign, one half for the stop token."""
    values = [[float(character.isdigit()) for character in text] for text in completions]
    return [
        [*enumerate(own), *([(len(ids) - 1, 0.5)] if len(ids) > len(own) else [])]
        for own, ids in zip(values, completion_ids, strict=True)
    ]


def test_steps_reach_every_token_as_the_normalised_rewards_still_to_come() -> None:
    row = algorithm("grpo", supervision="process", kl_coef=0.0)
    collected = source_of([each_character], row).collect(1)
    steps = [[*(float(c.isdigit()) for c in text), 0.5] for text in TEXTS]
    pool = _compared([reward for own in steps for reward in own], row)
    expected: list[float] = []
    for own in steps:
        mine, pool = pool[: len(own)], pool[len(own) :]
        expected += [sum(mine[t:]) for t in range(len(own))]
    assert collected.batch.advantages.tolist() == pytest.approx(expected * 2, abs=1e-6)
    score = collected.groups[0].scores[1]
    assert score.steps == (StepScore(end=0, reward=1.0), StepScore(end=1, reward=0.5)) and score.reward == 1.5
    means = [sum(expected[:6]) / 6, sum(expected[6:8]) / 2]
    assert list(collected.advantages[0][:2]) == pytest.approx(means, abs=1e-9)


def test_process_supervision_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="none of right returned any"):
        source_of([right], algorithm("grpo", supervision="process", kl_coef=0.0)).collect(1)


def test_online_rft_imitates_what_the_judge_calls_right_whatever_else_is_rewarded() -> None:
    collected = source_of([right, length], algorithm("online-rft")).collect(1)
    golds = [group.sampled.prompt.problem.answer for group in collected.groups]
    for gold, advantages in zip(golds, collected.advantages, strict=True):
        assert list(advantages) == [float(text == gold) for text in TEXTS]


def test_gdpo_compares_each_reward_on_its_own() -> None:
    row = algorithm("gdpo", advantage_eps=0.0, batch_norm="none")
    weighted = [
        right,
        {"name": length, "weight": 0.5},
        {"name": lambda completions: [1.0] * 8, "label": "c", "weight": 0},
    ]
    collected = source_of(weighted, row).collect(1)
    for group, advantages in zip(collected.groups, collected.advantages, strict=True):
        gold = group.sampled.prompt.problem.answer
        parts = [
            _compared(values, row) for values in ([float(t == gold) for t in TEXTS], [len(t) + 1.0 for t in TEXTS])
        ]
        assert list(advantages) == pytest.approx([a + 0.5 * b for a, b in zip(*parts, strict=True)], abs=1e-9)


def test_a_shrunk_mean_looks_at_the_batch_and_says_how_certain_group_means_are() -> None:
    """Means 3/4, 1/4 and 0. kappa of the first 0: the others' differ as luck lets them; 6/7 and 3/7 of the others."""
    row = algorithm("dr-grpo", baseline="shrunk_mean", aggregation_constant=8)
    collected = source_of([right], row, num_prompts=3, texts=["2", "2", "2", "4"], refills=2).collect(1)
    by_gold = {
        group.sampled.prompt.problem.answer: list(own)
        for group, own in zip(collected.groups, collected.advantages, strict=True)
    }
    found = [value for gold in ("2", "4", "6") for value in by_gold[gold]]
    expected = [7 / 8] * 3 + [-1 / 8] + [-(6 / 7) / 3 - 3 / 56] * 3 + [1 - 3 / 56] + [-4 / 7 / 2] * 4
    assert found == pytest.approx(expected, abs=1e-6)
    assert collected.metrics["baseline_certainty"] == pytest.approx((9 / 7, 3.0))
    assert collected.metrics["replaced_groups"] == (0.0, 1.0)  # a group of equal rewards teaches, too


def test_overlong_answers_are_punished_before_they_are_compared_and_not_when_refills_are_decided() -> None:
    # Tokens 6, 2, 2 and 4 of 8 with a buffer of 6: costs 4/6, 0, 0, 2/6.
    row = algorithm("dapo", scale="none")
    collected = source_of([right], row, overlong_buffer=6, texts=["1+1=2", "9", "9", "1=1"], refills=1).collect(1)
    costs = [4 / 6, 0.0, 0.0, 2 / 6]
    assert list(collected.advantages[0]) == pytest.approx([0.25 - cost for cost in costs], abs=1e-9)
    assert collected.metrics["overlong_penalty"] == pytest.approx((2.0, 8.0))
    assert collected.metrics["replaced_groups"] == (2.0, 1.0)  # all wrong: lengths alone are no reason to keep a group


def test_each_token_pays_its_own_kl_and_that_of_what_follows() -> None:
    class penalty:  # half a nat costs as much as a nat at 1
        coef = 0.5

        @staticmethod
        def estimates(groups):
            return [torch.arange(14.0) / 5 for _ in groups]

    row = algorithm("reinforce++", batch_norm="none")
    collected = source_of([length], row, penalty=penalty).collect(1)
    costs = [[0.0, 0.1, 0.2, 0.3, 0.4, 0.5], [0.6, 0.7], [0.8, 0.9], [1.0, 1.1, 1.2, 1.3]]
    expected = [len(own) - sum(own[t:]) for own in costs for t in range(len(own))]
    assert collected.batch.advantages.tolist() == pytest.approx(expected * 2, abs=1e-6)
    assert collected.metrics["completion_kl"] == (pytest.approx(2 * 91 / 5), 8.0)
    assert collected.metrics["kl_coef"] == (0.5, 1.0)


@pytest.mark.parametrize("scale", ["population_std", "batch_std"])
def test_statistics_of_the_batch_are_those_of_the_groups_trained_on(scale: str) -> None:
    """Refills replace a group before the batch's deviation is taken, and failures are left out."""

    def fails_on_nine(completions):
        if "9" in completions:
            raise RuntimeError("no nines")
        return [float(len(text)) for text in completions]

    row = algorithm("lite-ppo", scale=scale, advantage_eps=0.0)
    source = replace(source_of([right], row), rewards=Rewards([fails_on_nine], on_failure="exclude"))
    collected = source.collect(1)
    lengths = torch.tensor([5.0, 1.0, 3.0], dtype=torch.float64)
    expected = (lengths - lengths.mean()) / lengths.std(correction=0)
    for advantages in collected.advantages:
        assert advantages[1] is None
        assert [advantages[i] for i in (0, 2, 3)] == pytest.approx(expected.tolist(), abs=1e-9)


def test_the_coefficients_of_the_first_pass_are_kept_for_every_token(tmp_path) -> None:
    """Grouped as they were sampled, with the weight 1 / (completions of the update * length) in them."""
    policy = tiny_policy()
    collected = source_of([right, length], algorithm("grpo", kl_coef=0.0)).collect(1)
    batch = collected.batch
    coefficients = torch.zeros(batch.starts[-1])
    update(learner_of(policy), batch, plan_of(epochs=2, minibatches=2), coefficients=coefficients)
    kept = collected.per_token(coefficients)
    advantages = [value for group in collected.advantages for value in group]
    first = kept[:4]
    # The first mini-batch holds one group: ratios are 1 there, and four completions count.
    for own, advantage in zip(first, advantages[:4], strict=True):
        assert own == pytest.approx([advantage / (4 * len(own))] * len(own), rel=1e-5)
    rows = completion_rows(
        stage="grpo", step=1, groups=collected.groups, advantages=collected.advantages, coefficients=kept
    )
    path = tmp_path / "rows.parquet"
    path.write_bytes(to_parquet(rows))
    for row, own in zip(read_parquet(path), kept, strict=True):
        assert row.coefficients == own and len(own) == len(row.token_ids)


@pytest.mark.parametrize("token_budget", [10_000, 20], ids=["whole", "in-micro-batches"])
@pytest.mark.parametrize("name", ["cispo", "grpo", "gspo", "online-rft", "sft"])
def test_the_sum_of_coefficients_times_log_probs_has_the_updates_gradient(name: str, token_budget: int) -> None:
    """What is stored is what was applied, off-policy too: nothing is left to multiply."""
    policy = tiny_policy(dtype=torch.float64)
    batch = batch_of(policy, [[1.0, -1.0, 0.5], [0.3, 0.7, -0.9]], [[3, 9, 1], [7, 2, 5]])
    learner, row = learner_of(policy), algorithm(name)
    known = {"anchor_logprobs": near(policy, batch, seed=0), "ref_logprobs": near(policy, batch, seed=1)}
    known["advantages"] = batch.advantages.double() if row.source == "policy" else None
    coefficients = torch.zeros(batch.starts[-1], dtype=torch.float64)
    plan = plan_of(row, token_budget=token_budget)
    accumulate(learner, batch, batch.groups, plan, known, coefficients=coefficients)
    parameters = list(learner.masters.parameters.values())
    applied = torch.cat([-parameter.grad.flatten() for parameter in parameters])
    logprobs = batch_logprobs.__wrapped__(policy, batch, batch.groups, 10_000)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad((coefficients * logprobs).sum(), parameters)])
    # Llama norms compute in fp32 whatever the weights are, so agreement is to fp32 rounding.
    assert (applied - expected).norm() <= 1e-6 * applied.norm()
    assert applied.norm() > 0
    # Off the policy, the coefficient is not what it is on it.
    on_policy = torch.zeros_like(coefficients)
    accumulate(learner, batch, batch.groups, plan, {**known, "anchor_logprobs": None}, coefficients=on_policy)
    assert torch.equal(on_policy, coefficients) == (row.surrogate == "log_likelihood")


def near(policy, batch, *, seed: int) -> torch.Tensor:
    """Log-probs of the batch's tokens by a model that is not quite the policy."""
    own = batch_logprobs(policy, batch, batch.groups, 10_000)
    return own + 0.3 * torch.randn(own.shape, generator=torch.Generator().manual_seed(seed), dtype=own.dtype)
