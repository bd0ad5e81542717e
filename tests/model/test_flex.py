"""FlexAttention over a forest. What a CPU can say: who sees whom, which blocks are computed, and that the mathematics
is that of a dense mask, gradients too. What its kernels compute on a GPU is asked by the tests marked `gpu`."""

import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from families import FAMILIES, SLIDING_WINDOW, each_family
from model.forests import BRANCHING, DEEP, GROUPS, MANY, assert_as_dense, dense, forest, states, visible
from torch import Tensor
from torch._dynamo.backends.registry import lookup_backend
from torch.nn.attention import flex_attention as pytorch
from transformers import AutoModelForCausalLM

from outscore.model import flex, kernels
from outscore.model.attention import TreeAttention
from outscore.model.flex import FlexTree
from outscore.model.forest import Segment
from outscore.model.kernels import Heads, KernelProbe, fits, heads_of, kernel_for, probe_kernel, try_flex
from outscore.model.logprobs import token_logprobs
from outscore.model.policy import Policy
from outscore.model.rows import TrainingGroup, flat_starts, group_rows
from outscore.model.tiny import character_tokenizer
from outscore.records import Completion

# PyTorch looks at the gradients of a kernel's inputs when it traces it, and hides the warning unless it is an error.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")

compiles = pytest.mark.filterwarnings("default")
"""PyTorch's compiler warns of itself."""

CPU = torch.device("cpu")
HEADS = Heads(
    device=CPU, dtype=torch.float32, num_heads=4, num_kv_heads=2, dim=16, value_dim=16, softcap=None, windowed=False
)


def any_forest(draw: random.Random, num_tokens: int) -> list[Segment]:
    """Segments of any length that continue any segment whose subtree is still open."""
    shapes: list[tuple[int, int]] = []
    path: list[int] = []
    while sum(length for length, _ in shapes) < num_tokens:
        path = path[: draw.randrange(len(path) + 1)]
        shapes.append((draw.choice((1, 2, 3, 5, 9, 17)), path[-1] if path else -1))
        path.append(len(shapes) - 1)
    return forest(*shapes)


def lists(counts: Tensor, numbers: Tensor) -> Tensor:
    """Lists of blocks as a dense matrix; no block may stand in a list twice. The kernels read them without asking for
    strides."""
    assert counts.is_contiguous() and numbers.is_contiguous()
    blocks = torch.zeros(numbers.shape[2:], dtype=torch.int)
    for row, (count, listed) in enumerate(zip(counts[0, 0], numbers[0, 0], strict=True)):
        for number in listed[:count].tolist():
            blocks[row, number] += 1
    assert int(blocks.max()) <= 1
    return blocks.bool()


@pytest.mark.parametrize("window", [None, 1, 2, 5, 12, 1000])
def test_the_blocks_are_those_of_the_dense_mask_and_scores_are_masked_where_it_masks(window, monkeypatch):
    """Forests of blocks of four tokens: of each block whether it shows some score and whether all, in both orders of
    lists (by queries, as the forward pass reads them, and by keys, as the backward pass does)."""
    monkeypatch.setattr(flex, "BLOCK", 4)
    draw = random.Random(0)
    for size in (*range(1, 20), 40, 60, 80):
        segments = any_forest(draw, size)
        tree = FlexTree(segments, CPU)
        padded = [*segments, Segment(start=tree.num_tokens, length=tree.padding, parent=-1)]
        expected = visible(padded if tree.padding else segments, window)
        mask = tree.mask(window)
        assert mask.seq_lengths == expected.shape
        places = torch.arange(len(expected))
        found = mask.mask_mod(torch.tensor(0), torch.tensor(0), places[:, None], places)
        assert torch.equal(found.expand(expected.shape), expected)
        blocks = expected.unflatten(0, (-1, 4)).unflatten(2, (-1, 4)).transpose(1, 2).flatten(2)
        assert torch.equal(lists(mask.full_kv_num_blocks, mask.full_kv_indices), blocks.all(2))
        assert torch.equal(lists(mask.kv_num_blocks, mask.kv_indices), blocks.any(2) & ~blocks.all(2))
        assert torch.equal(lists(mask.full_q_num_blocks, mask.full_q_indices), blocks.all(2).t())
        assert torch.equal(lists(mask.q_num_blocks, mask.q_indices), (blocks.any(2) & ~blocks.all(2)).t())


