"""Looking at a model from outside a run: evaluate it, talk to it, find it."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args

import safetensors.torch

from outscore.config import Recipe, dump_recipe, load_recipe, parse_recipe
from outscore.inputs import apply_overrides, from_here
from outscore.model.export import export
from outscore.records import PYTHON, Message, Problem, SampleRequest, SamplingParams
from outscore.report import Evaluation, RunDirectory
from outscore.report.populations import last_weights
from outscore.report.run import FACTS, RESERVED
from outscore.rewards import Rewards
from outscore.rollout import make_sampler
from outscore.stages import PreferenceSettings
from outscore.tasks import DataTask, Task, make_task, render
from outscore.train.activity import Tell, tell_nobody
from outscore.train.build import EVALUATION_ROWS, build_evaluator
from outscore.train.checkpoint import REFERENCE_FILE, best_checkpoint, newest_sound
from outscore.train.home import home_of, located
from outscore.train.objects import RewardSpec, TaskSpec, missing_objects, with_objects
from outscore.train.setup import Workshop, load_policy, prepare
from outscore.train.step import Reference


def find_model(target: str) -> str:
    """What to load for a target: the best checkpoint of a run's last stage (its newest where none was evaluated),
    anything else as it is.

    Raises:
        ValueError: if the run has no checkpoint yet, or no sound one.
    """
    path = Path(target)
    if not (path / "run.json").is_file():
        return target
    run = RunDirectory.open(path)
    best = best_checkpoint(run)
    if best is not None:
        return str(best)
    newest, _ = newest_sound(run)
    if newest is None:
        raise ValueError(f"{target} has no checkpoint yet")
    return str(newest.path)


def evaluate_target(
    target: str,
    *,
    recipe: str | None = None,
    task: str | None = None,
    reward: str | None = None,
    overrides: Sequence[str] = (),
    say: Tell = tell_nobody,
) -> tuple[Evaluation, str]:
    """Evaluate a run, checkpoint or model; see `outscore eval --help`. Returns what was found and the SHA-256 of the
    weights it was found for. A checkpoint of a stage of preferences is compared with the reference of that stage, on
    the run's own task. `say` hears what of the problems is left out, where they are not the run's own.

    Raises:
        ValueError: if it is not said what to evaluate on, or anything in it cannot work.
    """
    if recipe is None and task is None and run_of(target) is None:
        raise ValueError(_no_run(target, "--task KIND or --recipe FILE"))
    settings = target_recipe(target, recipe=recipe, task=task, reward=reward, overrides=overrides, compares=True)
    check_named(target, settings)
    return _evaluated(target, settings, None, None, on_own=recipe is None and task is None, say=say)


def evaluate(
    target: str | Path,
    *,
    recipe: str | Path | None = None,
    task: TaskSpec | None = None,
    rewards: Sequence[RewardSpec] | None = None,
    overrides: Sequence[str] = (),
) -> Evaluation:
    """Evaluate a run at its best checkpoint, a checkpoint or a model on held-out problems, as `outscore eval` does.

    Args:
        target: a run, a checkpoint, a model directory, a .gguf file or a hub id.
        recipe: a recipe file to take task, prompt and rewards from, instead of the run's.
        task: a kind of task (its options follow in `overrides`), a mapping of `kind` and options, a task object, or
            rows; instead of the run's. It must be given again where the run was given an object.
        rewards: functions, or anything a recipe may name, instead of the run's; the same holds for these.
        overrides: settings to change, such as `evaluation.samples=16`.

    Raises:
        ValueError: if it is not said what to evaluate on, or anything in it cannot work.
    """
    target, given = str(target), task if task is None or isinstance(task, str) else PYTHON
    if recipe is None and task is None and run_of(target) is None:
        raise ValueError(_no_run(target, "task=… or recipe=…"))
    settings = target_recipe(
        target, recipe=None if recipe is None else str(recipe), task=given, overrides=overrides, compares=True
    )
    if rewards is not None and not any(each.startswith("evaluation.correct=") for each in overrides):
        unnamed = settings.evaluation.model_copy(update={"correct": ""})
        settings = settings.model_copy(update={"evaluation": unnamed})
    settings, own_task, own_rewards = with_objects(settings, None if isinstance(task, str) else task, rewards)
    if missing := missing_objects(settings, task=own_task, rewards=own_rewards):
        raise ValueError(
            f"{target} was started from Python with its own {' and '.join(missing.values())}: give them again, "
            f"outscore.evaluate(target, {', '.join(f'{name}=…' for name in missing)})"
        )
    return _evaluated(target, settings, own_task, own_rewards, on_own=recipe is None and task is None)[0]


def check_named(target: str, settings: Recipe, needed: Sequence[str] = ("task", "rewards")) -> None:
    """ValueError in a command's words where a task, or rewards, that it needs are objects of a script."""
    missing = {key: words for key, words in missing_objects(settings).items() if key in needed}
    if not missing:
        return
    if run_of(target) is None:
        raise ValueError(f"{target} is no run: say which task with --task KIND or --recipe FILE")
    options = {"task": "--task KIND", "rewards": "--reward NAME (or file.py:function)"}
    raise ValueError(
        f"{target} was started from Python with its own {' and '.join(missing.values())}, which a command cannot name: "
        f"give {' and '.join(options[key] for key in missing)}, or --recipe FILE"
    )


