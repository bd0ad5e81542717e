"""Options are added on purpose, and documents speak of commands that exist."""

import re
from pathlib import Path

import pytest
from repo.commands import command_names, options
from repo.tree import ROOT, name_of, tracked_files

FROZEN = Path(__file__).with_name("cli_options.txt")
DOCUMENTS = [path for path in tracked_files() if path.suffix == ".md" or path.parent == ROOT / "recipes"]
CODE = re.compile(r"^```.*?^```|`[^`\n]+`|^# outscore .*$", re.MULTILINE | re.DOTALL)
CALL = re.compile(r"(?:^|(?<!from)[\s`/])outscore ([a-z][\w-]*)(?=[\s`]|$)", re.MULTILINE)


def mentioned_commands(text: str) -> set[str]:
    """Words that follow `outscore` in code spans, code blocks and the first comments of recipes."""
    return {name for code in CODE.findall(text) for name in CALL.findall(code)}


def test_the_options_are_the_frozen_ones():
    frozen = [line for line in FROZEN.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    now = sorted(options())
    added, gone = sorted(set(now) - set(frozen)), sorted(set(frozen) - set(now))
    assert frozen == now, f"if it is meant, change {FROZEN.name}: added {added}, gone {gone}"


def test_every_command_has_a_help_text():
    from repo.commands import command_tree

    assert not [name for name, command in command_tree().commands.items() if not (command.help or "").strip()]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_documents_name_existing_commands(path):
    unknown = mentioned_commands(path.read_text(encoding="utf-8")) - command_names()
    assert not unknown, f"{name_of(path)} names commands that do not exist: {sorted(unknown)}"


def test_commands_are_found_in_code_and_nowhere_else():
    text = (
        "run `outscore train x.yaml`, as outscore never does\n```\nfrom outscore import Task\n```\n"
        "```sh\n.venv/bin/outscore demo\n```\n# outscore eval M\n"
    )
    assert mentioned_commands(text) == {"train", "demo", "eval"}
