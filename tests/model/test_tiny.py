"""The embedded demo model: exact text, reproducible weights, a scale at which it learns."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from outscore.model.load import encode
from outscore.model.tiny import EOS_TOKEN, PAD_TOKEN, character_tokenizer, tiny_model

CHARACTERS = "0123456789+-= \n."
STRINGS = ["<answer>", "</answer>", "<answer>+", ".."]
TOKENIZER = character_tokenizer(CHARACTERS, STRINGS)


@given(st.text(CHARACTERS, max_size=20).flatmap(lambda t: st.sampled_from(STRINGS).map(lambda s: t + s + t)))
def test_decoding_is_the_inverse_of_encoding(text: str) -> None:
    assert TOKENIZER.decode(encode(TOKENIZER, text)) == text


def test_ids_are_pad_end_strings_as_listed_then_characters_by_code_point() -> None:
    tokenizer = character_tokenizer("ba", ["<x>", "<w>"])
    assert tokenizer.get_vocab() == {PAD_TOKEN: 0, EOS_TOKEN: 1, "<x>": 2, "<w>": 3, "a": 4, "b": 5}
    assert tokenizer.pad_token_id == 0 and tokenizer.eos_token_id == 1
    assert encode(tokenizer, "a<w>b<x>") == [4, 3, 5, 2]


def test_encoding_adds_no_special_tokens() -> None:
    tokenizer = character_tokenizer("ab", [])
    assert tokenizer("ab")["input_ids"] == [2, 3]


def test_the_longest_special_string_wins() -> None:
    assert [TOKENIZER.decode([i]) for i in encode(TOKENIZER, "<answer>+1")] == ["<answer>+", "1"]
    assert [TOKENIZER.decode([i]) for i in encode(TOKENIZER, "...")] == ["..", "."]


def test_decoding_without_special_tokens_drops_end_and_keeps_tags() -> None:
    ids = [*encode(TOKENIZER, "<answer>7</answer>"), TOKENIZER.eos_token_id, TOKENIZER.pad_token_id]
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "<answer>7</answer>"


def test_an_unknown_character_is_named() -> None:
    with pytest.raises(ValueError, match="character 'x' in '1x'"):
        encode(TOKENIZER, "1x")


@pytest.mark.parametrize(("characters", "strings"), [("ab", ["<"]), ("ab", ["<x>", "<x>"]), (["ab"], [])])
def test_strings_that_cannot_be_tokens_are_refused(characters: str, strings: list[str]) -> None:
    with pytest.raises(ValueError, match="character"):
        character_tokenizer(characters, strings)


def _small(seed: int, **sizes: int) -> torch.nn.Module:
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 64} | sizes
    return tiny_model("01+", ["<a>"], seed, **sizes)[0]


def test_the_seed_decides_the_weights_and_torchs_state_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    first = _small(0).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(123)
    again, other = _small(0).state_dict(), _small(1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_default_sizes_stay_below_three_million_and_more_is_refused() -> None:
    model, tokenizer = tiny_model(CHARACTERS, STRINGS, 0)
    # By hand: embedding V*d; a layer has q and o of d*d, k and v of d*d/2, three of d*f, two norms of d; a last norm.
    d, f, v = 256, 512, len(tokenizer)
    expected = v * d + 2 * (3 * d * d + 3 * d * f + 2 * d) + d
    assert sum(p.numel() for p in model.parameters()) == expected < 3_000_000
    with pytest.raises(ValueError, match="at most 3,000,000"):
        tiny_model(CHARACTERS, STRINGS, 0, hidden_size=512, num_heads=8)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="hidden_size=32"):
        _small(0, num_heads=5)


def test_first_predictions_are_near_uniform_but_not_flat() -> None:
    model, tokenizer = tiny_model(CHARACTERS, STRINGS, 0)
    ids = torch.randint(2, len(tokenizer), (4, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(ids).logits
    assert 0.2 < logits.std().item() < 2.0
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert abs(loss.item() - math.log(len(tokenizer))) < 1.0


def test_saved_and_loaded_it_is_the_same_model_and_tokenizer(tmp_path: Path) -> None:
    model, tokenizer = tiny_model("01+\n ", ["<a>"], 0, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    reread = AutoTokenizer.from_pretrained(tmp_path)
    text = "1 + 0\n<a>1"
    ids = encode(tokenizer, text)
    assert encode(reread, text) == ids and reread.decode(ids) == text
    assert (reread.eos_token_id, reread.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id
    with torch.no_grad():
        assert torch.equal(loaded(torch.tensor([ids])).logits, model(torch.tensor([ids])).logits)
