"""Loading: the right weights, no code run, no random weights, and errors that say what would be right."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from gguf_file import small_llama, write_gguf
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

import outscore.model.load
from outscore.model.hub import ask_hub
from outscore.model.load import load_model, outline_model, source_kind, stop_token_ids, weights_sha256
from outscore.model.tiny import tiny_model


def _tiny(seed: int = 0) -> tuple[LlamaForCausalLM, Any]:
    return tiny_model("0123456789+ ", ["<a>"], seed, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's directory; read only."""
    path = tmp_path_factory.mktemp("saved") / "tiny-llama"
    model, tokenizer = _tiny()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "tiny-llama"))


def _edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_directory_loads_the_weights_that_were_saved(saved: Path) -> None:
    loaded = load_model(saved)
    original = _tiny()[0].state_dict()
    assert loaded.model.state_dict().keys() == original.keys()
    assert all(torch.equal(loaded.model.state_dict()[name], original[name]) for name in original)
    assert not loaded.model.training and all(p.requires_grad for p in loaded.model.parameters())
    assert loaded.source == str(saved) and loaded.model.name_or_path == str(saved.resolve())


def test_a_run_and_what_is_in_it_name_the_newest_checkpoint_of_a_policy(saved: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for age, place in enumerate(("sft/step-000002", "sft/step-000001", "judge/step-000009")):
        checkpoint = run / "checkpoints" / place
        shutil.copytree(saved, checkpoint)
        os.utime(checkpoint, (1000 - age, 1000 - age))
    _edit(run / "checkpoints/judge/step-000009/config.json", lambda c: c.update(architectures=["LlamaForReward"]))
    os.utime(run / "checkpoints/judge/step-000009", (2000, 2000))
    named = str(run / "checkpoints" / "sft" / "step-000002")
    for part in (".", "checkpoints", "checkpoints/sft"):
        with pytest.raises(ValueError, match=r"has no config\.json.*checkpoints of a run: give one of them") as caught:
            load_model(run / part)
        assert named in str(caught.value)
    with pytest.raises(ValueError, match=r"it is no Hugging Face model directory$"):
        load_model(tmp_path)


def test_the_hash_is_over_the_tensors_bytes_in_name_order(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    content = b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))
    assert load_model(saved).sha256 == hashlib.sha256(content).hexdigest()


def test_the_hash_tells_weights_apart_and_takes_bf16() -> None:
    model, other = _tiny()[0], _tiny(seed=1)[0]
    assert weights_sha256(model) == weights_sha256(_tiny()[0]) != weights_sha256(other)
    assert weights_sha256(model.bfloat16()) != weights_sha256(_tiny()[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_parameters_get_the_dtype_asked_for(saved: Path, dtype: torch.dtype) -> None:
    assert {p.dtype for p in load_model(saved, precision_dtype=dtype).model.parameters()} == {dtype}


def test_without_a_dtype_the_stored_one_is_kept(tmp_path: Path) -> None:
    model, tokenizer = _tiny()
    model.bfloat16().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert {p.dtype for p in load_model(tmp_path, precision_dtype=None).model.parameters()} == {torch.bfloat16}


def test_every_dropout_is_zero(copied: Path) -> None:
    config = GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, attn_pdrop=0.1, embd_pdrop=0.2, resid_pdrop=0.3)
    GPT2LMHeadModel(config).save_pretrained(copied)
    model = load_model(copied).model.train()
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}


def test_loading_prints_nothing(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_model(saved)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["./tiny-lama", "nowhere/model.gguf", "model.gguf", "~/no such"])
def test_a_missing_path_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' does not exist"):
        load_model(name)


def test_a_missing_path_gets_the_nearest_existing_one(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"did you mean '.*tiny-llama'"):
        load_model(saved.parent / "tiny-lama")
    monkeypatch.chdir(saved.parent.parent)
    with pytest.raises(ValueError, match=r"did you mean '.*tiny-llama'"):
        load_model(f"{saved.parent.name}/tiny-lama")  # a hub id by its form, but the folder exists


def test_what_is_no_existing_path_and_reads_as_one_is_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert source_kind("HuggingFaceTB/SmolLM2-135M-Instruct") == source_kind("gpt2") == "hub"
    with pytest.raises(ValueError, match="does not exist"):
        source_kind("a/b/c")
    for path in ("runs/distill", "models/none"):  # where nothing is yet
        with pytest.raises(ValueError, match=f"'{path}' does not exist"):
            source_kind(path)


def test_an_unreachable_hub_says_how_to_go_on_without_it() -> None:
    with pytest.raises(ValueError, match=r"'nobody/nothing' is no local path .* hub .*outscore fetch"):
        load_model("nobody/nothing")


def test_the_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuses(url: str, **named: object) -> None:
        asked.append(url)
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuses)
    monkeypatch.setattr(outscore.model.load, "AutoConfig", None)  # and nobody else asks it
    for load in (load_model, outline_model):
        with pytest.raises(ValueError, match=r"could not be loaded from the Hugging Face hub \(Name or service not"):
            load("nobody/nothing")
    assert len(asked) == 2 and asked[0].endswith("nobody/nothing/resolve/main/config.json")


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_hub_is_left_to_the_client_s_own_waiting(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    class Busy(OSError):
        response = SimpleNamespace(status_code=status)

    def refuses(url: str, **named: object) -> None:
        raise Busy

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuses)
    ask_hub("nobody/nothing")