def _evaluated(
    target: str,
    settings: Recipe,
    task: Task | None,
    rewards: Rewards | None,
    *,
    on_own: bool,
    say: Tell = tell_nobody,
) -> tuple[Evaluation, str]:
    """An evaluation with these settings and objects, and the SHA-256 of the weights; `on_own` is whether it is on the
    task that the target was trained on."""
    asked = make_task(**settings.task) if task is None else task
    workshop = prepare(settings, evaluation_only=True, task=asked, rewards=rewards)
    sampler = make_sampler(workshop.policy, EVALUATION_ROWS)
    index, reference = _compared(settings, workshop) if on_own else (None, None)
    evaluator = build_evaluator(settings, workshop, index, reference)
    if evaluator is None:
        raise ValueError(f"task {settings.task['kind']!r} has no held-out problems to evaluate on")
    for left_out in [] if on_own else _left_out(asked, len(workshop.eval_prompts), settings):
        say(left_out)
    try:
        found = evaluator.run(sampler, label=Path(target).name, stage="eval", step=0, policy_version=0)
    finally:
        workshop.rewards.close()
    return found, str(workshop.facts["weights_sha256"])


def _left_out(task: Task, num_asked: int, settings: Recipe) -> list[str]:
    """What of the data an evaluation does not ask, and what would ask it."""
    held_out, said = len(task.eval_problems()), []
    split = settings.task.get("eval_path") is None and settings.task.get("eval_split") is None
    if isinstance(task, DataTask) and split and (kept := len(task.train_problems())):
        said.append(
            f"{kept} of the {kept + held_out} rows are left out as training data: task.eval_fraction=1 evaluates on all"
        )
    if num_asked < held_out:
        said.append(
            f"{num_asked} of the {held_out} held-out problems are asked: evaluation.problems={held_out} asks all"
        )
    return said


def last_population_weights(target: str) -> dict[str, float]:
    """What the populations weighed in the step that a run's best checkpoint, or the checkpoint given, was saved after;
    empty where its stage weighed none."""
    run, path = run_of(target), Path(find_model(target))
    if run is None or run_of(str(path)) != run:
        return {}
    saved = next(item for item in RunDirectory.open(run).checkpoints() if item.path.resolve() == path.resolve())
    done = [line for line in RunDirectory.open(run).metrics(saved.stage) if line["step"] <= saved.step]
    return last_weights([{name: value for name, value in line.items() if name not in RESERVED} for line in done])


def _compared(settings: Recipe, workshop: Workshop) -> tuple[int, Reference] | tuple[None, None]:
    """The stage of preferences that the model is a checkpoint of, with its reference; None where it is of none, or the
    preferences are not those of the run's task."""
    path = Path(settings.model.source)
    file = path / REFERENCE_FILE
    index = next((place for place, stage in enumerate(settings.stages) if stage.label == path.parent.name), None)
    if index is None or not file.is_file() or not workshop.eval_rankings:
        return None, None
    stage = settings.stages[index]
    if not isinstance(stage, PreferenceSettings) or stage.task is not None:
        return None, None
    stored = safetensors.torch.load_file(file)
    parameters = {name: each for name, each in workshop.policy.model.named_parameters() if name in stored}
    if len(parameters) < len(stored):
        return None, None
    reference = Reference(parameters)
    for name, weight in stored.items():
        reference.weights[name].copy_(weight)
    return index, reference


def run_of(target: str) -> Path | None:
    """The run that a target is, or that it is a checkpoint of (RUN/checkpoints/STAGE/step-N); None for other models."""
    path = Path(target).absolute()
    candidates = [path]
    if len(path.parents) > 2 and path.parents[1].name == "checkpoints":
        candidates.append(path.parents[2])
    return next((folder for folder in candidates if (folder / "run.json").is_file()), None)


def _no_run(target: str, how: str) -> str:
    """What to do about a target that is no run; that there is nothing at its path is said first."""
    path = Path(target).expanduser()
    if path.exists():
        return f"{target} is no run: say what to evaluate on with {how}"
    try:
        RunDirectory.open(path)
    except ValueError as error:
        return f"{error}{from_here(path)}. For a model on a hub, say what to evaluate on with {how}"
    raise AssertionError(f"{target} is a run")


