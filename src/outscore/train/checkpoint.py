"""Checkpoints: a Hugging Face model directory with the trainer's state beside it, complete or absent, and checked
before use.

    checkpoints/STAGE/step-000050/
        config.json, model.safetensors, tokenizer…   the policy, for any tool; with adapters instead
                                                     adapter_config.json, adapter_model.safetensors
        trainer.safetensors                          Adam's moments; fp32 masters where the model file lacks them;
                                                     weights of populations
        reference.safetensors                        the reference policy, where there is one
        critic/                                      the critic, where there is one: such a directory of its own, with
                                                     value_head.safetensors alone where the trunk is the policy's
        trainer.json                                 counters, and the digest of every other file

Nothing is pickled. A step ends before its checkpoint begins, so there is never a half-used batch of rollouts to save.
"""

import dataclasses
import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy
import safetensors
import safetensors.torch
import torch
import transformers
from torch import Tensor

from outscore import __version__
from outscore.model.adapters import has_adapters
from outscore.model.export import disk_errors
from outscore.model.heads import is_reward_model, load_reward_model
from outscore.model.load import load_model, quiet_transformers
from outscore.model.precision import MasterWeights
from outscore.report import files
from outscore.report.evaluation import best
from outscore.report.run import RunDirectory, StepFile
from outscore.train.step import Learner

STATE_FILE = "trainer.json"
REFERENCE_FILE = "reference.safetensors"
"""The reference of a stage that has one, by parameter."""
CRITIC = "critic"
"""The directory of a critic in a checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a run is: all that a resume needs besides tensors."""

    stage: str
    """The stage the checkpoint belongs to."""
    step: int
    """Steps of it that are done."""
    finished: bool
    """Whether the stage ends here (all steps taken, or stopped early)."""
    policy_version: int
    """Optimizer updates of the whole run."""
    num_updates: int
    """Optimizer updates of this stage."""
    num_steps: int = 0
    """Steps that the stage was to take when this was saved; 0 where that was not kept."""
    critic_updates: int = 0
    """Those of its critic."""
    kl_coef: float | None = None
    """The coefficient of a KL in the reward as it stands, where it is steered."""
    best_value: float | None = None
    """The best evaluation of this stage so far."""
    best_step: int | None = None
    """The step it was made at; its checkpoint is kept, and what a stage that stops early ends with."""
    evaluations_since_best: int = 0
    """Evaluations of this stage after it, for early stopping."""
    plateau_best: float | None = None
    """The best value so far of what a plateau is found by."""
    plateau_evaluations: int = 0
    """Evaluations since, or since steps last became smaller."""
    num_plateaus: int = 0
    """How often steps became smaller."""


def environment() -> dict[str, Any]:
    """What bit equality depends on besides the recipe: a difference is reported on resume."""
    return {
        "outscore": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "numpy": numpy.__version__,
        "threads": torch.get_num_threads(),
    }


def save_checkpoint(run: RunDirectory, learner: Learner, progress: Progress) -> Path:
    """Write the checkpoint of a step; what stands on the disk stays as it is until the new one is complete.

    Raises:
        OSError: naming the path, when the disk refuses; earlier checkpoints are untouched.
    """
    path = run.checkpoint_path(progress.stage, progress.step)
    assert not path.exists(), "a resume discards what lies after its checkpoint"
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.publishing_directory(path) as new, disk_errors(), quiet_transformers():
        _save_learner(new, learner)
        state = {
            "progress": asdict(progress),
            "environment": environment(),
            "digests": {str(file.relative_to(new)): _digest(file) for file in sorted(new.rglob("*")) if file.is_file()},
        }
        files.write_json(new / STATE_FILE, state)
    return path


def _save_learner(new: Path, learner: Learner) -> None:
    learner.policy.save(new)
    safetensors.torch.save_file(_trainer_tensors(learner), new / "trainer.safetensors")
    if learner.reference is not None:
        tensors = {name: weight.contiguous() for name, weight in learner.reference.weights.items()}
        safetensors.torch.save_file(tensors, new / REFERENCE_FILE)
    if learner.critic is not None:
        _save_learner(new / CRITIC, learner.critic)


def read_progress(path: Path) -> tuple[Progress, dict[str, Any]]:
    """The counters of a checkpoint and the environment it was written in, after checking every file against its digest.

    Raises:
        ValueError: naming what is missing or damaged.
    """
    progress, state = _recorded(path)
    for name, digest in state["digests"].items():
        if not (path / name).is_file():
            raise ValueError(f"{path / name} is missing")
        if _digest(path / name) != digest:
            raise ValueError(f"{path / name} is damaged: its bytes are not those that were saved")
    return progress, dict(state["environment"])


