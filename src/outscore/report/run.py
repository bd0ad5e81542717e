"""The run directory: plain files that any tool can read, and that a resume cuts back to a checkpoint byte for byte."""

import difflib
import fcntl
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from outscore.records import StepReport
from outscore.report import evaluation, files, rows, text

FORMAT = 1
"""Version of the layout, in `run.json`."""
FACTS = "found"
"""The key of config.yaml under which a run keeps what was found when it began."""
LINES = ("metrics.jsonl", "timing.jsonl", "evals.jsonl")
RESERVED = ("stage", "step", "policy_version", "num_tokens")
"""The columns of `metrics.jsonl` that are no metrics."""
_STEP = re.compile(r"step-(\d+)(\.parquet)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class StagePlan:
    """A stage of the run, as `run.json` lists it in order."""

    name: str
    """Unique in the run; names files, so letters, digits, `.`, `_`, `+` and `-` only."""
    num_steps: int
    """Steps it will take."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", self.name):
            raise ValueError(f"stage name {self.name!r} names files: use letters, digits, '.', '_', '+' and '-' only")


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFile:
    """A file or directory that belongs to one step."""

    stage: str
    """Name of the stage."""
    step: int
    """Step of the stage."""
    path: Path
    """Where it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Discarded:
    """What `truncate_after` removed."""

    num_steps: int
    """Steps that had been recorded after the checkpoint and will be taken again."""
    paths: tuple[Path, ...]
    """Group files, checkpoints and leftovers of interrupted writes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunDirectory:
    """A run on disk. Writers hold it under `lock`; readers may look at any time.

    A step is recorded in this order, so that a checkpoint vouches for all before it: `write_groups`, `append_step`,
    `append_evaluation` if there is one, and last the checkpoint.
    """

    path: Path
    """The directory."""
    stages: tuple[StagePlan, ...]
    """Its stages in order."""

    @classmethod
    def create(cls, path: Path, *, config: Mapping[str, Any], stages: Sequence[StagePlan]) -> "RunDirectory":
        """Make the directory with `config.yaml` and `run.json`, at once or not at all.

        Raises ValueError when something is there already, or when two stages have one name.
        """
        names = [stage.name for stage in stages]
        if len(set(names)) != len(names) or not names:
            raise ValueError(f"stages need one name each, no name twice; got {names}")
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise ValueError(
                f"{path} already exists and is not overwritten: continue it with `outscore resume {path}`, "
                "give the new run another name, or remove it"
            )
        with files.publishing_directory(path) as new:
            (new / "checkpoints").mkdir()
            (new / "groups").mkdir()
            files.write_text(new / "config.yaml", _yaml(config))
            files.write_json(new / "run.json", {"format": FORMAT, "stages": [asdict(stage) for stage in stages]})
        return cls(path=path, stages=tuple(stages))

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """An existing run. Raises ValueError when `path` is none, naming the nearest that is."""
        if not (path / "run.json").is_file():
            there = [str(other.parent) for other in path.parent.glob("*/run.json")]
            near = difflib.get_close_matches(str(path), there, n=1, cutoff=0.4)
            reason = "has no run.json" if path.exists() else "does not exist"
            raise ValueError(f"{path} is not a run: it {reason}" + (f"; did you mean {near[0]}?" if near else ""))
        try:
            header = json.loads((path / "run.json").read_text())
            if header["format"] > FORMAT:
                raise ValueError(f"format {header['format']} is newer than this outscore, which reads up to {FORMAT}")
            stages = tuple(StagePlan(**stage) for stage in header["stages"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path / 'run.json'}: {error}") from error
        return cls(path=path, stages=stages)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for writing; ValueError when another process does. A killed process lets go by itself."""
        with open(self.path / "run.json", "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(f"{self.path} is being written by another process; wait for it or stop it") from error
            yield

    # -- paths ---------------------------------------------------------------------------------------------------------

    def groups_path(self, stage: str, step: int) -> Path:
        """The group file of a step."""
        return self.path / "groups" / stage / f"step-{step:06d}.parquet"

    def checkpoint_path(self, stage: str, step: int) -> Path:
        """The checkpoint directory of a step; filled through `files.publishing_directory`."""
        return self.path / "checkpoints" / stage / f"step-{step:06d}"

    def group_files(self) -> list[StepFile]:
        """All group files, in the order of stages and steps."""
        return self._step_files("groups")

    def checkpoints(self) -> list[StepFile]:
        """All checkpoint directories, in the order of stages and steps. Whether each is sound is not looked at."""
        return self._step_files("checkpoints")

    # -- writing -------------------------------------------------------------------------------------------------------

    def write_groups(self, stage: str, step: int, completions: Sequence[rows.CompletionRow]) -> None:
        """Write the group file of a step."""
        path = self.groups_path(stage, step)
        path.parent.mkdir(exist_ok=True)
        files.write_bytes(path, rows.to_parquet(completions))

    def append_step(self, stage: str, report: StepReport) -> None:
        """Append a step to `timing.jsonl` and then to `metrics.jsonl`, whose line makes it count."""
        files.append_line(self.path / "timing.jsonl", json.dumps(_timing_line(stage, report)))
        files.append_line(self.path / "metrics.jsonl", json.dumps(metrics_line(stage, report), allow_nan=False))

    def append_evaluation(self, found: evaluation.Evaluation) -> None:
        """Append to `evals.jsonl`."""
        line = json.dumps(evaluation.to_line(found), allow_nan=False, ensure_ascii=False)
        files.append_line(self.path / "evals.jsonl", line)

    def log(self, message: str) -> None:
        """Append a line to `events.log`, with the time in UTC; control characters are written out."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        files.append_line(self.path / "events.log", f"{now}  {text.visible(message)}", sync=False)

    def truncate_after(self, stage: str, step: int) -> Discarded:
        """Discard all that was recorded after step `step` of `stage`; what stays keeps its bytes.

        Step 0 keeps what precedes the stage's first step, an evaluation at step 0 included; step -1 of the first stage
        keeps nothing. A stage's last step keeps what the next one had sampled before its first (a group file of step
        0). `events.log` keeps all: it says what happened. ValueError when a step that must be there is not.
        """
        order = {plan.name: index for index, plan in enumerate(self.stages)}
        if stage not in order:
            raise ValueError(f"{self.path} has no stage {stage!r}; it has {', '.join(order)}")

        def keeps(name: str, at: int) -> bool:
            return name in order and (order[name], at) <= (order[stage], step)

        removed = files.remove_leftovers(self.path)
        num_steps = 0
        for name in LINES:
            count = files.keep_lines(self.path / name, lambda line: keeps(line["stage"], line["step"]))
            num_steps += count if name == "metrics.jsonl" else 0
        last = step == self.stages[order[stage]].num_steps
        for item in [*self.group_files(), *self.checkpoints()]:
            is_next = item.step == 0 and last and order.get(item.stage) == order[stage] + 1
            if not is_next and not keeps(item.stage, item.step):
                _remove(item.path)
                removed.append(item.path)
        recorded = [line["step"] for line in files.read_lines(self.path / "metrics.jsonl") if line["stage"] == stage]
        if step > 0 and (not recorded or recorded[-1] != step):
            raise ValueError(f"{self.path / 'metrics.jsonl'} does not reach step {step} of stage {stage!r}")
        return Discarded(num_steps=num_steps, paths=tuple(removed))

    # -- reading -------------------------------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        return dict(yaml.safe_load((self.path / "config.yaml").read_text()) or {})

    @property
    def weights_sha256(self) -> str | None:
        """The SHA-256 of the weights the run began with; None where its configuration does not say."""
        weights = self.config().get(FACTS, {}).get("weights_sha256")
        return None if weights is None else str(weights)

    def metrics(self, stage: str | None = None) -> list[Mapping[str, Any]]:
        """The lines of `metrics.jsonl`, of one stage or of all; a line still being written is left out."""
        return [line for line in files.read_lines(self.path / "metrics.jsonl") if stage in (None, line["stage"])]

    def timings(self, stage: str | None = None) -> list[Mapping[str, Any]]:
        """The lines of `timing.jsonl`."""
        return [line for line in files.read_lines(self.path / "timing.jsonl") if stage in (None, line["stage"])]

    def evaluations(self) -> list[evaluation.Evaluation]:
        """The evaluations so far."""
        return [evaluation.from_line(line) for line in files.read_lines(self.path / "evals.jsonl")]

    def _step_files(self, folder: str) -> list[StepFile]:
        found = []
        for plan in self.stages:
            for path in sorted((self.path / folder / plan.name).glob("step-*")):
                match = _STEP.fullmatch(path.name)
                if match:
                    found.append(StepFile(stage=plan.name, step=int(match[1]), path=path))
        return sorted(found, key=lambda item: (self._index(item.stage), item.step))

    def _index(self, stage: str) -> int:
        return [plan.name for plan in self.stages].index(stage)


def metrics_line(stage: str, report: StepReport) -> dict[str, Any]:
    """The object that `metrics.jsonl` holds for a step. Nothing in it depends on the clock; not finite is None."""
    clash = [name for name in RESERVED if name in report.metrics]
    if clash:
        raise ValueError(f"metric {clash[0]!r} has the name of a column of metrics.jsonl; log it under another name")
    head = {"stage": stage, "step": report.step, "policy_version": report.policy_version}
    return head | {"num_tokens": report.num_tokens} | {n: _value(report, n) for n in sorted(report.metrics)}


def _value(report: StepReport, name: str) -> float | None:
    return evaluation.finite(float(report.mean(name)))


def _timing_line(stage: str, report: StepReport) -> dict[str, Any]:
    total = sum(report.seconds.values())
    return {
        "stage": stage,
        "step": report.step,
        "finished_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "seconds": round(total, 6),
        "tokens_per_second": round(report.num_tokens / total, 3) if total > 0 else None,
        **{f"seconds/{phase}": round(report.seconds[phase], 6) for phase in sorted(report.seconds)},
        **{f"peak_bytes/{kind}": report.peak_bytes[kind] for kind in sorted(report.peak_bytes)},
    }


def _yaml(config: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=120)


def _remove(path: Path) -> None:
    if path.is_dir():
        files.remove_directory(path)
    else:
        path.unlink()
    if not any(path.parent.iterdir()):
        path.parent.rmdir()