def test_masks_are_made_once_and_a_window_that_nothing_outruns_is_none():
    tree = FlexTree(GROUPS, CPU)
    assert tree.mask(3) is tree.mask(3) is not tree.mask(None)
    assert tree.mask(1000) is tree.mask(None)


@pytest.mark.parametrize("num_blocks", [1, 4])
def test_work_grows_with_the_group_and_with_the_square_of_the_length(num_blocks):
    """Prompt and G completions of n blocks: causal triangles, and the prompt for each completion. All blocks of the row
    would be ((G + 1) n)²."""
    length = num_blocks * flex.BLOCK
    for size in (1, 2, 8, 32):
        mask = FlexTree(forest((length, -1), *[(length, 0)] * size), CPU).mask(None)
        triangle = num_blocks * (num_blocks - 1) // 2
        assert int(mask.kv_num_blocks.sum()) == (size + 1) * num_blocks  # along the diagonal
        assert int(mask.full_kv_num_blocks.sum()) == (size + 1) * triangle + size * num_blocks**2


def test_a_window_bounds_the_work_of_long_completions():
    tree = FlexTree(forest((256, -1), *[(2048, 0)] * 4), CPU)
    mask = tree.mask(200)
    # A block of queries sees itself and what begins less than 200 positions before it: two blocks more.
    assert int((mask.kv_num_blocks + mask.full_kv_num_blocks).max()) == 3


def test_a_row_is_padded_to_at_least_two_whole_blocks():
    for length, slots in ((1, 256), (256, 256), (257, 384)):
        tree = FlexTree(forest((length, -1)), CPU)
        assert (tree.num_tokens, len(tree.positions)) == (length, slots)


