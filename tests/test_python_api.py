"""The same from Python, and the pieces alone."""

from pathlib import Path

import pytest
import torch

import outscore

MODEL = {"source": "tiny", "tiny": {"hidden_size": 16, "num_layers": 1, "num_heads": 2}, "precision": "fp32"}
STAGE = {
    "algorithm": "grpo",
    "steps": 2,
    "prompts_per_step": 2,
    "group_size": 4,
    "sampling": {"max_new_tokens": 4},
    "cells": {"kl_coef": 0.0},
}
ROWS = [{"question": f"{a}+1=", "answer": str(a + 1), "level": a} for a in range(30)]


def test_rows_and_functions_make_a_run_that_resumes(tmp_path: Path) -> None:
    seen = []

    def shorter(completions, answer, level, **columns):
        seen.extend(level)
        return [-len(text) / 4 for text in completions]

    recipe = {"model": MODEL, "stages": [STAGE], "evaluation": {"samples": 1}}
    result = outscore.run_recipe(recipe, tmp_path / "run", task=ROWS, rewards=[shorter])
    assert result.finished and result.checkpoint is not None
    assert set(seen) <= set(range(30)) and seen
    with pytest.raises(ValueError, match="task=…"):
        outscore.resume(tmp_path / "run")
    assert outscore.resume(tmp_path / "run", task=ROWS, rewards=[shorter]).finished


def test_the_pieces_make_a_training_step_in_ones_own_loop() -> None:
    task = outscore.make_task("data", rows=ROWS)
    settings = outscore.parse_recipe({"task": {"kind": "data"}, "rewards": ["x"], "stages": [STAGE], "model": MODEL})
    policy, _ = outscore.load_policy(settings.model, task, seed=0)
    prompts = [outscore.render(problem, policy.tokenizer) for problem in task.train_problems()[:2]]
    requests = [outscore.SampleRequest(prompt=p, num_samples=3, slot=i) for i, p in enumerate(prompts)]
    groups = outscore.make_sampler(policy, 8).sample(
        requests, outscore.SamplingParams(max_new_tokens=4), seed=0, step=1
    )
    completions = [drawn.completion for group in groups for drawn in group.completions]
    rows = outscore.group_rows(
        [
            outscore.TrainingGroup(
                prompt_ids=group.prompt.token_ids,
                completions=tuple(drawn.completion for drawn in group.completions),
                completion_index=tuple(range(3 * i, 3 * i + 3)),
            )
            for i, group in enumerate(groups)
        ],
        outscore.flat_starts(completions),
    )
    found = outscore.token_logprobs(policy, rows)
    sampled = torch.tensor([p for group in groups for drawn in group.completions for p in drawn.sampler_logprobs])
    torch.testing.assert_close(found.logprobs.detach(), sampled, rtol=0, atol=2e-4)
    advantages = outscore.group_advantages(
        torch.tensor([0.0, 1.0, 0.0]), baseline="group_mean", scale="population_std", eps=0.0
    ).float()
    lengths = torch.tensor([len(completion.token_ids) for completion in completions])
    terms = outscore.policy_loss(
        found.logprobs,
        algorithm=outscore.algorithm("grpo", kl_coef=0.0),
        completion_index=rows.completion_index,
        completion_lengths=lengths,
        num_completions=len(completions),
        num_tokens=int(lengths.sum()),
        advantages=advantages.repeat(2)[rows.completion_index],
    )
    terms.loss.backward()
    assert all(parameter.grad is not None for parameter in policy.model.parameters())
