"""Export: a plain directory with equal logits, complete or absent."""

import errno
import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedModel

from outscore.model import export as export_module
from outscore.model.adapters import add_lora, trainable_parameters
from outscore.model.export import export, written_aside
from outscore.model.load import load_model
from outscore.model.tiny import tiny_model

IDS = torch.tensor([[3, 9, 4, 7, 8]])


def _tiny() -> tuple[LlamaForCausalLM, Any]:
    return tiny_model("0123456789", ["<a>"], 0, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64)


def _logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(IDS).logits
    return logits


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A full model, with a trainer's files beside it."""
    path = tmp_path / "step-5"
    model, tokenizer = _tiny()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    (path / "trainer.json").write_text("{}")
    return path


def test_a_checkpoint_becomes_a_plain_model_with_equal_logits(checkpoint: Path, tmp_path: Path) -> None:
    out = export(checkpoint, tmp_path / "out")
    assert sorted(p.name for p in out.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert torch.equal(_logits(model), _logits(_tiny()[0]))
    assert tokenizer.encode("<a>12", add_special_tokens=False) == _tiny()[1].encode("<a>12", add_special_tokens=False)
    assert model.generation_config.eos_token_id == _tiny()[1].eos_token_id


def test_exporting_prints_nothing(checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    export(checkpoint, tmp_path / "out")
    assert capfd.readouterr() == ("", "")


def test_the_stored_dtype_is_kept(tmp_path: Path) -> None:
    model, tokenizer = _tiny()
    model.bfloat16().save_pretrained(tmp_path / "in")
    tokenizer.save_pretrained(tmp_path / "in")
    out = export(tmp_path / "in", tmp_path / "out")
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {torch.bfloat16}


def test_an_adapter_checkpoint_is_merged_into_its_base(checkpoint: Path, tmp_path: Path) -> None:
    loaded = load_model(checkpoint)
    add_lora(loaded.model, rank=4, alpha=8.0)
    with torch.no_grad():
        for name, parameter in trainable_parameters(loaded.model).items():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    loaded.model.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "config.json").exists()
    model = AutoModelForCausalLM.from_pretrained(export(tmp_path / "adapter", tmp_path / "out"))
    torch.testing.assert_close(_logits(model), _logits(loaded.model), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(_logits(model), _logits(_tiny()[0]), atol=1e-3)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").encode("7") == _tiny()[1].encode("7")


def test_an_adapter_without_a_base_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="names no base model"):
        export(tmp_path, tmp_path / "out")


def test_nothing_is_ever_overwritten(checkpoint: Path) -> None:
    before = (checkpoint / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="exists and is never overwritten"):
        export(checkpoint, checkpoint)
    assert (checkpoint / "model.safetensors").read_bytes() == before


def test_a_failed_write_leaves_nothing(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: object, tokenizer: object, directory: Path) -> None:
        (directory / "config.json").write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_module, "save_model", fail)
    with pytest.raises(OSError, match="No space left"):
        export(checkpoint, tmp_path / "models" / "out")
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize("library", ["safetensors", "tokenizers", "python"])
def test_every_library_says_a_full_disk_alike(tmp_path: Path, library: str) -> None:
    _, tokenizer = _tiny()

    def write(path: Path) -> None:
        if library == "safetensors":
            save_file({"w": torch.zeros(1000)}, path)
        elif library == "tokenizers":
            tokenizer.backend_tokenizer.save(str(path))
        else:
            path.write_bytes(bytes(1000))

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        refusal = pytest.raises(OSError, match=r"could not write .*out: File too large; it does not exist")
        with refusal as caught, written_aside(tmp_path / "out") as aside:
            write(aside / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


def test_a_directory_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    with written_aside(target) as aside:
        (aside / "file").write_text("x")
        assert not target.exists()
    assert (target / "file").read_text() == "x"
    assert [p.name for p in target.parent.iterdir()] == ["b"]


def test_an_empty_directory_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with written_aside(tmp_path / "empty") as aside:
        (aside / "file").touch()
    assert (tmp_path / "empty" / "file").exists()