def test_a_directory_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_model(tmp_path)
    (tmp_path / "x.gguf").touch()
    with pytest.raises(ValueError, match=r"for the GGUF file in it give '.*x\.gguf'"):
        load_model(tmp_path)


def test_a_weights_file_is_refused_for_its_directory(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"is a \.safetensors file: give its directory"):
        load_model(saved / "model.safetensors")


def test_pickled_weights_load_only_when_asked(copied: Path, saved: Path) -> None:
    state = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no weights"):
        load_model(copied)
    torch.save(state, copied / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is a pickle file.*allow_pickle"):
        load_model(copied)
    assert load_model(copied, allow_pickle=True).sha256 == load_model(saved).sha256


def test_model_code_runs_only_when_asked(copied: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    code = f"open({str(marker)!r}, 'w').close()\nfrom transformers import LlamaConfig as C, LlamaForCausalLM as M\n"
    (copied / "custom.py").write_text(code)
    auto_map = {"AutoConfig": "custom.C", "AutoModelForCausalLM": "custom.M"}
    _edit(copied / "config.json", lambda c: c.update(model_type="own", auto_map=auto_map))
    with pytest.raises(ValueError, match="own model code, which is only run with trust_remote_code"):
        load_model(copied)
    assert not marker.exists()


def test_an_unknown_architecture_is_named(copied: Path) -> None:
    _edit(copied / "config.json", lambda c: c.update(model_type="no-such-model"))
    with pytest.raises(ValueError, match=r"cannot be loaded as a causal language model.*no-such-model"):
        load_model(copied)


def test_a_missing_tokenizer_is_said(copied: Path) -> None:
    for file in copied.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match="has no tokenizer"):
        load_model(copied)


def test_missing_weights_are_refused_not_made_up(copied: Path) -> None:
    state = load_file(copied / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"lacks the weights of 1 parameters \(model\.layers\.1\.mlp\.up_proj\.weight\)"
    ):
        load_model(copied)


def test_weights_of_another_shape_are_refused(copied: Path) -> None:
    state = load_file(copied / "model.safetensors")
    state["model.norm.weight"] = torch.ones(7)
    save_file(state, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 parameters \(model\.norm\.weight of shape \(32,\), not \(7,\)\)"):
        load_model(copied)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_file_is_a_clear_error(copied: Path, name: str) -> None:
    (copied / name).write_bytes((copied / name).read_bytes()[:100])
    with pytest.raises(ValueError, match=r"tiny-llama (cannot be loaded|has no tokenizer that can be read)"):
        load_model(copied)


def test_quantised_weights_are_refused(copied: Path) -> None:
    _edit(copied / "config.json", lambda c: c.update(quantization_config={"quant_method": "gptq", "bits": 4}))
    with pytest.raises(ValueError, match=r"quantised weights \(gptq\)"):
        load_model(copied)


def test_a_tokenizer_larger_than_the_embedding_is_refused(copied: Path) -> None:
    tiny_model("abcdefghijklmnopqrstuvwxyz", [], 0, hidden_size=32, num_heads=2)[1].save_pretrained(copied)
    with pytest.raises(ValueError, match="token id 27, but the model only 15 embeddings"):
        load_model(copied)


def test_an_adapter_directory_points_to_export(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"LoRA adapter.*outscore export"):
        load_model(tmp_path)


def test_stop_tokens_come_from_generation_config_tokenizer_and_the_templates_turn_end() -> None:
    model, tokenizer = _tiny()
    assert stop_token_ids(model, tokenizer) == {tokenizer.eos_token_id}
    model.generation_config.eos_token_id = [7, 8]
    assert stop_token_ids(model, tokenizer) == {7, 8, tokenizer.eos_token_id}
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} <|turn|>{% endfor %}"
    turn = tokenizer.convert_tokens_to_ids("<|turn|>")
    assert stop_token_ids(model, tokenizer) == {7, 8, tokenizer.eos_token_id, turn}


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no') }}", "{% for m in messages %}{{ m.content }} +{% endfor %}"]
)
def test_a_template_without_a_special_turn_end_adds_no_stop_token(template: str) -> None:
    model, tokenizer = _tiny()
    tokenizer.chat_template = template
    assert stop_token_ids(model, tokenizer) == {tokenizer.eos_token_id}


def test_a_gguf_file_loads_as_an_ordinary_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    original = small_llama()
    write_gguf(original, tmp_path / "small.gguf")
    loaded = load_model(tmp_path / "small.gguf")
    assert capfd.readouterr() == ("", "")
    for name, parameter in original.named_parameters():
        torch.testing.assert_close(loaded.model.get_parameter(name), parameter, rtol=0, atol=0)
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("ab+1", add_special_tokens=False)) == "ab+1"
    assert stop_token_ids(loaded.model, loaded.tokenizer) == {2}
    loaded.model.save_pretrained(tmp_path / "plain")
    loaded.tokenizer.save_pretrained(tmp_path / "plain")
    assert load_model(tmp_path / "plain").sha256 == loaded.sha256


def test_gguf_without_its_extra_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.gguf").touch()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"outscore\[gguf\]"):
        load_model(tmp_path / "x.gguf")
