"""A small Llama as a GGUF file, written here by the format's rules, for the tests of reading one."""

from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 8
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "ab", "1", "+", "Ġ", "Ċ"]
CHAT_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role[:1] }}{{ m.content }}<|im_end|>\n{% endfor %}"


def small_llama() -> LlamaForCausalLM:
    """The model the file holds."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=HEADS * HEAD_DIM,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


def write_gguf(model: LlamaForCausalLM, path: Path) -> None:
    """Write the model in fp32, with a byte-pair tokenizer of `TOKENS`."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("small")
    writer.add_context_length(128)
    writer.add_embedding_length(HEADS * HEAD_DIM)
    writer.add_block_count(2)
    writer.add_feed_forward_length(48)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    control, normal = int(gguf.TokenType.CONTROL), int(gguf.TokenType.NORMAL)
    writer.add_token_types([control if token.startswith("<|") else normal for token in TOKENS])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    names |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
    names |= {"mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    names |= {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, parameter in model.named_parameters():
        written = name.replace("model.layers.", "blk.")
        for ours, theirs in names.items():
            written = written.replace(ours, theirs)
        heads = HEADS if "q_proj" in name else KV_HEADS if "k_proj" in name else None
        value = parameter.detach() if heads is None else interleave_halves(parameter.detach(), heads)
        writer.add_tensor(written, np.ascontiguousarray(value.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleave_halves(weight: Tensor, heads: int) -> Tensor:
    """llama.cpp rotates neighbouring pairs, Hugging Face the two halves of a head: row i of a half goes to row 2i."""
    rows, _ = weight.shape
    half = rows // heads // 2
    out = torch.empty_like(weight)
    for head in range(heads):
        start = head * 2 * half
        for i in range(half):
            out[start + 2 * i] = weight[start + i]
            out[start + 2 * i + 1] = weight[start + half + i]
    return out