@pytest.fixture
def in_tensor_operations(monkeypatch) -> None:
    """FlexAttention as PyTorch defines it, in plain operations over all scores, for every forest: its kernels for a CPU
    have no gradients."""
    monkeypatch.setattr(pytorch, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(pytorch, "_validate_device", lambda *states: None)
    monkeypatch.setattr(flex, "compiled", lambda: flex.attend)
    monkeypatch.setattr(kernels, "FORCED", "flex")


@pytest.mark.usefixtures("in_tensor_operations")
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("window", [None, 1, 6, 100])
@pytest.mark.parametrize("segments", [GROUPS, BRANCHING, MANY, DEEP], ids=["groups", "branching", "many", "deep"])
def test_output_and_gradients_are_those_of_a_dense_mask(segments, window, softcap):
    assert_as_dense(segments, window, softcap)


def groups() -> list[TrainingGroup]:
    """Ragged groups, longer than the sliding window, some of whose completions begin alike."""
    draw, made, number = random.Random(1), [], 0
    for prompt_length, lengths in ((9, (3, 17, 1)), (2 * SLIDING_WINDOW + 4, (2, 9, 30, 4))):
        shared = [draw.randrange(3, 64) for _ in range(40)]
        ids = [(*shared[: size // 2], *(draw.randrange(3, 64) for _ in range(size - size // 2))) for size in lengths]
        made.append(
            TrainingGroup(
                prompt_ids=tuple(draw.randrange(3, 64) for _ in range(prompt_length)),
                completions=tuple(Completion(token_ids=own, text="", counts=(True,) * len(own)) for own in ids),
                completion_index=tuple(range(number, number + len(lengths))),
            )
        )
        number += len(lengths)
    return made


def policy_of(family: str, device: str = "cpu", dtype: torch.dtype = torch.float64) -> Policy:
    """A family's tiny model with heads wide enough for the kernels."""
    config = FAMILIES[family]()
    config.head_dim = 16
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(device, dtype)
    return Policy(model.train(), character_tokenizer("ab", []), stop_token_ids=frozenset())


def logprobs_and_gradients(policy: Policy) -> tuple[Tensor, list[Tensor]]:
    starts = flat_starts([completion for group in groups() for completion in group.completions])
    found = token_logprobs(policy, group_rows(groups(), starts, policy.device)).logprobs
    policy.model.zero_grad()
    found.sum().backward()
    grads = [parameter.grad.double().cpu() for parameter in policy.model.parameters() if parameter.grad is not None]
    return found.detach().double().cpu(), grads


def check_equal(one: tuple[Tensor, list[Tensor]], other: tuple[Tensor, list[Tensor]], tolerance: float) -> None:
    torch.testing.assert_close(one[0], other[0], rtol=0, atol=tolerance)
    for ours, theirs in zip(one[1], other[1], strict=True):
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


@each_family
def test_group_rows_are_those_of_the_cpus_kernels(family, request):
    policy = policy_of(family)
    expected = logprobs_and_gradients(policy)
    request.getfixturevalue("in_tensor_operations")
    check_equal(logprobs_and_gradients(policy), expected, 1e-9)


@pytest.fixture
def graphs(monkeypatch) -> list[torch.fx.GraphModule]:
    """What was compiled: as on a GPU up to PyTorch's last stage, which runs in plain operations here."""
    made: list[torch.fx.GraphModule] = []

    def counted(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        made.append(graph)
        return lookup_backend("aot_eager")(graph, inputs)

    torch._dynamo.reset()
    compiled = torch.compile(flex.attend, dynamic=True, fullgraph=True, backend=counted)
    monkeypatch.setattr(pytorch, "_validate_device", lambda *states: None)
    monkeypatch.setattr(flex, "compiled", lambda: compiled)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma2", "qwen3"])
def test_compiled_group_rows_are_those_of_the_cpus_kernels(family, graphs, monkeypatch):
    """Log-probs and gradients, activations recomputed: the kernel is then made inside of a recomputed layer."""
    policy = policy_of(family)
    expected = logprobs_and_gradients(policy)
    monkeypatch.setattr(kernels, "FORCED", "flex")
    policy.model.activation_checkpointing_enable({"use_reentrant": False})
    check_equal(logprobs_and_gradients(policy), expected, 1e-9)
    assert len(graphs) == (2 if family == "gemma2" else 1)  # with a window and without


@pytest.mark.slow
def test_a_kernel_serves_rows_of_any_length(graphs, monkeypatch):
    """Another kernel is made for a window, for a soft cap and where there are no gradients, and none for a length or a
    forest."""
    monkeypatch.setattr(kernels, "FORCED", "flex")

    def attend(lengths: list[int], window: int | None, softcap: float | None) -> None:
        segments = forest((130, -1), *[(length, 0) for length in lengths])
        inputs = states(segments, 16)
        out = TreeAttention(segments).attend(
            torch.nn.Identity(), *inputs, scaling=0.25, sliding_window=window, softcap=softcap
        )
        expected = dense(*inputs, visible(segments, window), 0.25, softcap)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
        if out.requires_grad:
            found, wanted = (torch.autograd.grad(each.square().sum(), inputs) for each in (out, expected))
            for own, oracle in zip(found, wanted, strict=True):
                torch.testing.assert_close(own, oracle, rtol=0, atol=1e-10)

    attend([180, 60], None, None)
    attend([3], None, None)  # two blocks, which is also the number of key heads: at most one kernel more
    before = len(graphs)
    assert before <= 2
    for lengths in ([7, 7, 7], [250], [40] * 9, [128, 126]):
        attend(lengths, None, None)
    assert len(graphs) == before
    for lengths in ([180, 60], [7, 7, 7]):
        attend(lengths, 50, None)
        attend(lengths, 90, None)
    assert len(graphs) == before + 1
    attend([180, 60], None, 3.0)
    assert len(graphs) == before + 2
    with torch.inference_mode():  # as prompts are read when sampling
        for lengths in ([180, 60], [7, 7, 7]):
            attend(lengths, None, None)
    assert len(graphs) == before + 3


@pytest.mark.slow
@pytest.mark.parametrize("windowed", [False, True])
def test_the_trial_compiles_all_that_a_model_needs(windowed, graphs, monkeypatch):
    """With gradients and without, in rows that need padding and that do not: nothing is left to be compiled later,
    where a failure would end the run. And nothing is compiled that such heads do not need."""
    try_flex(replace(HEADS, windowed=windowed))
    before = len(graphs)
    assert before <= (6 if windowed else 3)
    monkeypatch.setattr(kernels, "FORCED", "flex")
    for lengths in ([180, 60], [3], [250], [128, 126]):
        for window in (None, 50, 1000) if windowed else (None,):
            for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
                with mode():
                    segments = forest((130, -1), *[(length, 0) for length in lengths])
                    inputs = [each.detach().float() for each in states(segments, 16)]
                    token_first = [each.transpose(1, 2).contiguous().transpose(1, 2) for each in inputs]
                    if torch.is_grad_enabled():
                        token_first = [each.requires_grad_() for each in token_first]
                    TreeAttention(segments).attend(
                        torch.nn.Identity(), *token_first, scaling=0.25, sliding_window=window, softcap=None
                    )
    assert len(graphs) == before


@compiles
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="PyTorch compiles kernels for a CPU with it")
def test_a_compiled_kernel_reads_the_lists_of_blocks(monkeypatch):
    """PyTorch's kernel for a CPU, forward only: a block that is in no list is one that it does not compute, and one in
    the list of full ones is one that it does not mask."""
    torch._dynamo.reset()
    monkeypatch.setattr(kernels, "FORCED", "flex")
    for lengths in ([200, 300], [40] * 9, [1, 700, 128, 5]):
        segments = forest((300, -1), *[(length, 0) for length in lengths], (150, len(lengths)))
        inputs = [each.detach().float() for each in states(segments, 16)]
        tree = TreeAttention(segments)
        with torch.no_grad():
            out = tree.attend(torch.nn.Identity(), *inputs, scaling=0.25, sliding_window=420, softcap=None)
        blocks = tree._flex.mask(420)
        assert blocks.full_kv_num_blocks is not None and int(blocks.full_kv_num_blocks.sum()) > 0
        assert int((blocks.kv_num_blocks + blocks.full_kv_num_blocks).sum()) < blocks.kv_indices.numel()
        torch.testing.assert_close(out, dense(*inputs, visible(segments, 420), 0.25, None), rtol=0, atol=2e-5)


class TestChoice:
    def test_a_cpu_has_its_own_kernel_which_has_no_soft_cap(self):
        query, key, value = torch.zeros(1, 4, 3, 8), torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8)
        assert kernel_for(query, key, value, None, None) == kernel_for(query, key, value, 8, None) == "flash"
        assert kernel_for(query, key, value, None, 2.0) == "plain"
        assert kernel_for(query, key, torch.zeros(1, 2, 3, 5), None, None) == "plain"

    @pytest.mark.parametrize("change", [{"dtype": torch.float64}, {"dim": 8, "value_dim": 8}, {"value_dim": 8}])
    def test_what_no_kernel_of_a_gpu_takes_goes_the_plain_way(self, change):
        heads = replace(HEADS, device=torch.device("cuda"), **change)
        assert not fits(heads)
        assert probe_kernel(heads).kernel == "plain" and "no fused kernel" in probe_kernel(heads).reason
        assert fits(replace(HEADS, device=torch.device("cuda"), softcap=2.0, dim=80, value_dim=80))

    @pytest.mark.parametrize(
        ("outcome", "kernel", "said"),
        [
            (1e-4, "flex", "by FlexAttention"),
            (0.5, "plain", "more than rounding"),
            (float("nan"), "plain", "more than rounding"),
            (
                RuntimeError("Failed to find C compiler\nand a trace"),
                "plain",
                r"RuntimeError: Failed to find C compiler\)",
            ),
            (ImportError("no triton"), "plain", "ImportError: no triton"),
        ],
    )
    def test_a_gpus_kernel_must_compile_and_be_right(self, outcome, kernel, said, monkeypatch):
        def tried(heads: Heads) -> float:
            assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()  # whatever the caller does
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        monkeypatch.setattr(kernels, "try_flex", tried)
        probe_kernel.cache_clear()
        try:
            with torch.inference_mode():
                found = probe_kernel(replace(HEADS, device=torch.device("cuda")))
        finally:
            probe_kernel.cache_clear()
        assert isinstance(found, KernelProbe) and found.kernel == kernel
        assert re.search(said, found.reason)

    @pytest.mark.usefixtures("in_tensor_operations")
    @pytest.mark.parametrize(("softcap", "windowed"), [(None, False), (2.0, False), (None, True)])
    def test_the_trial_knows_right_from_wrong(self, softcap, windowed, monkeypatch):
        heads = replace(HEADS, softcap=softcap, windowed=windowed)
        assert try_flex(heads) < 1e-5
        right = flex.attend
        for wrong_mode in (torch.is_grad_enabled, lambda: not torch.is_grad_enabled(), torch.is_inference_mode_enabled):

            def wrong_there(*given: Any, wrong_mode: Callable[[], bool] = wrong_mode) -> Tensor:
                return right(*given) * (2 if wrong_mode() else 1)

            monkeypatch.setattr(flex, "compiled", lambda wrong_there=wrong_there: wrong_there)
            assert try_flex(heads) > 0.1

        def blind_to_segments(*given: Any) -> Tensor:
            given[3].mask_mod = lambda batch, head, query, key: key <= query
            return right(*given)

        monkeypatch.setattr(flex, "compiled", lambda: blind_to_segments)
        assert try_flex(heads) > 0.1

    @each_family
    def test_heads_are_read_from_a_models_configuration(self, family):
        heads = heads_of(FAMILIES[family](), CPU, torch.float32)
        softcap, windowed = (2.0 if family == "gemma2" else None), family in ("gemma2", "gemma3", "mistral")
        assert heads == replace(HEADS, dim=8, value_dim=8, softcap=softcap, windowed=windowed)

    def test_layers_without_a_window_need_no_kernel_with_one(self):
        config = FAMILIES["gemma3"]()
        config.layer_types = ["full_attention"] * 3
        assert not heads_of(config, CPU, torch.float32).windowed


@compiles
@pytest.mark.gpu
class TestOnGpu:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
    @pytest.mark.parametrize(
        "change",
        [{}, {"windowed": True}, {"softcap": 20.0}, {"dim": 80, "value_dim": 80}, {"dim": 128, "value_dim": 128}],
    )
    def test_the_kernel_is_taken(self, dtype, change):
        heads = replace(HEADS, device=torch.device("cuda", 0), dtype=dtype, **change)
        assert probe_kernel(heads).kernel == "flex", probe_kernel(heads).reason

    @each_family
    def test_log_probs_and_gradients_are_those_of_a_cpu(self, family):
        on_gpu = policy_of(family, "cuda", torch.float32)
        heads = heads_of(on_gpu.config, on_gpu.device, torch.float32)
        assert probe_kernel(heads).kernel == "flex"
        expected = logprobs_and_gradients(policy_of(family, dtype=torch.float32))
        check_equal(logprobs_and_gradients(on_gpu), expected, 5e-4)
        on_gpu.model.activation_checkpointing_enable({"use_reentrant": False})
        check_equal(logprobs_and_gradients(on_gpu), expected, 5e-4)

    def test_bf16_is_as_near_to_fp32_as_plain_operations_are(self, monkeypatch):
        exact = logprobs_and_gradients(policy_of("qwen3", dtype=torch.float32))
        errors = {}
        for kernel in ("flex", "plain"):
            monkeypatch.setattr(kernels, "FORCED", kernel)
            found = logprobs_and_gradients(policy_of("qwen3", "cuda", torch.bfloat16))
            errors[kernel] = float((found[0] - exact[0]).norm())
        assert errors["flex"] <= 1.5 * errors["plain"]

    def test_no_score_is_kept(self):
        """Of a row of 16,384 tokens in one segment, whose scores take 1 GiB a head in fp32."""
        tokens = 16_384
        tree = TreeAttention(forest((tokens, -1)), "cuda")
        query, key, value = (
            torch.randn(1, 4, tokens, 64, device="cuda", dtype=torch.bfloat16).requires_grad_() for _ in range(3)
        )
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out = tree.attend(torch.nn.Identity(), query, key, value, scaling=0.1, sliding_window=None, softcap=None)
        out.square().sum().backward()
        assert torch.cuda.max_memory_allocated() - before < 2**30
