"""The engine for models that cannot take group rows: the same laws, on a state-space model and on ordinary ones."""

import pytest
import torch
from families import BOS_ID, EOS_ID, PAD_ID, VOCAB_SIZE, build_family
from rollout.conformance import PARAMS, STOPS, Backend, FormLaws, ModelLaws, ids_of, requests, word_tokenizer
from transformers import MambaConfig, MambaForCausalLM, PreTrainedModel

from outscore.model.policy import Policy
from outscore.rollout import GroupEngine, SeparateEngine, make_sampler


def build_mamba() -> PreTrainedModel:
    config = MambaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=16,
        state_size=4,
        num_hidden_layers=2,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        initializer_range=0.5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MambaForCausalLM(config).eval()


def build(name: str) -> PreTrainedModel:
    return build_mamba() if name == "mamba" else build_family(name)


class TestSeparateEngine(FormLaws, ModelLaws):
    @pytest.fixture(scope="class", params=["mamba", "gemma3"])
    @classmethod
    def backend(cls, request):
        policy = Policy(build(request.param), word_tokenizer(), stop_token_ids=STOPS, layout="separate_rows")
        return Backend(
            make=lambda max_rows: SeparateEngine(policy, max_rows=max_rows),
            tokenizer=policy.tokenizer,
            reference=build(request.param),
        )


def test_both_engines_draw_the_same_completions():
    separate, shared = (
        Policy(build_family("mistral"), word_tokenizer(), stop_token_ids=STOPS, layout=layout)
        for layout in ("separate_rows", "group_rows")
    )
    expected = GroupEngine(shared, max_rows=8).sample(requests(), PARAMS, seed=8, step=9)
    assert ids_of(SeparateEngine(separate, max_rows=8).sample(requests(), PARAMS, seed=8, step=9)) == ids_of(expected)


def test_the_layout_decides_the_sampler():
    policy = Policy(build_mamba(), word_tokenizer(), stop_token_ids=STOPS, layout="separate_rows")
    assert isinstance(make_sampler(policy, 8), SeparateEngine)
    with pytest.raises(ValueError, match="make_sampler"):
        SeparateEngine(Policy(build_family("llama"), word_tokenizer(), stop_token_ids=STOPS), max_rows=8)
    with pytest.raises(ValueError, match="max_rows"):
        SeparateEngine(policy, max_rows=0)
