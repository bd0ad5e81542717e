"""Weights of populations in the stages of a recipe: laws, steps worked from scratch, exact resume, and bad input."""

import json
import math
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from train.building import SGD_LIKE, batch_of, learner_of, plan_of, tiny_policy

from outscore.algorithms.rows import algorithm
from outscore.config import parse_recipe
from outscore.model.adapters import trainable_parameters
from outscore.model.policy import Policy
from outscore.records import Completion, Problem, Prompt, RankedGroup
from outscore.report import RunDirectory
from outscore.stage_parts import PopulationSettings
from outscore.stages import PreferenceSettings
from outscore.train.order import Strata, batch_indices, refill_index
from outscore.train.populations import PopulationWeights, stage_weights
from outscore.train.preferences import ranked_batch
from outscore.train.run import resume, run_recipe
from outscore.train.setup import prepare
from outscore.train.step import Batch, Reference, accumulate, update

TINY = {"source": "tiny", "tiny": {"hidden_size": 16, "num_layers": 1, "num_heads": 2}, "precision": "fp32"}
TASK = {"kind": "arithmetic", "num_train": 12, "num_eval": 6, "num_demonstrations": 12, "num_preferences": 12}
OPTIMIZER = {"lr": 1e-3}
DPO = {"algorithm": "dpo", "steps": 4, "batch_size": 4, "optimizer": OPTIMIZER}
STAGES: dict[str, dict[str, Any]] = {
    "sft": {"algorithm": "sft", "steps": 2, "batch_size": 4, "optimizer": OPTIMIZER},
    "dpo": {**DPO, "steps": 2},
    "reward-model": {"algorithm": "reward-model", "steps": 2, "batch_size": 4, "optimizer": OPTIMIZER},
    "grpo": {
        "algorithm": "grpo",
        "steps": 2,
        "prompts_per_step": 4,
        "group_size": 4,
        "minibatches": 2,
        "refills": 1,
        "sampling": {"max_new_tokens": 4},
        "optimizer": OPTIMIZER,
    },
}
RECIPE: dict[str, Any] = {"model": TINY, "task": TASK, "evaluation": {"problems": 0}, "scoring": {"isolate": False}}
BY_OPERATION = {"column": "operation"}


def digits(completions: list[str], **columns: object) -> list[float]:
    return [sum(c.isdigit() for c in text) / 4 for text in completions]


def run(path: Path, *stages: dict[str, Any], **changes: Any) -> Path:
    rewards = [digits] if any(stage["algorithm"] == "grpo" for stage in stages) else None
    return run_recipe({**RECIPE, "stages": list(stages), **changes}, path, rewards=rewards).path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", list(STAGES))
def test_robust_weights_that_begin_with_the_shares_and_do_not_climb_are_a_plain_run(name: str, tmp_path: Path) -> None:
    robust = {**BY_OPERATION, "weights": "robust", "initial": "shares", "step_size": 0.0}
    # Refills keep to the population where there are any, which is another matter.
    stage = {**STAGES[name], "refills": 0} if name == "grpo" else STAGES[name]
    plain = run(tmp_path / "plain", stage)
    weighed = run(tmp_path / "weighed", {**stage, "populations": robust})
    for before, after in zip(lines(plain), lines(weighed), strict=True):
        assert {key for key in after if key.startswith("population_weight/")}
        assert before == {key: value for key, value in after.items() if not key.startswith("population_")}
    saved = f"checkpoints/{name}/step-000002/model.safetensors"
    assert (plain / saved).read_bytes() == (weighed / saved).read_bytes()


