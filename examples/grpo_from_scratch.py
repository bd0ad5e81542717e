"""All of GRPO in one file: group relative policy optimization on a tiny model, in a minute, on a CPU.

    python examples/grpo_from_scratch.py

A Llama of 43,000 random weights learns to write the digits of its prompt backwards and then to stop, "31>" -> "13",
from rewards alone. Nothing here is fast: every completion is a padded row of its own, and sampling has no cache. It is
the algorithm as printed in DeepSeekMath (arXiv 2402.03300, eq. 3 and 4), with each equation next to its code:

    sample    G completions for each prompt from the policy
    score     each completion by a rule
    compare   A = (r - mean r) / std r, within the group of one prompt: no value network
    improve   the mean over completions of their mean over tokens of
              min(ratio A, clip(ratio, 1 - eps, 1 + eps) A) - beta KL(policy || reference)

A test proves that `outscore`, which does all this faster, takes the same steps.
"""

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

TOKENS = [*"0123456789", ">", "<stop>"]
ASK, STOP = TOKENS.index(">"), TOKENS.index("<stop>")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Every number of the run."""

    num_steps: int = 140
    """Optimizer steps."""
    num_prompts: int = 32
    """Prompts a step."""
    group_size: int = 8
    """G, the completions for each prompt."""
    num_digits: int = 2
    """Digits in a prompt."""
    max_new_tokens: int = 4
    """A completion that has not stopped by then is cut."""
    learning_rate: float = 2e-3
    """Adam's."""
    clip: float = 0.2
    """eps: how far the ratio may move within one update."""
    kl_coef: float = 0.04
    """beta: how strongly the reference model holds the policy back. Ours is random, which keeps the policy
    exploring."""
    advantage_eps: float = 1e-6
    """Keeps the division by the standard deviation finite."""
    num_updates: int = 1
    """mu: optimizer steps on the same completions. From the second on the ratio is not 1, and the clip matters."""
    seed: int = 0
    """Of the weights, the prompts and the samples."""


# --- the policy ---------------------------------------------------------------------------------------------------


