"""Searching with samples: what is chosen, what beams keep, what they cost; and the command."""

import json
from pathlib import Path
from typing import Any

import pytest
from train.building import prompt_of, tiny_policy
from typer.testing import CliRunner

from outscore.cli import app
from outscore.model.heads import reward_model_from
from outscore.model.steps import decoder
from outscore.records import Prompt, SamplingParams
from outscore.rewards import Rewards
from outscore.rollout import ScriptedSampler, make_sampler
from outscore.train.evaluate import Judge
from outscore.train.run import run_recipe
from outscore.train.search import METHODS, ModelGuide, Search

PARAMS = SamplingParams(max_new_tokens=12)


class Sevens:
    """A guide that likes sevens: a step's chance is the share of 7 among its digits; a solution the smallest."""

    separators: tuple[str, ...] = (" ",)

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.decode = decoder(tiny_policy().tokenizer)

    def scores(self, given: Any) -> list[float]:
        texts = [self.decode(ids) for _, ids in given]
        self.asked += texts
        return [min((step.count("7") / len(step) for step in text.split()), default=0.0) for text in texts]


def is_77(completions: list[str]) -> list[float]:
    return [float(text.replace(" ", "").endswith("77")) for text in completions]


def search_of(sampler: Any, guide: Any, **changes: Any) -> Search:
    policy = tiny_policy()
    values: dict[str, Any] = {
        "prompts": [prompt_of(policy, "1+1=", "77", 0), prompt_of(policy, "2+2=", "77", 1)],
        "sampler": sampler,
        "rewards": Rewards([is_77]),
        "judge": Judge(reward_name="is_77", extract=lambda text: text.split()[-1] if text.split() else None),
        "decode": decoder(policy.tokenizer),
        "params": PARAMS,
        "guide": guide,
        "seed": 0,
    }
    return Search(**{**values, **changes})


def scripted(script: Any) -> ScriptedSampler:
    return ScriptedSampler(script, tiny_policy().tokenizer)


def test_choosing_by_hand() -> None:
    texts = ["77", "1", "1", "71"]  # scores 1, 0, 0, 1/2; one vote for 77, two for 1
    rows = search_of(scripted({"p0": texts, "p1": ["1", "77", "77", "77"]}), Sevens()).run(
        ["majority", "best-of-n", "weighted"], [1, 2, 4]
    )
    found = {(row.method, row.budget): row.accuracy.value for row in rows}
    # One: the mean of all. Two: p0 has (77, 1) and (1, 71), p1 (1, 77) and (77, 77).
    assert found["majority", 1] == found["best-of-n", 1] == found["weighted", 1] == pytest.approx((1 / 4 + 3 / 4) / 2)
    assert found["best-of-n", 2] == pytest.approx((1 / 2 + 1) / 2)
    assert found["majority", 2] == pytest.approx((1 / 4 + 3 / 4) / 2)
    assert found["best-of-n", 4] == found["weighted", 4] == 1.0
    assert found["majority", 4] == 0.5
    assert [row.tokens for row in rows[:3]] == [pytest.approx(n * 21 / 8) for n in (1, 2, 4)]


def test_beams_keep_the_best_beginnings_and_continue_them() -> None:
    """First steps 1, 7, 17, 71 of which one is kept; from `7 ` on come `1` and `7`."""
    firsts = ("1 2", "7 2", "17 2", "71 2")

    def say(prompt: Prompt, sample: int) -> str:
        begun = prompt.text.split("=")[1]
        if not begun:
            return firsts[sample]
        assert begun == "7 "
        return ("1", "7")[sample % 2]

    guide = Sevens()
    search = search_of(scripted(say), guide, width=4)
    beams, tokens = search.grower.beams(4)
    assert [search.decode(own[0].token_ids) for own in beams] == ["7 7", "7 7"]
    assert [(len(own), own[0].score, own[0].finish) for own in beams] == [(1, 1.0, "stop")] * 2
    assert guide.asked == ["1 ", "7 ", "17 ", "71 "] * 2 + ["7 1", "7 7"] * 2
    # Each problem: steps of 2 + 2 + 3 + 3 tokens, then four times a digit and the stop token.
    assert tokens == 2 * (10 + 8)
    [row] = search.run(["beam"], [4])
    assert (row.accuracy.value, row.tokens) == (1.0, 18.0)