def target_recipe(
    target: str,
    *,
    recipe: str | None = None,
    task: str | None = None,
    reward: str | None = None,
    overrides: Sequence[str] = (),
    compares: bool = False,
) -> Recipe:
    """The settings to use a target with: those of its run, with what is given put in their place.

    How the model is loaded and prompted is the run's, unless `recipe` brings a prompt; its paths are relative to where
    it was started, and those that are given to where they are given. A model that belongs to no run
    gets the defaults. Without a reward it is the last number that is right; but where `compares` says that held-out
    preferences are enough, a run which trains on some has no reward unless one is given.

    Raises:
        ValueError: if anything in it cannot work.
    """
    run = run_of(target)
    own = RunDirectory.open(run).config() if run is not None else {}
    if run is not None and (home := home_of(run, own)) is not None:
        own = located(own, home)
    data: dict[str, Any] = dump_recipe(load_recipe(recipe)) if recipe is not None else own or deepcopy(_BARE)
    data.pop(FACTS, None)
    if task is not None:
        data["task"] = {"kind": task}
        data["stages"] = [{**stage, "populations": None} for stage in data["stages"]]  # columns of the run's own task
    paired = compares and task is None and any(stage.get("algorithm") in PAIRED for stage in data["stages"])
    if reward is not None or not (data.get("rewards") or paired):
        data["rewards"] = [reward or "last_number"]
        data["evaluation"] = {**data.get("evaluation", {}), "correct": ""}
    model = own.get("model") or data.get("model", {})
    # Adapters come with the checkpoint; trackers and recomputed activations are for training.
    data["model"] = {**model, "source": find_model(target), "lora": None, "activation_checkpointing": False}
    data["trackers"] = []
    return parse_recipe(apply_overrides(data, overrides), where="settings")


PAIRED = get_args(PreferenceSettings.model_fields["algorithm"].annotation)
"""Algorithms of stages whose runs are evaluated on held-out preferences, so that they need no reward."""
_BARE: dict[str, Any] = {"task": {"kind": PYTHON}, "stages": [{"algorithm": "grpo", "steps": 1}]}
"""What a model that belongs to no run begins with; its task is to be named."""


def export_model(target: str | Path, out: str | Path, *, overrides: Sequence[str] = ()) -> Path:
    """Write a run's best checkpoint, or any model, as a plain Hugging Face directory with adapters merged.

    Args:
        target: a run, a checkpoint, a model directory, a .gguf file or a hub id.
        out: the directory to write; it must not exist.
        overrides: settings to change, such as `model.trust_remote_code=true`; a run has its own.

    Returns:
        the directory.

    Raises:
        ValueError: if `out` exists, or the model cannot be loaded.
    """
    model = target_recipe(str(target), overrides=overrides).model
    return export(model.source, out, trust_remote_code=model.trust_remote_code, allow_pickle=model.allow_pickle)


class Chat:
    """A conversation with a model, one turn at a time, prompted as its run prompts it. With a chat template each answer
    sees the whole conversation, otherwise its own question only.

    Args:
        target: a run, a checkpoint, a model directory, a GGUF file or a hub id.
        temperature: 0 is greedy.
        max_new_tokens: limit on an answer.
        overrides: settings to change, such as `prompt.system=Be brief`.
    """

    def __init__(self, target: str, *, temperature: float, max_new_tokens: int, overrides: Sequence[str] = ()) -> None:
        self._recipe = target_recipe(target, overrides=overrides)
        settings = self._recipe.model.model_copy(update={"precision": "fp32"})
        self._policy, _ = load_policy(settings, None, 0)
        self._sampler = make_sampler(self._policy, 1)
        self._params = SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature)
        self._turns: tuple[Message, ...] = ()
        self._count = 0

    def answer(self, question: str) -> str:
        """The model's answer to the next question.

        Raises:
            ValueError: if the model cannot read the question; the conversation then stands as if it had not been asked.
        """
        self._count += 1
        turns: tuple[Message, ...] = (*self._turns, {"role": "user", "content": question})
        template = self._recipe.prompt.template
        is_chat = template == "chat" or (template == "auto" and bool(self._policy.tokenizer.chat_template))
        problem = Problem(id=f"turn/{self._count}", question=turns if is_chat else question, answer=None, columns={})
        try:
            prompt = render(
                problem,
                self._policy.tokenizer,
                template,
                system=self._recipe.prompt.system,
                limit=self._policy.context_length,
                room=self._params.max_new_tokens,
            )
        except ValueError as error:
            raise ValueError(f"{error}{self._sample()}") from error
        request = SampleRequest(prompt=prompt, num_samples=1, slot=0)
        [group] = self._sampler.sample([request], self._params, seed=0, step=self._count)
        text = group.completions[0].completion.text
        self._turns = (*turns, {"role": "assistant", "content": text})
        return text

    def _sample(self) -> str:
        """A question of the task the model was trained on, to end an error message with; nothing where none is
        known."""
        try:
            problem = make_task(**self._recipe.task).train_problems()[0]
        except (ValueError, ImportError, OSError):  # the data may be gone; the message stands without it
            return ""
        return f"; a question it was trained on: {problem.question!r}"
