"""What a step cannot be faster than: the matrix products of its linear layers alone, with weights read from memory.

The sequence is that of a step at its shapes: for sampling, the prompts of all groups in one product, then one product
of the live rows for each token drawn; for the update, forward, and twice as much backward, of every different token
once. Attention, norms, sampling, the optimizer and all bookkeeping are left out, so no implementation that computes
these products can reach it. Whatever else runs on the machine can only make a product slower: the fastest of `TIMES`.
"""

from collections.abc import Callable, Sequence

import torch
from device import now
from torch import Tensor, nn
from workloads import Workload

from outscore.model.policy import Policy
from outscore.rollout.linear import FEW_ROWS

TIMES = 5


def step_limit(policy: Policy, work: Workload, max_rows: int) -> dict[str, float]:
    """Seconds of sampling, and for a step of log-probs and backward."""
    head = policy.base.get_output_embeddings().weight.detach()
    layers = [
        module.weight.detach()
        for name, module in policy.model.named_modules()
        if isinstance(module, nn.Linear) and module is not policy.base.get_output_embeddings()
    ]
    sampled = {"sample": timed(lambda: _sample(layers, head, work, max_rows))}
    return sampled if work.kind == "sampling" else sampled | {"backward": timed(lambda: _update(layers, head, work))}


def timed(work: Callable[[], None]) -> float:
    """Seconds of the fastest of `TIMES`, after one that warms up."""
    work()
    seconds = []
    for _ in range(TIMES):
        started = now()
        work()
        seconds.append(now() - started)
    return min(seconds)


def live_rows(work: Workload, max_rows: int) -> list[int]:
    """How many rows each decoding step has: completions begin in order as places fall free, and a completion's last
    token is never fed. Its first token is drawn from the prompt's last state, and costs no row."""
    waiting, live, rows = list(reversed(work.lengths())), [], []
    while waiting or live:
        while waiting and len(live) < max_rows:
            live.append(waiting.pop() - 1)
        live = [left for left in live if left > 0]
        if live:
            rows.append(len(live))
        live = [left - 1 for left in live]
    return rows


def _product(rows: Tensor, weight: Tensor) -> Tensor:
    """x Wᵀ, the faster way round for a few rows."""
    if len(rows) <= FEW_ROWS and weight.dtype is torch.float32:
        return torch.mm(weight, rows.t()).t()
    return torch.mm(rows, weight.t())


@torch.inference_mode()
def _sample(layers: Sequence[Tensor], head: Tensor, work: Workload, max_rows: int) -> None:
    widths = {weight.shape[1] for weight in (*layers, head)}
    for number, logits in (
        (work.num_prompts * work.prompt_tokens, work.num_prompts),
        *((rows, rows) for rows in live_rows(work, max_rows)),
    ):
        states = {width: head.new_ones(number, width) for width in widths}
        for weight in layers:
            _product(states[weight.shape[1]], weight)
        _product(states[head.shape[1]][:logits], head)


@torch.inference_mode()
def _update(layers: Sequence[Tensor], head: Tensor, work: Workload) -> None:
    contrasted = (work.num_prompts - work.flat_groups) * work.group_size
    predicted = sum(work.lengths()[:contrasted])
    read = (work.num_prompts - work.flat_groups) * work.prompt_tokens + predicted
    states = {
        (number, width): head.new_ones(number, width)
        for number in (read, predicted)
        for weight in (*layers, head)
        for width in weight.shape
    }
    for number, weights in ((read, layers), (predicted, [head])):
        for weight in weights:
            out, inner = weight.shape
            torch.mm(states[number, inner], weight.t())
            torch.mm(states[number, out], weight)
            torch.mm(states[number, out].t(), states[number, inner])
