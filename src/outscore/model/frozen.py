"""Models that are read and never trained: a judge, the model that a text is to be likely under."""

from pathlib import Path

import torch

from outscore.model.load import load_model, stop_token_ids
from outscore.model.policy import Policy
from outscore.model.probe import probe_layout


def load_frozen(directory: str | Path, *, trust_remote_code: bool = False) -> Policy:
    """A causal language model from a directory, a .gguf file or a hub id, ready to be sampled from and asked for
    log-probs: on the GPU where there is one, in fp32, its layout probed, without gradients.

    ValueError for what cannot be loaded.
    """
    loaded = load_model(directory, trust_remote_code=trust_remote_code)
    stops = stop_token_ids(loaded.model, loaded.tokenizer)
    layout = probe_layout(loaded.model, loaded.tokenizer, stops).layout
    loaded.model.requires_grad_(False)
    torch.nn.Module.to(loaded.model, "cuda" if torch.cuda.is_available() else "cpu")
    return Policy(loaded.model, loaded.tokenizer, stop_token_ids=stops, layout=layout)
