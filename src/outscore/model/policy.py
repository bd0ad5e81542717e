"""A causal language model with its tokenizer, as the rest of Outscore sees it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from outscore.model.attention import ATTENTION_NAME, AttentionContext, TreeAttention

Layout = Literal["group_rows", "separate_rows"]
"""Whether a prompt is forwarded once for its group, or once for each completion."""


class Policy:
    """A model that can be sampled from and trained.

    Args:
        model: any Hugging Face causal language model, with or without peft adapters.
        tokenizer: its tokenizer.
        stop_token_ids: the tokens that end a completion.
        layout: `group_rows` if the model can take them (see `outscore.model.probe.choose_layout`).
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        stop_token_ids: frozenset[int],
        layout: Layout = "group_rows",
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.stop_token_ids = stop_token_ids
        self.layout: Layout = layout
        self.version = 0
        """Optimizer updates taken; completions carry the version they were sampled from."""
        if layout == "group_rows":
            self._base.set_attn_implementation(ATTENTION_NAME)

    @property
    def _base(self) -> PreTrainedModel:
        """The Hugging Face model below any adapters; peft puts its layers into it in place."""
        get_base = getattr(self.model, "get_base_model", None)
        return cast(PreTrainedModel, get_base() if get_base else self.model)

    @property
    def config(self) -> Any:
        """The text model's Hugging Face configuration."""
        return self._base.config.get_text_config()

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return int(self.config.num_hidden_layers)

    @property
    def vocab_size(self) -> int:
        """Width of the output layer."""
        return int(self._base.get_output_embeddings().weight.shape[0])

    @property
    def context_length(self) -> int | None:
        """The longest sequence the model was built for, if its configuration says."""
        length = getattr(self.config, "max_position_embeddings", None)
        return int(length) if length else None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def compute_dtype(self) -> torch.dtype:
        """The type the model computes in."""
        return self._base.get_input_embeddings().weight.dtype

    def hidden(
        self, token_ids: Int[Tensor, "row slot"], positions: Int[Tensor, "row slot"], context: AttentionContext
    ) -> Float[Tensor, "row slot hidden"]:
        """The last hidden states, with attention as the context defines it. Needs the `group_rows` layout."""
        decoder = self._base.get_decoder()
        out = decoder(input_ids=token_ids, position_ids=positions, use_cache=False, context=context)
        return cast(Tensor, out.last_hidden_state)

    def padded_hidden(
        self, token_ids: Int[Tensor, "row slot"], attention_mask: Int[Tensor, "row slot"]
    ) -> Float[Tensor, "row slot hidden"]:
        """The last hidden states of rows padded on the right, by the model's own attention (`separate_rows`)."""
        decoder = self._base.get_decoder()
        out = decoder(input_ids=token_ids, attention_mask=attention_mask, use_cache=False)
        return cast(Tensor, out.last_hidden_state)

    def logits(self, hidden: Float[Tensor, "*axes hidden"]) -> Float[Tensor, "*axes vocab"]:
        """Logits in fp32 (or fp64), with the scaling and soft cap that some architectures put behind the head."""
        head = self._base.get_output_embeddings()
        logits = head(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        config = self.config
        if (scale := getattr(config, "logit_scale", None)) is not None:  # Cohere multiplies
            logits = logits * scale
        if (divisor := getattr(config, "logits_scaling", None)) is not None:  # Granite divides
            logits = logits / divisor
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Gemma 2 and 3
            logits = cap * torch.tanh(logits / cap)
        return cast(Tensor, logits)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Eval mode for the block, then the mode there was."""
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)


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


@torch.no_grad()
def probe_layout(model: nn.Module, tokenizer: PreTrainedTokenizerBase, stop_token_ids: frozenset[int]) -> LayoutProbe:
    """Decide by trying, not by the model's name, whether group rows give what the model itself gives on separate rows."""
    from outscore.model.attention import Segment

    plain = Policy(model, tokenizer, stop_token_ids=stop_token_ids, layout="separate_rows")
    base = plain._base
    own_attention = base.config._attn_implementation
    generator = torch.Generator().manual_seed(0)
    vocab = min(plain.vocab_size, base.get_input_embeddings().weight.shape[0])
    prompt, first, second = (torch.randint(0, vocab, (n,), generator=generator).to(plain.device) for n in (24, 9, 13))
    with plain.evaluating():
        try:
            shared = Policy(model, tokenizer, stop_token_ids=stop_token_ids, layout="group_rows")
            sizes = [(0, 24, -1), (24, 9, 0), (33, 13, 0)]
            tree = TreeAttention([Segment(start=s, length=n, parent=p) for s, n, p in sizes], plain.device)
            row = torch.cat([prompt, first, second])[None]
            logits = shared.logits(shared.hidden(row, tree.positions[None], tree))[0]
        except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, NotImplementedError) as error:
            # Any of these means the architecture does not fit; the run goes on with separate rows and its report says why.
            base.set_attn_implementation(own_attention)
            reason = f"separate rows: group rows are not possible for {type(base).__name__} ({type(error).__name__}: {error})"
            return LayoutProbe(layout="separate_rows", difference=float("nan"), reason=reason)
        base.set_attn_implementation(own_attention)
        differences = [
            (logits[start : start + len(own)].log_softmax(-1) - _own_logprobs(base, prompt, own)).abs().mean()
            for start, own in ((24, first), (33, second))
        ]
    difference = float(torch.stack(differences).max())
    tolerance = PROBE_TOLERANCE[plain.compute_dtype]
    if not difference <= tolerance:
        reason = f"separate rows: group rows differ by {difference:.1e} in log-prob, more than rounding ({tolerance:.0e})"
        return LayoutProbe(layout="separate_rows", difference=difference, reason=reason)
    reason = f"group rows agree with separate rows (mean log-prob difference {difference:.1e})"
    return LayoutProbe(layout="group_rows", difference=difference, reason=reason)


def _own_logprobs(model: PreTrainedModel, prompt: Tensor, completion: Tensor) -> Float[Tensor, "slot vocab"]:
    logits = model(input_ids=torch.cat([prompt, completion])[None], use_cache=False).logits[0, len(prompt) :]
    return cast(Tensor, logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1))
