"""What a run was made from besides its recipe, as digests, and whether a resume finds the same."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePath
from typing import Any

from outscore.rewards import Rewards
from outscore.rewards.loading import source_file
from outscore.train.materials import Materials

_AS_TEXT = (date, time, timedelta, Decimal, Fraction, PurePath)


def digests(stages: Mapping[str, Materials], held_out: Iterable[Any], rewards: Iterable[Rewards]) -> dict[str, Any]:
    """Digests of what each stage (by name) works on and of what evaluations ask, both rendered, and of the files that
    rewards of one's own were read from, by what the recipe calls them.

    >>> digests({}, [], [])
    {'data': {'stages': {}, 'evaluation': 'e3b0c44298fc1c14'}, 'reward_files': {}}
    """
    data = [field.name for field in dataclasses.fields(Materials) if field.name not in ("rewards", "judge")]
    found = {
        stage: digest_of(item for name in data for item in (name, *getattr(own, name))) for stage, own in stages.items()
    }
    named = filter(None, (source_file(each) for own in rewards for each in own.rewards))
    files = {name: _short(hashlib.sha256(path.read_bytes())) for name, path in named}
    return {"data": {"stages": found, "evaluation": digest_of(held_out)}, "reward_files": files}


def differences(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """A sentence for each thing that a run was made from and that is another one now. What the record does not have is
    not asked about."""
    said = []
    if recorded.get("weights_sha256") != found.get("weights_sha256"):
        said.append("the model that the recipe builds is not the one that the run began with")
    before, now = recorded.get("data", {}), found.get("data", {})
    for stage, digest in before.get("stages", {}).items():
        if digest != now["stages"].get(stage, digest):  # one that had not begun may be gone
            said.append(f"the data of stage `{stage}` are not those that the run began with")
    if before and before["evaluation"] != now["evaluation"]:
        said.append("the held-out problems are not those that the run began with")
    for file, digest in recorded.get("reward_files", {}).items():
        if digest != found["reward_files"].get(file, digest):
            said.append(f"the reward file {file} has changed since the run began")
    return [f"{what}: from here on results are not those of a run that was never stopped" for what in said]


def digest_of(items: Iterable[Any]) -> str:
    """A digest of records and plain data that is the same in every process: sets are sorted, and of an object without a
    value of its own (whose text may hold an address) its type counts."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps(item, default=_plain, skipkeys=True).encode() + b"\n")
    return _short(digest)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if isinstance(value, bytes):
        return value.hex()
    if hasattr(value, "tolist"):  # numpy's arrays and numbers, and tensors
        return value.tolist()
    return str(value) if isinstance(value, _AS_TEXT) else type(value).__name__


def _short(digest: Any) -> str:
    return str(digest.hexdigest()[:16])
