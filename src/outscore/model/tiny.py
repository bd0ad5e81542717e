"""The embedded demo model: a small Llama and its character tokenizer, made from nothing but a recipe.

It is an ordinary Hugging Face model: `save_pretrained` and the Auto classes work on it, and nothing else in Outscore
knows it is small.
"""

import math
import re
from collections.abc import Iterable, Sequence

import torch
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RawTokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD_TOKEN = "<|pad|>"
EOS_TOKEN = "<|end|>"
MAX_PARAMETERS = 3_000_000
INIT_GAIN = 1.0
"""Chosen, as the sizes below, by the share of 400 held-out problems whose demonstration the model predicts after 120
steps of the demo's SFT, on three seeds. With 8 heads: gain 0.7 18 % (mean), 1.0 42 %, 1.5 23 %, 2.0 4 %. With gain 1.0:
4 heads 23 %, 8 heads 42 % and between 19 and 66 %, 16 heads 51 % on every seed."""


def tiny_model(
    task_characters: Iterable[str],
    special_strings: Sequence[str],
    seed: int,
    *,
    hidden_size: int = 256,
    num_layers: int = 2,
    num_heads: int = 16,
    intermediate_size: int = 512,
    max_positions: int = 512,
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Build a Llama with random weights and a tokenizer for exactly these characters and strings.

    The weights depend on `seed` and the sizes only, and torch's random state is left as it was. fp32, dropout 0,
    embeddings tied, half as many key-value heads as query heads when that divides evenly. ValueError when sizes do not
    fit together or make more than 3M parameters.

    >>> model, tokenizer = tiny_model("0123456789+=", ["<answer>", "</answer>"], seed=0)
    """
    if hidden_size % num_heads or (hidden_size // num_heads) % 2:
        raise ValueError(f"hidden_size={hidden_size} must be num_heads={num_heads} times an even number (rotary pairs)")
    tokenizer = character_tokenizer(task_characters, special_strings)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads // 2 if num_heads % 2 == 0 else num_heads,
        max_position_embeddings=max_positions,
        tie_word_embeddings=True,
        attention_dropout=0.0,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        initialise(model)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    if num_parameters > MAX_PARAMETERS:
        raise ValueError(
            f"these sizes make {num_parameters:,} parameters: the tiny model has at most {MAX_PARAMETERS:,}"
        )
    return model.eval(), tokenizer


def character_tokenizer(task_characters: Iterable[str], special_strings: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token for each character and one for each special string; decoding is the exact inverse of encoding.

    Ids: pad 0, end 1, then special strings in the order given, then characters by code point, so that the vocabulary
    does not depend on the order of the data. Special strings are ordinary tokens: decoding keeps them, unlike pad and
    end. A character outside the vocabulary raises (`load.encode` says which one it is); nothing becomes an unknown
    token silently.
    """
    characters = sorted(set(task_characters))
    strings = list(special_strings)
    for string in strings:
        if len(string) < 2 or strings.count(string) > 1 or string in (PAD_TOKEN, EOS_TOKEN):
            raise ValueError(f"special string {string!r} must have two or more characters and be listed once")
    for character in characters:
        if len(character) != 1:
            raise ValueError(f"task character {character!r} is not a single character: list it in special_strings")
    vocabulary = {token: i for i, token in enumerate([PAD_TOKEN, EOS_TOKEN, *strings, *characters])}
    raw = RawTokenizer(models.WordLevel(vocabulary))
    # Longest first: an alternation takes the first branch that matches, not the longest.
    pieces = [re.escape(string) for string in sorted(strings, key=len, reverse=True)]
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("|".join([*pieces, r"[\s\S]"])), behavior="isolated")
    raw.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=EOS_TOKEN, pad_token=PAD_TOKEN, clean_up_tokenization_spaces=False
    )


def initialise(model: LlamaForCausalLM) -> None:
    """Normal weights at the scale at which a small network learns soon and still generalises.

    Matrices, the tied embedding among them, have standard deviation `INIT_GAIN` / sqrt(fan_in); those that write into
    the residual stream 1/sqrt(2 * layers) of that (GPT-2's rule), so that the stream keeps its scale. For a hidden size
    of 256 it is 0.0625; the usual 0.02 suits wider nets.
    """
    residual = 1.0 / math.sqrt(2.0 * model.config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            continue  # norms keep their 1
        std = INIT_GAIN / math.sqrt(parameter.shape[-1])
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            std *= residual
        torch.nn.init.normal_(parameter, std=std)
