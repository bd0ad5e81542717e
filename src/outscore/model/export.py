"""A trained model as a plain Hugging Face directory, and writing one so that it is complete or absent."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from outscore.model.adapters import has_adapters, load_lora, merge
from outscore.model.load import LoadedModel, load_model, quiet_transformers, weights_sha256


def export(
    source: str | Path, out_dir: str | Path, *, trust_remote_code: bool = False, allow_pickle: bool = False
) -> Path:
    """Write a model as safetensors, config, generation config and tokenizer, adapters merged; return `out_dir`.

    `source` is a checkpoint or anything `load_model` takes. An adapter directory is merged in fp32 into the base model
    it names; a full model keeps the dtype it is stored in. What else lies in a checkpoint (optimizer, master weights)
    is left out. ValueError when `out_dir` exists or the source cannot be loaded.
    """
    target = Path(out_dir)
    _refuse_existing(target)
    path = Path(source).expanduser()
    if is_adapter(path):
        loaded = load_with_adapter(path, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    else:
        loaded = load_model(
            source, precision_dtype=None, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle
        )
    with written_aside(target) as aside:
        save_model(loaded.model, loaded.tokenizer, aside)
    return target


def is_adapter(path: Path) -> bool:
    """Whether a directory holds a LoRA adapter rather than a whole model."""
    return (path / "adapter_config.json").is_file() and not (path / "config.json").is_file()


def load_with_adapter(
    directory: Path,
    *,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    load: Callable[..., LoadedModel] = load_model,
    merged: bool = False,
) -> LoadedModel:
    """The base model an adapter directory names, in fp32, with the adapter put in; `load` loads the base.

    The adapter is frozen, and the SHA-256 the base model's; or it is `merged` into the weights, all of which can be
    trained, and the SHA-256 is theirs. The tokenizer is the directory's own if it has one.
    """
    base = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{directory / 'adapter_config.json'} names no base model (base_model_name_or_path)")
    loaded = load(base, precision_dtype=torch.float32, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    model, tokenizer, sha256 = loaded.model, loaded.tokenizer, loaded.sha256
    outlined = model.device.type == "meta"  # merged, the model has the shapes of its base
    with quiet_transformers():
        if not (merged and outlined):
            load_lora(model, directory)
    if merged and not outlined:
        sha256 = weights_sha256(merge(model))
    if (directory / "tokenizer_config.json").is_file():
        tokenizer = type(tokenizer).from_pretrained(str(directory), local_files_only=True)
    return LoadedModel(model=model, tokenizer=tokenizer, sha256=sha256, source=str(directory))


def save_model(model: PreTrainedModel, tokenizer: Tokenizer, directory: Path) -> None:
    """Write model and tokenizer into an existing directory as AutoModelForCausalLM and AutoTokenizer read them.

    Adapters are merged into the model first, in place.
    """
    if has_adapters(model):
        merge(model)
    with quiet_transformers():
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """A new directory to fill, which becomes `target` when the block ends, and vanishes when it fails.

    Files are synced before the rename, so that after a crash `target` is complete or absent. OSError naming `target`
    when the disk refuses.
    """
    _refuse_existing(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        with disk_errors():
            yield aside
        for file in aside.rglob("*"):
            if file.is_file():
                with file.open("rb+") as stream:
                    os.fsync(stream.fileno())
        aside.chmod(0o755)  # mkdtemp's 0700 would keep a shared model from others
        if target.is_dir():
            target.rmdir()  # empty, as checked
        aside.rename(target)
    except OSError as error:
        raise OSError(error.errno, f"could not write {target}: {error.strerror or error}; it does not exist") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def disk_errors() -> Iterator[None]:
    """Inside, a disk that refuses is an OSError also where a library written in Rust has another word for it.

    safetensors raises SafetensorError and tokenizers a plain Exception, both with the system's number in the message.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # tokenizers' has no closer type
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def _refuse_existing(target: Path) -> None:
    """ValueError when something would be overwritten; an empty directory may be filled."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"{target} exists and is never overwritten: choose another directory, or remove it")
