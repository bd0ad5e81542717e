"""The pieces of Outscore in a training loop of one's own, in seconds, without a download.

    python examples/own_loop.py

The engine samples, a function rewards, group rows and `policy_loss` give the gradient; model, optimizer and loop are
plain Transformers and PyTorch, and each piece can be left out or replaced. A tiny model with random weights learns to
write the digits of its prompt backwards, "31>" -> "13".
"""

import random

import torch

import outscore
from outscore.model.tiny import tiny_model


def in_place(completions: list[str], answer: list[str], **columns: object) -> list[float]:
    """The share of the answer's digits that stand in their right place."""
    pairs = zip(completions, answer, strict=True)
    return [sum(a == b for a, b in zip(text, gold, strict=False)) / max(len(text), len(gold)) for text, gold in pairs]


def train(num_steps: int = 80, num_prompts: int = 16, group_size: int = 8) -> list[float]:
    """Train; returns the mean reward of every step."""
    # Any Hugging Face causal language model with its tokenizer makes a policy.
    model, tokenizer = tiny_model("0123456789>", [], seed=0, hidden_size=64, num_layers=1, num_heads=4)
    policy = outscore.Policy(model, tokenizer, stop_token_ids=frozenset({tokenizer.eos_token_id}))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    rows = [{"question": f"{a}{b}>", "answer": f"{b}{a}"} for a in range(10) for b in range(10)]
    problems = outscore.make_task("data", rows=rows).train_problems()
    prompts = [outscore.render(problem, tokenizer) for problem in problems]
    sampler = outscore.make_sampler(policy, max_rows=num_prompts * group_size)
    params = outscore.SamplingParams(max_new_tokens=4)
    rewards = outscore.Rewards([in_place])
    row = outscore.algorithm("grpo", kl_coef=0.0)
    draw = random.Random(0)
    curve = []

    for step in range(1, num_steps + 1):
        # Sample a group for each prompt, and score it.
        requests = [
            outscore.SampleRequest(prompt=prompt, num_samples=group_size, slot=slot)
            for slot, prompt in enumerate(draw.sample(prompts, num_prompts))
        ]
        sampled = sampler.sample(requests, params, seed=0, step=step)
        scored = rewards.score(sampled, step=step).groups

        # Compare within each group.
        scores = torch.tensor([[score.reward for score in group.scores] for group in scored])
        compared = [
            outscore.group_advantages(own, baseline=row.baseline, scale=row.scale, eps=row.advantage_eps)
            for own in scores
        ]
        curve.append(scores.mean().item())

        # Pack each prompt once with its completions, which are numbered through the batch.
        completions = [drawn.completion for group in sampled for drawn in group.completions]
        groups = [
            outscore.TrainingGroup(
                prompt_ids=group.prompt.token_ids,
                completions=tuple(drawn.completion for drawn in group.completions),
                completion_index=tuple(range(group_size * slot, group_size * (slot + 1))),
            )
            for slot, group in enumerate(sampled)
        ]
        packed = outscore.group_rows(groups, outscore.flat_starts(completions))

        # The loss of every completion token, and a step.
        now = outscore.token_logprobs(policy, packed)
        lengths = torch.tensor([len(completion.token_ids) for completion in completions])
        terms = outscore.policy_loss(
            now.logprobs,
            algorithm=row,
            completion_index=packed.completion_index,
            completion_lengths=lengths,
            num_completions=len(completions),
            num_tokens=int(lengths.sum()),
            advantages=torch.cat(compared)[packed.completion_index],
        )
        optimizer.zero_grad()
        terms.loss.backward()
        optimizer.step()
    return curve


if __name__ == "__main__":
    for step, reward in enumerate(train(), start=1):
        if step % 10 == 0:
            print(f"step {step:3d}  reward {reward:.3f}  {'#' * round(40 * reward)}")