@pytest.mark.parametrize("name", list(STAGES))
def test_every_stage_climbs_reports_and_resumes_exactly(name: str, tmp_path: Path) -> None:
    stage = {**STAGES[name], "steps": 4, "populations": {**BY_OPERATION, "step_size": 0.5, "draw": "equal"}}
    changes = {"checkpoints": {"every": 2}}
    whole = run(tmp_path / "whole", stage, **changes)
    first, *_, last = lines(whole)
    assert first["population_weight/+"] + first["population_weight/-"] == pytest.approx(1.0)
    assert last["population_weight/+"] != first["population_weight/+"]
    heard = "population_reward/+" if name == "grpo" else "population_loss/+"
    assert isinstance(first[heard], float)
    stopped = tmp_path / "stopped"
    shutil.copytree(whole, stopped)
    shutil.rmtree(RunDirectory.open(stopped).checkpoint_path(name, 4))
    resume(stopped, rewards=[digits] if name == "grpo" else None)
    for file in ("metrics.jsonl", f"checkpoints/{name}/step-000004/trainer.safetensors"):
        assert (whole / file).read_bytes() == (stopped / file).read_bytes(), file


def pair(policy: Policy, number: int, question: str, better: str, worse: str, population: str) -> RankedGroup:
    def ids(text: str) -> tuple[int, ...]:
        return tuple(policy.tokenizer(text, add_special_tokens=False)["input_ids"])

    def completion(text: str) -> Completion:
        tokens = (*ids(text), policy.tokenizer.eos_token_id)
        return Completion(token_ids=tokens, text=text, counts=(True,) * len(tokens))

    problem = Problem(id=f"p{number}", question=question, answer=None, columns={}, population=population)
    prompt = Prompt(problem=problem, text=question, token_ids=ids(question))
    return RankedGroup(prompt=prompt, completions=(completion(better), completion(worse)), ranks=(0, 1))


def pairs_of(policy: Policy) -> list[RankedGroup]:
    return [
        pair(policy, 0, "1+1=", "2", "33", "a"),
        pair(policy, 1, "12+9=", "21", "2121", "b"),
        pair(policy, 2, "7-5=", "2", "20", "b"),
        pair(policy, 3, "9-5=", "4", "44", "b"),
    ]


def weights_of(names: list[str], **settings: Any) -> PopulationWeights:
    stage = PreferenceSettings(algorithm="ipo", steps=1, populations=PopulationSettings(**settings))
    made = stage_weights(stage, names)
    assert made is not None
    return made[0]


def whole_logprob(model: Any, group: RankedGroup, side: int) -> Tensor:
    """log p of a completion, by the model's own forward."""
    ids = torch.tensor([[*group.prompt.token_ids, *group.completions[side].token_ids]])
    logprobs = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
    start = len(group.prompt.token_ids)
    return torch.stack([logprobs[t - 1, ids[0, t]] for t in range(start, ids.shape[1])]).sum()


def test_two_steps_of_gr_ipo_are_those_written_out(beta: float = 0.5, eta: float = 0.3, chi: float = 0.75) -> None:
    policy = tiny_policy(dtype=torch.float64)
    own = deepcopy(policy.model)
    own.set_attn_implementation("eager")
    ref_model = deepcopy(own)
    # The data have two pairs of a and six of b; a batch of four has one and three of them.
    learner = learner_of(policy, Reference(trainable_parameters(policy.model)))
    learner.populations = weights_of(["a"] * 2 + ["b"] * 6, step_size=eta, trade_off=chi)
    plan = plan_of(algorithm("ipo", kl_coef=beta))
    groups = pairs_of(policy)
    reported = [update(learner, ranked_batch(groups, ties="drop"), plan) for _ in range(2)]

    alpha, shares = {"a": 0.5, "b": 0.5}, {"a": 0.25, "b": 0.75}
    optimizer = torch.optim.AdamW(own.parameters(), lr=SGD_LIKE.lr, weight_decay=0.0)
    for step in range(2):
        losses = []
        for group in groups:
            with torch.no_grad():
                ref = whole_logprob(ref_model, group, 0) - whole_logprob(ref_model, group, 1)
            margin = whole_logprob(own, group, 0) - whole_logprob(own, group, 1) - ref
            losses.append((margin - 1 / (2 * beta)) ** 2)
        named = [(str(group.prompt.problem.population), loss) for group, loss in zip(groups, losses, strict=True)]
        for name in alpha:  # alpha first, by N l / N_g over the batch of four, with chi in front (eq. 30)
            total = sum(loss.item() for own_name, loss in named if own_name == name)
            alpha[name] *= math.exp(eta * chi * total / (4 * shares[name]))
        alpha = {name: value / sum(alpha.values()) for name, value in alpha.items()}
        weight = {name: (1 - chi) / 2 + chi * value for name, value in alpha.items()}
        optimizer.zero_grad()
        sum(weight[name] / shares[name] * loss / 4 for name, loss in named).backward()  # type: ignore[union-attr]
        optimizer.step()
        for name in alpha:
            mean = [loss.item() for own_name, loss in named if own_name == name]
            total, count = reported[step][f"population_loss/{name}"]
            assert total / count == pytest.approx(sum(mean) / len(mean), rel=1e-5)
            assert reported[step][f"population_weight/{name}"][0] == pytest.approx(weight[name], rel=1e-5)
    mine, theirs, before = (model.state_dict() for model in (policy.model, own, ref_model))
    for name, tensor in theirs.items():
        # Llama norms compute in fp32, so agreement is to fp32 rounding; Adam's first steps are signs of gradients.
        assert (mine[name] - tensor).norm() <= 2e-3 * (tensor - before[name]).norm() + 1e-9, name
    assert sum((tensor - before[name]).norm() for name, tensor in theirs.items()) > 0.01


