"""A causal language model with its tokenizer, as the rest of Outscore sees it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from outscore.model.attention import ATTENTION_NAME, AttentionContext

Layout = Literal["group_rows", "separate_rows"]
"""Whether a prompt is forwarded once for its group, or once for each completion."""


class Policy:
    """A model that can be sampled from and trained.

    Args:
        model: any Hugging Face causal language model, with or without peft adapters.
        tokenizer: its tokenizer.
        stop_token_ids: the tokens that end a completion.
        layout: `group_rows` if the model can take them (see `outscore.model.probe.probe_layout`).
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
            self.base.set_attn_implementation(ATTENTION_NAME)

    def save(self, directory: Path) -> None:
        """Write weights, configuration and tokenizer as Hugging Face does."""
        cast(PreTrainedModel, self.model).save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)

    def took_update(self) -> None:
        """Count an optimizer update."""
        self.version += 1

    @property
    def base(self) -> PreTrainedModel:
        """The Hugging Face model below any adapters; peft puts its layers into it in place."""
        get_base = getattr(self.model, "get_base_model", None)
        return cast(PreTrainedModel, get_base() if get_base else self.model)

    @property
    def config(self) -> Any:
        """The text model's Hugging Face configuration."""
        return self.base.config.get_text_config()

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return int(self.config.num_hidden_layers)

    @property
    def vocab_size(self) -> int:
        """Width of the output layer."""
        return int(cast(Tensor, self.base.get_output_embeddings().weight).shape[0])

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
        return cast(Tensor, self.base.get_input_embeddings().weight).dtype

    def hidden(
        self, token_ids: Int[Tensor, "row slot"], positions: Int[Tensor, "row slot"], context: AttentionContext
    ) -> Float[Tensor, "row slot hidden"]:
        """The last hidden states, with attention as the context defines it. Needs the `group_rows` layout."""
        decoder = self.base.get_decoder()
        out = decoder(input_ids=token_ids, position_ids=positions, use_cache=False, context=context)
        return cast(Tensor, out.last_hidden_state)

    def padded_hidden(
        self, token_ids: Int[Tensor, "row slot"], attention_mask: Int[Tensor, "row slot"]
    ) -> Float[Tensor, "row slot hidden"]:
        """The last hidden states of rows padded on the right, by the model's own attention (`separate_rows`)."""
        decoder = self.base.get_decoder()
        out = decoder(input_ids=token_ids, attention_mask=attention_mask, use_cache=False)
        return cast(Tensor, out.last_hidden_state)

    def logits(self, hidden: Float[Tensor, "*axes hidden"]) -> Float[Tensor, "*axes vocab"]:
        """Logits in fp32 (or fp64), with the scaling and soft cap that some architectures put behind the head."""
        head = self.base.get_output_embeddings()
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
