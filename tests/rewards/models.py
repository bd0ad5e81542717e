"""Small models on the disk whose answers are known by construction."""

from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from outscore.model.tiny import tiny_model

CHARACTERS = "".join(map(chr, range(32, 127))) + "\n"


def saying(text: str, folder: Path) -> Path:
    """A model that answers every prompt with this text: its layers do nothing, the embedding of `text`, which is one
    token, predicts the end, and that of every other token predicts `text`."""
    model, tokenizer = tiny_model(CHARACTERS, [text], 0, hidden_size=8, num_layers=1, num_heads=2, max_positions=4096)
    config = model.config
    config.tie_word_embeddings = False
    plain = LlamaForCausalLM(config)
    token, end = tokenizer.convert_tokens_to_ids(text), tokenizer.eos_token_id
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
        embeddings, head = plain.get_input_embeddings().weight, plain.get_output_embeddings().weight
        embeddings.zero_()
        embeddings[:, 1] = 1.0
        embeddings[token] = torch.eye(8)[0]
        head.zero_()
        head[token, 1] = head[end, 0] = 10.0
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def saved_policy(folder: Path, *, seed: int = 0) -> Path:
    """A model with random weights over the characters of sums."""
    model, tokenizer = tiny_model("0123456789+-= ", ["<a>"], seed, hidden_size=16, num_layers=2, num_heads=2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