def test_micro_batches_change_neither_the_weights_nor_the_step() -> None:
    def after(token_budget: int) -> tuple[Tensor, Tensor]:
        policy = tiny_policy(dtype=torch.float64)
        learner = learner_of(policy, Reference(trainable_parameters(policy.model)))
        learner.populations = weights_of(["a"] * 2 + ["b"] * 6, step_size=0.1)
        plan = plan_of(algorithm("ipo"), token_budget=token_budget)
        for _ in range(2):
            update(learner, ranked_batch(pairs_of(policy), ties="drop"), plan)
        return learner.populations.weights, torch.cat([p.detach().flatten() for p in policy.model.parameters()])

    (whole, parameters), (split, others) = after(10_000), after(1)
    assert (whole - split).abs().max() < 1e-6
    assert (parameters - others).norm() <= 1e-4 * parameters.norm()


def sampled_batch(policy: Policy, names: tuple[str, ...], rewards: tuple[float | None, ...]) -> Batch:
    plain = batch_of(policy, [[1.0, -1.0]] * len(names), [[2, 3]] * len(names))
    return Batch(
        groups=plain.groups,
        completions=plain.completions,
        advantages=plain.advantages,
        sampler_logprobs=plain.sampler_logprobs,
        temperature=1.0,
        populations=names,
        rewards=rewards,
    )


def test_samples_of_the_policy_climb_by_minus_their_reward() -> None:
    policy = tiny_policy()
    learner = learner_of(policy)
    learner.populations = weights_of(["a"] * 2 + ["b"] * 6, step_size=2.0)
    metrics = update(learner, sampled_batch(policy, ("a", "b", "b", "b"), (0.2, 0.5, None, 1.0)), plan_of())
    # -0.2 / (1/4 * 4) and -1.5 / (3/4 * 4); then a soft maximum of two times these
    a, b = math.exp(2 * -0.2), math.exp(2 * -0.5)
    assert metrics["population_weight/a"][0] == pytest.approx(a / (a + b))
    assert metrics["population_reward/a"] == (0.2, 1.0)
    assert metrics["population_reward/b"] == (1.5, 2.0)


def test_a_populations_factor_multiplies_its_gradient() -> None:
    def gradient(**settings: Any) -> Tensor:
        policy = tiny_policy(dtype=torch.float64)
        learner = learner_of(policy)
        learner.populations = weights_of(["a", "b"] * 2, **settings)
        batch = sampled_batch(policy, ("a", "b"), (0.0, 0.0))
        accumulate(learner, batch, batch.groups, plan_of(), {"advantages": batch.advantages})
        return torch.cat([p.grad.flatten() for p in learner.masters.parameters.values()])

    only_a, only_b = gradient(weights={"a": 1.0, "b": 0.0}), gradient(weights={"a": 0.0, "b": 1.0})
    mixed = gradient(weights={"a": 0.3, "b": 0.7})
    assert (mixed - (0.3 * only_a + 0.7 * only_b)).norm() <= 1e-5 * mixed.norm()
    assert only_a.norm() > 0 and (only_a - only_b).norm() > 0