def test_an_ended_beam_stays_among_the_kept() -> None:
    def say(prompt: Prompt, sample: int) -> str:
        return ("7", "71 1", "17 1", "1 1")[sample] if prompt.text.endswith("=") else "1"

    beams, _ = search_of(scripted(say), Sevens(), width=2).grower.beams(4)
    decode = decoder(tiny_policy().tokenizer)
    assert [[decode(beam.token_ids) for beam in own] for own in beams] == [["7", "71 1"]] * 2


def test_beams_share_the_limit_of_an_answer() -> None:
    policy = tiny_policy()
    beams, _ = search_of(make_sampler(policy, 8), Sevens()).grower.beams(3)
    assert all(len(beam.token_ids) <= 12 for own in beams for beam in own)
    assert {beam.finish for own in beams for beam in own} <= {"stop", "length"}


@pytest.mark.parametrize(
    ("methods", "guide", "message"),
    [
        (["best-of-n"], None, "method 'best-of-n' needs a reward model"),
        (["votes"], None, "method 'votes' is not known"),
        (["beam"], "outcome", "method 'beam' needs a process reward model"),
        (["tree"], "outcome", "method 'tree' needs a process reward model"),
        (["tree"], None, "method 'tree' needs a reward model"),
    ],
)
def test_what_cannot_be_searched_is_refused(methods: Any, guide: Any, message: str) -> None:
    chosen = Sevens() if guide else None
    if chosen:
        chosen.separators = ()
    with pytest.raises(ValueError, match=message):
        search_of(scripted({"p0": ["7"]}), chosen).run(methods, [2])


def test_without_methods_all_are_tried_that_the_guide_allows() -> None:
    whole, steps = Sevens(), Sevens()
    whole.separators = ()
    for guide, allowed in ((None, 1), (whole, 3), (steps, 5)):
        rows = search_of(scripted(lambda prompt, sample: "7"), guide).run([], [1])
        assert [row.method for row in rows] == list(METHODS[:allowed])


@pytest.mark.parametrize("how", ["min", "product", "last"])
def test_a_guide_scores_as_the_reward_does(tmp_path: Path, how: Any) -> None:
    policy = tiny_policy()
    model = reward_model_from(policy, seed=0, end_token_id=int(policy.tokenizer.eos_token_id), separators=[" "])
    model.base.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    prompt = prompt_of(policy, "1+1=", "")
    texts = ["1 2 3", "7", "4 4"]
    ids = [tuple(policy.tokenizer.encode(text, add_special_tokens=False)) for text in texts]
    [reward] = Rewards([{"name": "process_reward_model", "path": str(tmp_path), "score": how}]).rewards
    said = reward.function(completions=texts, completion_ids=ids, rendered_prompts=[prompt.text] * 3)
    assert ModelGuide(tmp_path, how=how).scores([(prompt, each) for each in ids]) == pytest.approx(said)


def test_the_command_tables_accuracy_against_budget(tmp_path: Path) -> None:
    recipe = {
        "model": {"source": "tiny", "tiny": {"hidden_size": 16, "num_layers": 1, "num_heads": 2}, "precision": "fp32"},
        "task": {"kind": "arithmetic", "num_train": 6, "num_eval": 3, "num_demonstrations": 8},
        "rewards": ["tag_answer"],
        "stages": [
            {"algorithm": "sft", "steps": 1, "batch_size": 4},
            {
                **{"algorithm": "process-reward-model", "steps": 1, "batch_size": 2, "separators": [" "]},
                "sample": {"num_prompts": 2, "group_size": 2, "completions": 2, "sampling": {"max_new_tokens": 8}},
            },
        ],
        "evaluation": {"problems": 3, "samples": 1, "max_new_tokens": 8},
    }
    run_recipe(recipe, tmp_path / "run")
    command = ["search", str(tmp_path / "run"), "--budgets", "1,4", "--json"]
    trained = str(tmp_path / "run" / "checkpoints" / "process-reward-model")
    done = CliRunner().invoke(app, [*command, "--reward-model", trained, "--width", "2"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.output)
    assert [(row["method"], row["budget"]) for row in rows] == [
        (method, budget) for method in ("majority", "best-of-n", "weighted", "beam", "tree") for budget in (1, 4)
    ]
    alone = CliRunner().invoke(app, [*command[:-1], "--methods", "beam"])
    assert alone.exit_code != 0
