"""Nothing of the machine it was written on, and nothing secret, is in the repository."""

import re

import pytest
from repo.tree import name_of, tracked_files

# Written so that no pattern matches its own source.
FORBIDDEN = {
    "a path of one machine": (
        r"(?<![\w.$~-])/(?:work|root|Users|home/[a-z]\w*|opt/[a-z]\w*|tmp/[w]|mnt/[a-z]\w*)/(?=[\w.])"
    ),
    "an address of a package index": (
        r"files[.]pythonhosted|pypi[.]org/simple|registry[.]npmjs|(?:index[-_]url|find[-_]links)\s*[=:]"
    ),
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}",
    "a GitHub token": r"\bgh[pousr]_[A-Za-z0-9]{30,}",
    "an API key": r"\bsk-[A-Za-z0-9_-]{32,}",
    "an AWS key": r"\bAKIA[0-9A-Z]{16}\b",
    "a private key": r"-{5}BEGIN [A-Z ]*PRIVATE KEY",
    "a number of a list that is not here, instead of the paper's section": r"\b[Ss]pec[ ][A-Z](?:\b|[.]?\d)",
    "a merge that was not finished": r"^(?:<{7}|>{7}) ",
}
BINARY = {".png", ".jpg", ".gif", ".parquet", ".safetensors", ".gguf"}
TEXT_FILES = [path for path in tracked_files() if path.suffix not in BINARY]


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_holds(what):
    pattern = re.compile(FORBIDDEN[what], re.MULTILINE)
    found = []
    for path in TEXT_FILES:
        text = path.read_text(encoding="utf-8")
        found += [
            f"{name_of(path)}:{text.count(chr(10), 0, m.start()) + 1} {m.group()}" for m in pattern.finditer(text)
        ]
    assert not found, f"{what}: {found}"


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("a path of one machine", "model: /ho" + "me/ada/model"),
        ("an address of a package index", "pip install --index" + "-url=x"),
        ("a Hugging Face token", "hf_" + "a" * 34),
        ("an API key", "sk-" + "a" * 40),
        ("a number of a list that is not here, instead of the paper's section", "(sp" + "ec G.14)"),
        ("a private key", "-----BEGIN " + "RSA PRIVATE KEY-----"),
    ],
)
def test_the_patterns_see_what_they_are_for(what, text):
    assert re.search(FORBIDDEN[what], text)


def test_no_large_file_is_tracked():
    assert not {name_of(path): path.stat().st_size for path in tracked_files() if path.stat().st_size > 1_000_000}
