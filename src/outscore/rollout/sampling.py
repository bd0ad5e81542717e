"""From logits and uniform numbers to a token and its log-prob under the distribution truly sampled from.

The filters apply in the order temperature, top-k, top-p, min-p, each on what the ones before it left, and the result is
renormalised. All three keep tokens whose logit reaches some value, so together they are one cutoff per row, and tokens
of equal probability stay or go together: the filtered distribution does not depend on how tokens are numbered.

The token is found by inverse CDF in vocabulary order: the first id whose cumulative probability exceeds the uniform
number.
"""

import math

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from outscore.records import SamplingParams

_BLOCK = 256  # vocabulary ids summed at a time: about the square root of the largest vocabularies


def check_params(params: SamplingParams) -> None:
    """Raise ValueError, naming key and value, for parameters that define no distribution."""
    if params.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: must be at least 1, got {params.max_new_tokens}")
    if not (params.temperature >= 0 and math.isfinite(params.temperature)):
        raise ValueError(f"temperature: must be 0 (greedy) or a positive number, got {params.temperature}")
    if not all(params.until):
        raise ValueError("until: a text of no length is always written; leave it out")
    if params.top_k < 0:
        raise ValueError(f"top_k: must be 0 (keep all) or the number of tokens to keep, got {params.top_k}")
    if not 0 < params.top_p <= 1:
        raise ValueError(f"top_p: must be above 0 and at most 1 (keep all), got {params.top_p}")
    if not 0 <= params.min_p <= 1:
        raise ValueError(f"min_p: must be between 0 (keep all) and 1, got {params.min_p}")


def choose(
    logits: Float[Tensor, "row vocab"],
    uniforms: Float64[Tensor, " draw"],
    rows: Int64[Tensor, " draw"],
    params: SamplingParams,
) -> tuple[Int64[Tensor, " draw"], Float64[Tensor, " draw"]]:
    """Choose one token for each draw; any number of draws may be from one row.

    Args:
        logits: unnormalised log-probs; -inf marks an impossible token. Not changed.
        uniforms: one number in [0, 1) for each draw.
        rows: the row each draw is from.
        params: temperature and filters; temperature 0 takes the most probable token, the lowest id among equals.

    Returns:
        The token ids, and their log-probs after temperature, filters and renormalisation (0 where greedy). A draw from
        a row whose logits hold NaN or +inf gets the log-prob NaN and an id without meaning.
    """
    if params.temperature == 0:
        ids = logits.argmax(-1)  # the first of equals, as torch documents
        peak = logits.gather(1, ids[:, None])[:, 0].double()
        return ids[rows], (peak - peak)[rows]
    num_rows, vocab = logits.shape
    peak = logits.amax(-1, keepdim=True)
    num_blocks = -(-vocab // _BLOCK)
    weights = logits.new_empty(num_rows, num_blocks * _BLOCK)
    weights[:, vocab:].zero_()
    tempered = torch.sub(logits, peak, out=weights[:, :vocab])
    if params.temperature != 1:
        tempered.div_(params.temperature)
    if params.truncates:
        tempered.masked_fill_(tempered < _cutoff(tempered, params), -torch.inf)
    tempered.exp_()
    blocks = weights.view(num_rows, num_blocks, _BLOCK)
    ids, total = _invert(blocks, uniforms[:, None], rows)
    ids = ids.clamp_max(vocab - 1)  # a row of NaN points past the end; any id will do, for its log-prob is NaN
    logprobs = (logits[rows, ids] - peak[rows, 0]).double() / params.temperature - total.log()
    return ids, logprobs


def _invert(
    blocks: Float[Tensor, "row block id"], uniforms: Float64[Tensor, "draw 1"], rows: Int64[Tensor, " draw"]
) -> tuple[Int64[Tensor, " draw"], Float64[Tensor, " draw"]]:
    """The inverse CDF at two levels, block and id within it, and the sum of each draw's weights.

    Sums over blocks stay in the weights' own precision; one number per block and one block per row accumulate in fp64.
    """
    ends = blocks.sum(-1).double().cumsum(-1).index_select(0, rows)
    total = ends[:, -1:]
    target = uniforms * total
    block = _first_above(ends, target)
    end = ends.gather(1, block)
    start = torch.where(block > 0, ends.gather(1, (block - 1).clamp_min(0)), 0.0)
    inside = blocks[rows, block[:, 0]].double().cumsum(-1)
    # The fp64 sum of the block differs from its own sum by rounding: the target keeps its *share* of the block.
    share = (target - start) / (end - start)
    offset = _first_above(inside, share * inside[:, -1:])
    return (block * _BLOCK + offset)[:, 0], total[:, 0]


def _first_above(
    cumulative: Float64[Tensor, "draw slot"], target: Float64[Tensor, "draw 1"]
) -> Int64[Tensor, "draw 1"]:
    """The first slot whose cumulative sum exceeds the target: a slot of weight 0 adds nothing and is never the first.
    A target that rounding lifted to the very end is taken just below it, so that the last slot with weight answers."""
    below_end = torch.nextafter(cumulative[:, -1:], torch.zeros_like(target))
    found = torch.searchsorted(cumulative, torch.minimum(target, below_end), right=True)
    return found.clamp_max(cumulative.shape[1] - 1)


def _cutoff(tempered: Float[Tensor, "row vocab"], params: SamplingParams) -> Float[Tensor, "row 1"]:
    """The smallest kept value of each row, of logits that are tempered and shifted so that the largest is 0."""
    vocab = tempered.shape[1]
    cutoff = tempered.new_full((len(tempered), 1), -torch.inf)
    if 0 < params.top_k < vocab:
        cutoff = tempered.topk(params.top_k).values[:, -1:]
    if params.top_p < 1:
        cutoff = _nucleus_cutoff(tempered, cutoff, params.top_p)
    if params.min_p > 0:
        cutoff = cutoff.clamp_min(math.log(params.min_p))
    return cutoff


def _nucleus_cutoff(
    tempered: Float[Tensor, "row vocab"], floor: Float[Tensor, "row 1"], top_p: float
) -> Float[Tensor, "row 1"]:
    """The value of the last token in the smallest set of most probable tokens with `top_p` of what `floor` keeps.

    Tokens less probable than (1 - top_p) / vocab are less than 1 - top_p together, so the set ends before them: only
    the others need to be sorted. Half that bound leaves room for rounding.
    """
    weights = tempered.exp().masked_fill_(tempered < floor, 0)
    total = weights.sum(-1, keepdim=True, dtype=torch.float64)
    negligible = total * ((1 - top_p) / tempered.shape[1] / 2)
    width = _num_sorted(weights, negligible)
    largest = weights.topk(width)
    reached = largest.values.double().cumsum(-1) >= top_p * total
    # Where rounding keeps the sum from reaching it, the set is everything that was sorted.
    last = torch.where(reached.any(-1, keepdim=True), reached.int().argmax(-1, keepdim=True), width - 1)
    return torch.maximum(tempered.gather(1, largest.indices.gather(1, last)), floor)


def _num_sorted(weights: Float[Tensor, "row vocab"], negligible: Float64[Tensor, "row 1"]) -> int:
    """How many of a row's tokens need to be sorted. A GPU sorts all: how many would do is not worth waiting for it."""
    if weights.device.type != "cpu":
        return weights.shape[1]
    return max(int((weights > negligible).sum(-1).max()), 1)