def test_populations_drawn_equally_often_have_epochs_of_their_own() -> None:
    strata = Strata(members=((0, 1, 2, 3, 4), (5, 6), (7, 8, 9)), equal=True)
    places = [i for step in range(1, 11) for i in batch_indices(7, 0, step, 9, 10, strata)]
    for first in range(0, len(places), 9):
        batch = places[first : first + 9]
        assert [sum(i in own for i in batch) for own in strata.members] == [3, 3, 3]
    for own in strata.members:
        drawn = [i for i in places if i in own]
        epochs = [drawn[k : k + len(own)] for k in range(0, len(drawn) - len(own) + 1, len(own))]
        assert all(sorted(epoch) == list(own) for epoch in epochs)
    assert places == [i for step in range(1, 11) for i in batch_indices(7, 0, step, 9, 10, strata)]
    plain = batch_indices(7, 0, 1, 9, 10)
    assert plain == batch_indices(7, 0, 1, 9, 10, Strata(members=strata.members, equal=False))


def test_a_refill_is_of_the_population_of_what_it_replaces() -> None:
    strata = Strata(members=((0, 1, 2), (3, 4)), equal=False)
    drawn = {refill_index(0, 0, step, 1, 1, 5, strata.beside(4)) for step in range(40)}
    assert drawn == {3, 4}


def test_smaller_steps_on_a_plateau_survive_a_resume(tmp_path: Path) -> None:
    plateau = {"metric": "worst/preference_loss", "evaluations": 1, "lr_factor": 0.5, "step_size_factor": 0.25}
    robust = {**BY_OPERATION, "step_size": 0.1}
    # A rate so large that the loss on held-out pairs rises at once.
    stage = {**DPO, "steps": 8, "optimizer": {"lr": 0.3}, "populations": robust, "plateau": plateau}
    changes = {"checkpoints": {"every": 1, "keep": 9}, "evaluation": {"problems": 6, "every": 1}}
    whole = run(tmp_path / "whole", stage, **changes)
    rates = [line["lr"] for line in lines(whole)]
    assert rates[0] == 0.3 and rates[-1] in [0.3 * 0.5**n for n in range(1, 8)]
    stopped = tmp_path / "stopped"
    shutil.copytree(whole, stopped)
    for step in (6, 7, 8):
        shutil.rmtree(RunDirectory.open(stopped).checkpoint_path("dpo", step))
    resume(stopped)
    for file in ("metrics.jsonl", "evals.jsonl", "checkpoints/dpo/step-000008/trainer.safetensors"):
        assert (whole / file).read_bytes() == (stopped / file).read_bytes(), file


def opinions(**changes: Any) -> dict[str, Any]:
    sizes, differences = {"a": 10, "b": 20}, {"a": 0.5, "b": 0.0}
    return {"kind": "synthetic_opinions", "sizes": sizes, "differences": differences, **changes}


ROWS = [{"prompt": f"{n}+1=", "chosen": "1", "rejected": "2", "who": "x" if n % 2 else "y"} for n in range(20)]


