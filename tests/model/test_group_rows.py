"""Group rows give the log-probs and gradients of separate rows, for every family, with the model's own attention as
oracle."""

import pytest
import torch
from families import SLIDING_WINDOW, VOCAB_SIZE, build_family, each_family
from torch import Tensor
from transformers import AutoModelForCausalLM, MambaConfig, PreTrainedModel

from outscore.model.logprobs import token_logprobs
from outscore.model.policy import Policy
from outscore.model.probe import probe_layout
from outscore.model.rows import GroupRows, TrainingGroup, flat_starts, group_rows, separate_rows, split_groups
from outscore.model.tiny import character_tokenizer
from outscore.records import Completion

SHAPES = ((9, (3, 17, 1)), (5, (8, 8)), (2 * SLIDING_WINDOW + 4, (2, 9, 30, 4)))
"""(prompt length, completion lengths): ragged, and longer than the sliding window."""


TOKENIZER = character_tokenizer("ab", [])
"""Not read by anything here; a policy carries one."""


def completion(length: int, generator: torch.Generator, counts: tuple[bool, ...] | None = None) -> Completion:
    ids = tuple(torch.randint(VOCAB_SIZE, (length,), generator=generator).tolist())
    return Completion(token_ids=ids, text="", counts=counts or (True,) * length)


@pytest.fixture(scope="module")
def groups() -> list[TrainingGroup]:
    generator = torch.Generator().manual_seed(1)
    made, first = [], 0
    for prompt_length, lengths in SHAPES:
        prompt = tuple(torch.randint(VOCAB_SIZE, (prompt_length,), generator=generator).tolist())
        completions = tuple(completion(length, generator) for length in lengths)
        numbers = tuple(range(first, first + len(lengths)))
        made.append(TrainingGroup(prompt_ids=prompt, completions=completions, completion_index=numbers))
        first += len(lengths)
    return made


def starts_of(groups: list[TrainingGroup]) -> list[int]:
    return flat_starts([c for group in groups for c in group.completions])


def policy_of(model: PreTrainedModel, layout: str) -> Policy:
    return Policy(model, TOKENIZER, stop_token_ids=frozenset(), layout=layout)


def by_hand(model: PreTrainedModel, groups: list[TrainingGroup]) -> Tensor:
    """One unpadded forward of the whole model for each completion; log-softmax of its logits, shifted by one."""
    found = []
    for group in groups:
        for own in group.completions:
            ids = torch.tensor([*group.prompt_ids, *own.token_ids])
            logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
            logprobs = logits.log_softmax(-1).gather(1, ids[1:, None])[:, 0]
            found.append(logprobs[len(group.prompt_ids) - 1 :])
    return torch.cat(found)


def evaluate(policy: Policy, rows: list[GroupRows], total: int) -> Tensor:
    flat = torch.zeros(total)
    for row in rows:
        flat = flat.index_copy(0, row.order, token_logprobs(policy, row).logprobs)
    return flat


@each_family
@pytest.mark.parametrize("token_budget", [10_000, 60, 20], ids=["one row", "several rows", "split groups"])
def test_group_rows_equal_separate_forwards(family: str, token_budget: int, groups: list[TrainingGroup]) -> None:
    model = build_family(family)
    weights = torch.randn(starts_of(groups)[-1], generator=torch.Generator().manual_seed(2))
    expected = by_hand(model, groups)
    (expected * weights).sum().backward()
    oracle = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    starts = starts_of(groups)
    rows = [group_rows(part, starts) for part in split_groups(groups, token_budget)]
    found = evaluate(policy_of(model, "group_rows"), rows, starts[-1])
    (found * weights).sum().backward()

    assert (found - expected).abs().max() <= 2e-4
    for name, parameter in model.named_parameters():
        assert (parameter.grad - oracle[name]).norm() <= 1e-5 * oracle[name].norm(), name


@each_family
def test_no_promised_family_falls_back(family: str) -> None:
    found = probe_layout(build_family(family), TOKENIZER, frozenset())
    assert found.layout == "group_rows", found.reason
    assert found.difference < 1e-5


def test_a_state_space_model_gets_separate_rows_and_the_report_says_so(groups: list[TrainingGroup]) -> None:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=VOCAB_SIZE, hidden_size=16, num_hidden_layers=2, state_size=4)
    model = AutoModelForCausalLM.from_config(config).eval()
    found = probe_layout(model, TOKENIZER, frozenset())
    assert found.layout == "separate_rows"
    assert "separate rows" in found.reason
    starts = starts_of(groups)
    rows = separate_rows(groups, starts)
    logprobs = evaluate(policy_of(model, "separate_rows"), [rows], starts[-1])
    torch.testing.assert_close(logprobs, by_hand(model, groups), rtol=0, atol=2e-4)


def test_the_probe_refuses_a_model_whose_attention_it_does_not_reproduce() -> None:
    """A family whose attention ignores what it is given must not pass: here keys are doubled behind our back."""
    model = build_family("llama")
    attention = model.model.layers[0].self_attn
    original = type(attention).forward

    def forward(self, *args, **kwargs):
        if "context" in kwargs:
            self.scaling = self.scaling * 2
        try:
            return original(self, *args, **kwargs)
        finally:
            self.scaling = self.head_dim**-0.5

    attention.forward = forward.__get__(attention)
    found = probe_layout(model, TOKENIZER, frozenset())
    assert found.layout == "separate_rows" and "differ" in found.reason