def _recorded(path: Path) -> tuple[Progress, dict[str, Any]]:
    """The counters of a checkpoint and all else that it says of itself; ValueError where that cannot be read."""
    file = path / STATE_FILE
    if not file.is_file():
        raise ValueError(f"{path} has no {STATE_FILE}: it is no complete checkpoint")
    try:
        state = json.loads(file.read_text())
        return Progress(**state["progress"]), {key: state[key] for key in ("digests", "environment")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error


def recorded_progress(path: Path) -> Progress:
    """The counters of a checkpoint, whose other files are not looked at; ValueError where they cannot be read."""
    return _recorded(path)[0]


def newest_sound(run: RunDirectory) -> tuple[StepFile | None, list[str]]:
    """The newest checkpoint that passes its check (None where there is no checkpoint), and a message for each newer one
    that does not.

    Raises:
        ValueError: if there are checkpoints and none passes: starting over is for a person to decide.
    """
    complaints = []
    for item in reversed(run.checkpoints()):
        try:
            read_progress(item.path)
        except ValueError as error:
            complaints.append(f"checkpoint {item.path.name} of stage {item.stage} is not used: {error}")
            continue
        return item, complaints
    if complaints:
        raise ValueError(
            f"{run.path} has no sound checkpoint left, so it cannot be resumed and was left as it is; put one back, or "
            f"remove {run.path / 'checkpoints'} to begin the run anew: {'; '.join(complaints)}"
        )
    return None, []


def best_checkpoint(run: RunDirectory) -> Path | None:
    """The checkpoint with the best evaluation of the last stage of the policy that has one; None where none of them was
    evaluated."""
    saved = {(item.stage, item.step): item.path for item in policy_checkpoints(run)}
    last = next(reversed(saved), ("", 0))[0]
    ranked = best([found for found in run.evaluations() if found.stage == last and (last, found.step) in saved])
    return saved[last, ranked[1].step] if ranked else None


def policy_checkpoints(run: RunDirectory) -> list[StepFile]:
    """The checkpoints that hold the policy: all but those of reward models, which leave it as it is."""
    return [item for item in run.checkpoints() if not is_reward_model(item.path)]


def load_weights(path: Path, masters: MasterWeights) -> None:
    """Put the trained weights of a checkpoint into masters and policy, where the model file has not got them: fp32
    masters of a bf16 model, and adapters."""
    if stored := _below(safetensors.torch.load_file(path / "trainer.safetensors"), "master."):
        masters.load_state_dict(stored)


def trained_weights(path: Path, *, trust_remote_code: bool = False) -> Mapping[str, Tensor]:
    """The trained weights of a checkpoint by name, in fp32, wherever it holds them."""
    if stored := _below(safetensors.torch.load_file(path / "trainer.safetensors"), "master."):
        return stored
    if is_reward_model(path):
        model = load_reward_model(path, trust_remote_code=trust_remote_code).model
    else:
        model = load_model(str(path), precision_dtype=torch.float32, trust_remote_code=trust_remote_code).model
    return {name: weight.detach() for name, weight in model.named_parameters()}


def return_to(path: Path, learner: Learner, *, trust_remote_code: bool = False) -> None:
    """Make a learner what it was when it saved a checkpoint of the stage it is in, its critic included; the policy's
    version keeps counting.

    Raises:
        ValueError: if the checkpoint is damaged.
    """
    progress, _ = read_progress(path)
    for each, place in ((learner, path), (learner.critic, path / CRITIC)):
        if each is not None:
            each.masters.load_state_dict(trained_weights(place, trust_remote_code=trust_remote_code))
    load_trainer_state(path, learner, progress)


def load_trainer_state(path: Path, learner: Learner, progress: Progress) -> None:
    """Put counters, moments, weights of populations and reference of a checkpoint into a learner that already has the
    checkpoint's weights.

    Raises:
        ValueError: if the populations are others.
    """
    learner.num_updates = progress.num_updates
    if progress.kl_coef is not None:
        learner.kl_coef = progress.kl_coef
    if learner.critic is not None:
        of_critic = dataclasses.replace(progress, num_updates=progress.critic_updates, kl_coef=None)
        load_trainer_state(path / CRITIC, learner.critic, of_critic)
    stored = safetensors.torch.load_file(path / "trainer.safetensors")
    if learner.populations is not None:
        learner.populations.load(_below(stored, "population."))
    moments = _below(stored, "adam.")
    for name, parameter in learner.masters.parameters.items():
        own = _below(moments, name + "|")
        if own:
            learner.optimizer.state[parameter] = {
                key: _counted(value) if key == "step" else value.to(parameter.device) for key, value in own.items()
            }
    if learner.reference is not None:
        weights = safetensors.torch.load_file(path / REFERENCE_FILE)
        for name, weight in weights.items():
            learner.reference.weights[name].copy_(weight)


def prune_checkpoints(run: RunDirectory, progress: Progress, keep: int) -> None:
    """Remove checkpoints except the newest `keep` of this stage, the last of every earlier one, and the best of each.

    Of an earlier stage whose last checkpoint is damaged, and so does not say which is the best, all stay.
    """
    by_stage: dict[str, list[StepFile]] = {}
    for item in run.checkpoints():
        by_stage.setdefault(item.stage, []).append(item)
    for stage, items in by_stage.items():
        own = stage == progress.stage
        try:
            best_step = (progress if own else _recorded(items[-1].path)[0]).best_step
        except ValueError:
            continue
        kept = {item.step for item in items[-keep if own else -1 :]} | {best_step}
        for item in items:
            if item.step not in kept:
                files.remove_directory(item.path)


def _trainer_tensors(learner: Learner) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    if learner.masters.separate or has_adapters(learner.policy.model):  # else the model file holds them
        tensors = {f"master.{name}": tensor for name, tensor in learner.masters.state_dict().items()}
    for name, parameter in learner.masters.parameters.items():
        for key, value in learner.optimizer.state.get(parameter, {}).items():
            # 8-bit states count their steps in a plain number, and share a table (`qmap`) among parameters.
            tensors[f"adam.{name}|{key}"] = value.clone() if key.startswith("qmap") else torch.as_tensor(value)
    if learner.populations is not None:
        tensors |= {f"population.{name}": value for name, value in learner.populations.state().items()}
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _counted(step: Tensor) -> Tensor | int:
    """The number of steps as the optimizer that saved it counts them."""
    return step if step.is_floating_point() else int(step)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _digest(file: Path) -> str:
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "blake2b").hexdigest()[:32]