@pytest.mark.parametrize(
    ("task", "populations", "message"),
    [
        (TASK, {"column": "operaton"}, r"stage `dpo`: populations.column = 'operaton'.*did you mean `operation`"),
        (TASK, {}, r"stage `dpo`: populations: problem 'arithmetic/.*' has no population \(the task names none\)"),
        (TASK, {"column": "operation", "weights": {"+": 0.5, "-": 0.4}}, r"add up to 0\.9; they must add up to 1"),
        (TASK, {"column": "operation", "weights": {"+": 1.5, "-": -0.5}}, r"population '\+' is 1\.5"),
        (
            TASK,
            {"column": "operation", "weights": {"+": 1.0}},
            r"stage `dpo`: .* population '-' has no weight",
        ),
        (TASK, {"column": "operation", "initial": {"+": 0.5, "*": 0.5}}, r"a weight for '\*', which is no population"),
        (TASK, {"column": "operation", "weights": "robsut"}, "must be robust, equal, shares, or a weight for each"),
        (
            TASK,
            {"column": "operation", "weights": "equal", "step_size": 0.5},
            "step_size has no effect",
        ),
        (TASK, {"column": "operation", "trade_off": 1.5}, "trade_off"),
        (
            {"kind": "data", "rows": [*ROWS, {**ROWS[0], "prompt": "9-1=", "who": "z"}], "eval_fraction": 0},
            {"column": "who"},
            r"population 'z' has 1 training example; each needs at least 2",
        ),
        (
            {"kind": "data", "rows": [*ROWS, {**ROWS[0], "prompt": "9-1=", "who": None}], "eval_fraction": 0},
            {"column": "who"},
            r"has no population \(column 'who' is empty\)",
        ),
    ],
)
def test_bad_input_is_named(task: dict[str, Any], populations: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(parse_recipe({**RECIPE, "task": task, "stages": [{**DPO, "populations": populations}]}))


def test_stages_that_cannot_have_them_or_differ_are_refused() -> None:
    rft = {"algorithm": "rft", "steps": 1, "populations": BY_OPERATION}
    with pytest.raises(ValueError, match="rft chooses its own demonstrations"):
        parse_recipe({**RECIPE, "stages": [rft], "rewards": ["tag_answer"]})
    stages = [{**DPO, "populations": BY_OPERATION}, {**DPO, "name": "b", "populations": {"column": "other"}}]
    with pytest.raises(ValueError, match="column differs between stages"):
        prepare(parse_recipe({**RECIPE, "stages": stages}))
    with pytest.raises(ValueError, match="plateau has no effect without"):
        parse_recipe({**RECIPE, "stages": [{**DPO, "plateau": {}}]})


def test_a_population_first_seen_in_evaluation_is_told_and_evaluated(tmp_path: Path) -> None:
    train, held_out = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    new = [{**row, "prompt": row["prompt"].replace("+", "-"), "who": "new" if n else "x"} for n, row in enumerate(ROWS)]
    held_out.write_text("".join(json.dumps(row) + "\n" for row in new))
    task = {"kind": "data", "path": str(train), "eval_path": str(held_out)}
    stage = {**DPO, "steps": 1, "populations": {"column": "who", "weights": "equal"}}
    recipe = {**RECIPE, "task": task, "stages": [stage], "evaluation": {"problems": 50}}
    assert list(prepare(parse_recipe(recipe)).notices) == [
        "stage dpo: population 'new' is only in held-out data: it has no weight there",
        "stage dpo: population 'x' has 1 held-out example, so evaluations say little of it",
        "stage dpo: population 'y' has 0 held-out examples, so evaluations say little of it",
    ]
    result = run_recipe(recipe, tmp_path / "run")
    assert "only in held-out data" in (result.path / "events.log").read_text()
    found = result.evaluations[-1].metrics
    losses = [found["preference_loss/new"], found["preference_loss/x"]]
    assert found["worst/preference_loss"] == max(losses)
    assert found["spread/preference_loss"] == pytest.approx(max(losses) - min(losses))


def test_a_checkpoint_of_other_populations_is_refused() -> None:
    weights = weights_of(["a", "a", "b", "b"])
    with pytest.raises(ValueError, match="weights of the populations a, c, and the data have a, b"):
        weights.load({"a": torch.zeros(()), "c": torch.zeros(())})


def test_the_worst_population_is_told_in_every_evaluation_of_a_task_that_names_populations(tmp_path: Path) -> None:
    stage = {"algorithm": "ipo", "steps": 2, "batch_size": 4, "optimizer": OPTIMIZER, "populations": {}}
    path = run(tmp_path / "run", stage, task=opinions(), evaluation={"problems": 9})
    found = RunDirectory.open(path).evaluations()[-1].metrics
    accuracies = [found["preference_accuracy/a"], found["preference_accuracy/b"]]
    assert found["worst/preference_accuracy"] == min(accuracies)
    # the mean over all is the mean of the populations by their sizes: 1 and 2 held out
    assert found["preference_loss"] == pytest.approx((found["preference_loss/a"] + 2 * found["preference_loss/b"]) / 3)