def build_model() -> PreTrainedModel:
    """A Llama small enough for a CPU, its weights random."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(TOKENS),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=32,
            tie_word_embeddings=False,
            pad_token_id=STOP,
            bos_token_id=None,
            eos_token_id=STOP,
        )
    )


# --- sample -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def sample(model: PreTrainedModel, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
    """One completion for each prompt, token by token; it includes its stop token. The prompts have one length."""
    rows = torch.tensor(prompts)
    running = torch.ones(len(prompts), dtype=torch.bool)
    completions: list[list[int]] = [[] for _ in prompts]
    for _ in range(max_new_tokens):
        probabilities = torch.softmax(model(input_ids=rows).logits[:, -1], dim=-1)
        drawn = torch.multinomial(probabilities, num_samples=1)
        for i in running.nonzero()[:, 0].tolist():
            completions[i].append(int(drawn[i]))
        running &= drawn[:, 0] != STOP
        if not running.any():
            break
        rows = torch.cat([rows, drawn], dim=1)
    return completions


# --- score --------------------------------------------------------------------------------------------------------


def reward(prompt: list[int], completion: list[int]) -> float:
    """The share of the answer, stop token included, that stands in its right place."""
    answer = [*reversed(prompt[:-1]), STOP]
    return sum(a == b for a, b in zip(answer, completion, strict=False)) / max(len(answer), len(completion))


# --- compare ------------------------------------------------------------------------------------------------------


def group_advantages(rewards: Tensor, eps: float) -> Tensor:
    """A_i = (r_i - mean) / (std + eps) within each row of rewards[group, completion].

    The standard deviation is the population's (divided by G). A group whose rewards are all equal says nothing:
    exactly 0, which the formula alone would miss by a rounding error of the mean.
    """
    mean = rewards.mean(dim=1, keepdim=True)
    std = rewards.std(dim=1, keepdim=True, correction=0)
    all_equal = rewards.amax(dim=1, keepdim=True) == rewards.amin(dim=1, keepdim=True)
    return torch.where(all_equal, torch.zeros_like(rewards), (rewards - mean) / (std + eps))


# --- improve ------------------------------------------------------------------------------------------------------


def token_logprobs(
    model: PreTrainedModel, prompts: list[list[int]], completions: list[list[int]]
) -> tuple[Tensor, Tensor]:
    """(log-prob, whether it counts) of each next token of each row, [row, token].

    Rows are prompt + completion, padded on the right, where causal attention never looks. The logits at position t
    are about the token at t + 1; a token counts if it belongs to the completion, its stop token included.
    """
    rows = [torch.tensor(prompt + completion) for prompt, completion in zip(prompts, completions, strict=True)]
    token_ids = pad_sequence(rows, batch_first=True, padding_value=STOP)
    logits = model(input_ids=token_ids).logits[:, :-1]
    logprobs = torch.log_softmax(logits, dim=-1).gather(2, token_ids[:, 1:, None])[:, :, 0]
    # The mask comes from the lengths: the padding is a stop token too, and must not count.
    position = torch.arange(1, token_ids.shape[1])[None]
    start = torch.tensor([len(prompt) for prompt in prompts])[:, None]
    end = torch.tensor([len(row) for row in rows])[:, None]
    return logprobs, (start <= position) & (position < end)


def grpo_loss(
    policy_logprobs: Tensor,
    anchor_logprobs: Tensor,
    ref_logprobs: Tensor,
    advantages: Tensor,
    counts: Tensor,
    config: Config,
) -> Tensor:
    """Equation 3 with a minus sign. Log-probs and `counts` are [row, token], advantages [row].

    `anchor_logprobs` are the policy's own when the update began, `ref_logprobs` those of the frozen reference model.
    """
    # What a token gains: the ratio times the advantage, but nothing beyond the clip.
    ratio = torch.exp(policy_logprobs - anchor_logprobs)
    clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
    gain = torch.minimum(ratio * advantages[:, None], clipped * advantages[:, None])
    # What it costs to leave the reference: eq. 4, never negative, on average KL(policy || reference).
    log_ref_ratio = ref_logprobs - policy_logprobs
    kl = torch.exp(log_ref_ratio) - log_ref_ratio - 1
    per_token = torch.where(counts, gain - config.kl_coef * kl, 0.0)
    per_completion = per_token.sum(dim=1) / counts.sum(dim=1)
    return -per_completion.mean()


def train_step(
    model: PreTrainedModel,
    ref: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    prompts: list[list[int]],
    completions: list[list[int]],
    rewards: Tensor,
    anchor_logprobs: Tensor,
    config: Config,
) -> Tensor:
    """One optimizer step. Prompts and completions lie group after group; rewards are [group, completion]."""
    advantages = group_advantages(rewards, config.advantage_eps).flatten()
    with torch.no_grad():
        ref_logprobs, _ = token_logprobs(ref, prompts, completions)
    policy_logprobs, counts = token_logprobs(model, prompts, completions)
    loss = grpo_loss(policy_logprobs, anchor_logprobs, ref_logprobs, advantages, counts, config)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


# --- the loop -----------------------------------------------------------------------------------------------------


def train(config: Config, report: Callable[[int, float], None]) -> PreTrainedModel:
    """Train a new model; `report(step, mean reward)` is called at every step."""
    torch.manual_seed(config.seed)
    draw = random.Random(config.seed)
    model = build_model()
    ref = copy.deepcopy(model)  # frozen at the start
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    for step in range(1, config.num_steps + 1):
        problems = [[draw.randrange(10) for _ in range(config.num_digits)] + [ASK] for _ in range(config.num_prompts)]
        prompts = [problem for problem in problems for _ in range(config.group_size)]
        completions = sample(model, prompts, config.max_new_tokens)
        scores = [reward(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        rewards = torch.tensor(scores).view(config.num_prompts, config.group_size)
        with torch.no_grad():
            anchor_logprobs, _ = token_logprobs(model, prompts, completions)
        for _ in range(config.num_updates):
            train_step(model, ref, optimizer, prompts, completions, rewards, anchor_logprobs, config)
        report(step, rewards.mean().item())
    return model


def main() -> None:
    """Train, and show the reward as it rises and what the model has learnt to write."""
    config = Config()

    def report(step: int, mean_reward: float) -> None:
        if step % 10 == 0 or step == 1:
            print(f"step {step:4d}  reward {mean_reward:.3f}  {'#' * round(40 * mean_reward)}", flush=True)

    model = train(config, report)
    prompts = [[first, second, ASK] for first, second in ((3, 1), (4, 9), (8, 0), (7, 7))]
    for prompt, completion in zip(prompts, sample(model, prompts, config.max_new_tokens), strict=True):
        print("".join(TOKENS[t] for t in prompt), "".join(TOKENS[t] for t in completion))


if __name__ == "__main__":
    main()
