"""A tiny policy, and batches made by hand."""

import torch

from outscore.algorithms.rows import Algorithm, algorithm
from outscore.model.policy import Policy
from outscore.model.precision import MasterWeights
from outscore.model.rows import TrainingGroup, flat_starts
from outscore.model.tiny import tiny_model
from outscore.records import Completion, Problem, Prompt
from outscore.stage_parts import OptimizerSettings
from outscore.train.optim import make_optimizer
from outscore.train.step import Batch, Learner, UpdatePlan

SGD_LIKE = OptimizerSettings(lr=1e-3, max_grad_norm=1e9)


def tiny_policy(*, seed: int = 0, dtype: torch.dtype = torch.float32) -> Policy:
    model, tokenizer = tiny_model("0123456789+-= ", ["<a>"], seed, hidden_size=16, num_layers=2, num_heads=2)
    return Policy(model.to(dtype), tokenizer, stop_token_ids=frozenset({int(tokenizer.eos_token_id)}))


def learner_of(policy: Policy, reference: object = None) -> Learner:
    masters = MasterWeights(policy.model, policy.compute_dtype)
    optimizer = make_optimizer(masters.parameters.values(), SGD_LIKE)
    return Learner(policy=policy, masters=masters, optimizer=optimizer, reference=reference)  # type: ignore[arg-type]


def plan_of(row: Algorithm | None = None, **changes: object) -> UpdatePlan:
    values = {"algorithm": row or algorithm("grpo", kl_coef=0.0), "optimizer": SGD_LIKE, "total_updates": 10}
    return UpdatePlan(**{**values, "token_budget": 10_000, **changes})  # type: ignore[arg-type]


def batch_of(policy: Policy, advantages: list[list[float]], lengths: list[list[int]], *, seed: int = 0) -> Batch:
    """Groups with these advantages (one a completion) and completion lengths, of random tokens."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(policy.vocab_size, (count,), generator=generator).tolist())

    groups, completions, per_token = [], [], []
    for values, sizes in zip(advantages, lengths, strict=True):
        first = len(completions)
        completions += [Completion(token_ids=tokens(n), text="", counts=(True,) * n) for n in sizes]
        numbers = tuple(range(first, len(completions)))
        prompt = tokens(4 + len(sizes))
        groups.append(
            TrainingGroup(prompt_ids=prompt, completions=tuple(completions[first:]), completion_index=numbers)
        )
        per_token += [torch.full((n,), value) for value, n in zip(values, sizes, strict=True)]
    total = flat_starts(completions)[-1]
    return Batch(
        groups=tuple(groups),
        completions=tuple(completions),
        advantages=torch.cat(per_token),
        sampler_logprobs=-torch.rand(total, generator=generator),
        temperature=1.0,
    )


def prompt_of(policy: Policy, question: str, answer: str, number: int = 0) -> Prompt:
    problem = Problem(id=f"p{number}", question=question, answer=answer, columns={})
    ids = tuple(policy.tokenizer(question, add_special_tokens=False)["input_ids"])
    return Prompt(problem=problem, text=question, token_ids=ids)
