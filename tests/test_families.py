"""The tiny models are what other tests take them for."""

import torch
from families import EOS_ID, SLIDING_WINDOW, VOCAB_SIZE, build_family, each_family


@each_family
def test_a_family_has_three_small_layers_with_grouped_query_heads(family):
    model = build_family(family)
    config = model.config
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (3, 4, 2)
    assert config.vocab_size == VOCAB_SIZE and config.eos_token_id == EOS_ID
    assert config.model_type in {family, f"{family}_text"}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training


@each_family
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(family):
    first, again, other = build_family(family), build_family(family), build_family(family, seed=1)
    pairs = list(zip(first.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not any(torch.equal(a, c) for a, _, c in pairs)


@each_family
def test_next_token_distributions_are_neither_flat_nor_certain(family, family_model):
    tokens = torch.arange(3, 27)[None]
    with torch.no_grad():
        probability = family_model(family)(tokens).logits.softmax(-1)
    assert 1.5 / VOCAB_SIZE < probability.max(-1).values.mean() < 0.9


def test_sliding_families_forget_what_lies_beyond_their_windows(family_model):
    """Only Mistral slides in every layer: three layers reach back 3 * (window - 1) tokens and no further."""
    reach = 3 * (SLIDING_WINDOW - 1)
    tokens = torch.arange(3, 3 + reach + 2)[None]
    changed = tokens.clone()
    changed[0, 0] = 60
    with torch.no_grad():
        difference = (
            (family_model("mistral")(tokens).logits - family_model("mistral")(changed).logits).abs().amax(-1)[0]
        )
    assert difference[reach] > 1e-6
    assert difference[reach + 1] == 0.0


def test_fewer_layers_on_request():
    assert build_family("gemma3", num_layers=2).config.layer_types == ["sliding_attention", "full_attention"]
