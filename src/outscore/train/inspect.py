"""Looking at a model from outside a run: evaluate it, talk to it, find it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from outscore.config import Recipe, load_recipe, parse_recipe
from outscore.inputs import apply_overrides
from outscore.records import Problem, SampleRequest, SamplingParams
from outscore.report import Evaluation, RunDirectory
from outscore.report.evaluation import best
from outscore.report.run import FACTS
from outscore.rollout import make_sampler
from outscore.tasks import render
from outscore.train.build import EVALUATION_ROWS, build_evaluator
from outscore.train.checkpoint import newest_sound
from outscore.train.setup import default_device, load_policy, prepare


def find_model(target: str) -> str:
    """What to load for a target: the best checkpoint of a run's last stage (its newest where none was evaluated),
    anything else as it is.

    Raises:
        ValueError: if the run has no checkpoint yet.
    """
    path = Path(target)
    if not (path / "run.json").is_file():
        return target
    run = RunDirectory.open(path)
    saved = {(item.stage, item.step): item.path for item in run.checkpoints()}
    last = next(reversed(saved), ("", 0))[0]
    ranked = best([each for each in run.evaluations() if each.stage == last and (last, each.step) in saved])
    if ranked is not None:
        return str(saved[last, ranked[1].step])
    newest, complaints = newest_sound(run)
    if newest is None:
        raise ValueError("; ".join([f"{target} has no sound checkpoint yet", *complaints]))
    return str(newest.path)


def evaluate_target(
    target: str,
    *,
    recipe: str | None = None,
    task: str | None = None,
    reward: str | None = None,
    overrides: Sequence[str] = (),
) -> tuple[Evaluation, str]:
    """Evaluate a run, checkpoint or model; see `outscore eval --help`. Returns what was found and the SHA-256 of the
    weights it was found for.

    Raises:
        ValueError: if it is not said what to evaluate on, or anything in it cannot work.
    """
    settings = _evaluation_recipe(target, recipe, task, reward, overrides)
    workshop = prepare(settings, evaluation_only=True)
    if not workshop.eval_prompts:
        raise ValueError(f"task {settings.task['kind']!r} has no held-out problems to evaluate on")
    sampler = make_sampler(workshop.policy, EVALUATION_ROWS)
    evaluator = build_evaluator(settings, workshop)
    assert evaluator is not None
    found = evaluator.run(sampler, label=Path(target).name, stage="eval", step=0, policy_version=0)
    return found, str(workshop.facts["weights_sha256"])


def _evaluation_recipe(
    target: str, recipe: str | None, task: str | None, reward: str | None, overrides: Sequence[str]
) -> Recipe:
    if recipe is not None:
        data: dict[str, Any] = load_recipe(recipe).model_dump(mode="json", serialize_as_any=True)
    elif task is not None:
        stage = {"algorithm": "grpo", "steps": 1}
        data = {"task": {"kind": task}, "rewards": [reward or "last_number"], "stages": [stage]}
    elif (Path(target) / "run.json").is_file():
        data = RunDirectory.open(Path(target)).config()
        data.pop(FACTS, None)
    else:
        raise ValueError(f"{target} is no run: say what to evaluate on with --task KIND or --recipe FILE")
    data.setdefault("model", {})
    data["model"] = {**data["model"], "source": find_model(target), "lora": None}
    return parse_recipe(apply_overrides(data, overrides), where="evaluation")


class Chat:
    """A conversation with a model, one turn at a time; each answer sees the whole conversation where there is a chat
    template.

    Args:
        target: a run, a checkpoint, a model directory, a GGUF file or a hub id.
        temperature: 0 is greedy.
        max_new_tokens: limit on an answer.
    """

    def __init__(self, target: str, *, temperature: float, max_new_tokens: int) -> None:
        from outscore.config import ModelSettings

        self._policy, _ = load_policy(ModelSettings(source=find_model(target), precision="fp32"), None, 0)
        self._policy.model.to(default_device())
        self._sampler = make_sampler(self._policy, 1)
        self._params = SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature)
        self._turns: list[dict[str, str]] = []
        self._count = 0

    def answer(self, question: str) -> str:
        """The model's answer to the next question."""
        self._count += 1
        has_template = bool(self._policy.tokenizer.chat_template)
        self._turns.append({"role": "user", "content": question})
        asked = tuple(self._turns) if has_template else question
        problem = Problem(id=f"turn/{self._count}", question=asked, answer=None, columns={})
        prompt = render(problem, self._policy.tokenizer, "auto")
        [group] = self._sampler.sample(
            [SampleRequest(prompt=prompt, num_samples=1, slot=0)], self._params, seed=0, step=self._count
        )
        text = group.completions[0].completion.text
        self._turns.append({"role": "assistant", "content": text})
        return text
