"""The sampled distribution against exact enumeration: every completion a tiny model can give, counted."""

from itertools import product

import pytest
import torch
from rollout.conformance import word_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from outscore.model.policy import Layout, Policy
from outscore.records import Problem, Prompt, SampleRequest, SamplingParams
from outscore.rollout import make_sampler

VOCAB, LIMIT, STOP = 4, 3, 0
PROMPT = Prompt(problem=Problem(id="p", question="", answer=None, columns={}), text="", token_ids=(1, 3, 2))


def build_model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


def enumerate_completions(model: LlamaForCausalLM, temperature: float, top_k: int) -> dict[tuple[int, ...], float]:
    """Every completion with its probability: 1 + 3 + 9 that stop early or not, by plain forward passes."""
    probabilities = {}
    for ids in {cut(full) for full in product(range(VOCAB), repeat=LIMIT)}:
        with torch.no_grad():
            logits = model(torch.tensor([[*PROMPT.token_ids, *ids]])).logits[0, 2:-1].double() / temperature
        if top_k:
            logits[logits < logits.topk(top_k).values[:, -1:]] = -torch.inf
        probabilities[ids] = float(logits.softmax(-1)[range(len(ids)), ids].prod())
    return {ids: probability for ids, probability in probabilities.items() if probability > 0}


def cut(ids: tuple[int, ...]) -> tuple[int, ...]:
    return ids[: ids.index(STOP) + 1] if STOP in ids else ids


@pytest.mark.parametrize("layout", ["group_rows", "separate_rows"])
@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 0), (0.7, 3)])
def test_completions_are_as_frequent_as_enumeration_says(layout: Layout, temperature: float, top_k: int):
    expected = enumerate_completions(build_model(), temperature, top_k)
    assert sum(expected.values()) == pytest.approx(1.0, abs=1e-9)
    policy = Policy(build_model(), word_tokenizer(), stop_token_ids=frozenset({STOP}), layout=layout)
    count = 6000
    params = SamplingParams(max_new_tokens=LIMIT, temperature=temperature, top_k=top_k)
    request = SampleRequest(prompt=PROMPT, num_samples=count, slot=0)
    [group] = make_sampler(policy, 1000).sample([request], params, seed=11, step=0)
    observed = dict.fromkeys(expected, 0)
    for sampled in group.completions:
        observed[sampled.completion.token_ids] += 1
        assert sum(sampled.sampler_logprobs) == pytest.approx(
            torch.tensor(expected[sampled.completion.token_ids]).log().item(), abs=1e-5
        )
    assert min(expected.values()) * count > 5  # the chi-square approximation holds
    chi_square = sum((observed[ids] - p * count) ** 2 / (p * count) for ids, p in expected.items())
    freedom = len(expected) - 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5
