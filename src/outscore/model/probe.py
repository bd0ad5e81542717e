"""Whether a model can take group rows, found out by trying."""

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from outscore.model.attention import TreeAttention
from outscore.model.forest import Segment
from outscore.model.heads import RewardModel, completion_scores
from outscore.model.policy import Layout, Policy
from outscore.model.rows import TrainingGroup, flat_starts, group_rows, separate_rows
from outscore.records import Completion


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutProbe:
    """What was found when the model was asked whether it can take group rows."""

    layout: Layout
    """The layout to use."""
    difference: float
    """Mean absolute difference of log-probs, group rows against the model's own forward; NaN if group rows failed."""
    reason: str
    """Why, in a sentence, for the run's report."""


PROBE_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest mean difference taken for rounding. A wrong mask or position shifts log-probs by far more."""

_DOES_NOT_FIT = (RuntimeError, TypeError, ValueError, AttributeError, KeyError, NotImplementedError)
"""What a model raises whose architecture cannot take group rows."""


@torch.no_grad()
def probe_layout(model: nn.Module, tokenizer: PreTrainedTokenizerBase, stop_token_ids: frozenset[int]) -> LayoutProbe:
    """Decide by trying, not by the model's name, whether group rows give what the model itself gives on separate
    rows."""
    plain = Policy(model, tokenizer, stop_token_ids=stop_token_ids, layout="separate_rows")
    base = plain.base
    own_attention = base.config._attn_implementation
    generator = torch.Generator().manual_seed(0)
    prompt, first, second = (
        torch.randint(0, plain.vocab_size, (n,), generator=generator).to(plain.device) for n in (24, 9, 13)
    )
    with plain.evaluating():
        try:
            shared = Policy(model, tokenizer, stop_token_ids=stop_token_ids, layout="group_rows")
            sizes = [(0, 24, -1), (24, 9, 0), (33, 13, 0)]
            tree = TreeAttention([Segment(start=s, length=n, parent=p) for s, n, p in sizes], plain.device)
            row = torch.cat([prompt, first, second])[None]
            logits = shared.logits(shared.hidden(row, tree.positions[None], tree))[0]
        except _DOES_NOT_FIT as error:  # the run goes on with separate rows, and its report says why
            base.set_attn_implementation(own_attention)
            why = f"group rows are not possible for {type(base).__name__} ({type(error).__name__}: {error})"
            return LayoutProbe(layout="separate_rows", difference=float("nan"), reason=f"separate rows: {why}")
        base.set_attn_implementation(own_attention)
        differences = [
            (logits[start : start + len(own)].log_softmax(-1) - _own_logprobs(base, prompt, own)).abs().mean()
            for start, own in ((24, first), (33, second))
        ]
    difference = float(torch.stack(differences).max())
    tolerance = PROBE_TOLERANCE[plain.compute_dtype]
    if not difference <= tolerance:
        reason = (
            f"separate rows: group rows differ by {difference:.1e} in log-prob, more than rounding ({tolerance:.0e})"
        )
        return LayoutProbe(layout="separate_rows", difference=difference, reason=reason)
    reason = f"group rows agree with separate rows (mean log-prob difference {difference:.1e})"
    return LayoutProbe(layout="group_rows", difference=difference, reason=reason)


def _own_logprobs(model: PreTrainedModel, prompt: Tensor, completion: Tensor) -> Float[Tensor, "slot vocab"]:
    logits = model(input_ids=torch.cat([prompt, completion])[None], use_cache=False).logits[0, len(prompt) :]
    return cast(Tensor, logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1))


@torch.no_grad()
def with_group_rows(model: RewardModel) -> RewardModel:
    """The same model with group rows, if it then gives the scores that it gives on separate rows; else itself."""
    generator = torch.Generator().manual_seed(0)
    prompt, *answers = (
        tuple(torch.randint(0, model.vocab_size, (n,), generator=generator).tolist()) for n in (24, 9, 13)
    )
    completions = tuple(Completion(token_ids=ids, text="", counts=(False,) * len(ids)) for ids in answers)
    group = TrainingGroup(prompt_ids=prompt, completions=completions, completion_index=(0, 1))
    starts = flat_starts(completions)
    own_attention = model.base.config._attn_implementation
    with model.evaluating():
        expected = completion_scores(model, separate_rows([group], starts, model.device))
        try:
            shared = RewardModel(model.model, model.tokenizer, stop_token_ids=model.stop_token_ids, layout="group_rows")
            found = completion_scores(shared, group_rows([group], starts, model.device))
        except _DOES_NOT_FIT:
            found = torch.full_like(expected, torch.nan)
    tolerance = PROBE_TOLERANCE[model.compute_dtype] * expected.abs().amax().clamp_min(1.0)
    if bool((found - expected).abs().amax() <= tolerance):
        return shared
    model.base.set_attn_implementation(own_attention)
    return model