def test_separate_rows_equal_separate_forwards(groups: list[TrainingGroup]) -> None:
    model = build_family("llama")
    starts = starts_of(groups)
    rows = [separate_rows(part, starts) for part in split_groups(groups, 60)]
    found = evaluate(policy_of(model, "separate_rows"), rows, starts[-1])
    torch.testing.assert_close(found, by_hand(model, groups), rtol=0, atol=2e-4)


def test_order_of_groups_and_of_completions_does_not_matter(groups: list[TrainingGroup]) -> None:
    model, starts = build_family("mistral"), starts_of(groups)
    turned = [
        TrainingGroup(
            prompt_ids=group.prompt_ids,
            completions=group.completions[::-1],
            completion_index=group.completion_index[::-1],
        )
        for group in reversed(groups)
    ]
    policy = policy_of(model, "group_rows")
    one = evaluate(policy, [group_rows(groups, starts)], starts[-1])
    other = evaluate(policy, [group_rows(turned, starts)], starts[-1])
    torch.testing.assert_close(one, other, rtol=0, atol=2e-5)


def test_a_completion_does_not_see_its_siblings(groups: list[TrainingGroup]) -> None:
    model = build_family("gemma3")
    policy = policy_of(model, "group_rows")
    group = groups[0]
    altered = TrainingGroup(
        prompt_ids=group.prompt_ids,
        completions=(group.completions[0], completion(17, torch.Generator().manual_seed(9)), group.completions[2]),
        completion_index=group.completion_index,
    )
    before = token_logprobs(policy, group_rows([group], starts_of(groups)))
    after = token_logprobs(policy, group_rows([altered], starts_of(groups)))
    for number in (0, 2):
        mine = before.logprobs[group_rows([group], starts_of(groups)).completion_index == number]
        same = after.logprobs[group_rows([altered], starts_of(groups)).completion_index == number]
        torch.testing.assert_close(mine, same, rtol=0, atol=1e-5)


def test_temperature_divides_the_logits(groups: list[TrainingGroup]) -> None:
    model, starts = build_family("qwen3"), starts_of(groups)
    group, own = groups[0], groups[0].completions[0]
    ids = torch.tensor([*group.prompt_ids, *own.token_ids])
    logits = model(input_ids=ids[None], use_cache=False).logits[0, len(group.prompt_ids) - 1 : -1].float() / 0.7
    rows = group_rows(groups[:1], starts)
    found = token_logprobs(policy_of(model, "group_rows"), rows, temperature=0.7)
    mine = rows.completion_index == 0
    expected = logits.log_softmax(-1).gather(1, torch.tensor(own.token_ids)[:, None])[:, 0]
    torch.testing.assert_close(found.logprobs[mine], expected, rtol=0, atol=1e-5)
    probabilities = logits.softmax(-1)
    torch.testing.assert_close(found.entropy[mine], -(probabilities * probabilities.log()).sum(-1), rtol=0, atol=1e-5)


def test_the_head_in_chunks_is_the_head_in_one_piece(
    groups: list[TrainingGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, starts = build_family("gemma2"), starts_of(groups)
    policy = policy_of(model, "group_rows")
    rows = group_rows(groups, starts)
    whole = token_logprobs(policy, rows).logprobs
    (gradient,) = torch.autograd.grad(whole.sum(), model.model.embed_tokens.weight)
    monkeypatch.setattr("outscore.model.logprobs.CHUNK_LOGITS", 5 * VOCAB_SIZE)
    pieces = token_logprobs(policy, rows).logprobs
    (in_pieces,) = torch.autograd.grad(pieces.sum(), model.model.embed_tokens.weight)
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-6)
    assert (gradient - in_pieces).norm() <= 1e-6 * gradient.norm()


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral"])
def test_activation_checkpointing_changes_no_gradient(groups: list[TrainingGroup], family: str) -> None:
    gradients = []
    for recompute in (False, True):
        model = build_family(family).train()
        if recompute:
            model.activation_checkpointing_enable({"use_reentrant": False})
        policy = policy_of(model, "group_rows")
        token_logprobs(policy, group_rows(groups, starts_of(groups))).logprobs.sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-5)


@pytest.mark.gpu
@each_family
def test_a_gpu_gives_the_logprobs_and_gradients_of_a_cpu(groups: list[TrainingGroup], family: str) -> None:
    """The tree in plain tensor operations against the CPU's flash kernel, in fp32."""
    logprobs, gradients = [], []
    for device in ("cpu", "cuda"):
        model = build_family(family).to(device)  # type: ignore[arg-type]
        found = token_logprobs(policy_of(model, "group_rows"), group_rows(groups, starts_of(groups), device)).logprobs
        found.sum().backward()
        logprobs.append(found.detach().cpu())
        gradients.append([parameter.grad.cpu() for parameter in model.parameters() if parameter.grad is not None])
    torch.testing.assert_close(logprobs[0], logprobs[1], rtol=0, atol=2e-4)
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours - theirs).norm() <= 1e-4 * ours.norm()
