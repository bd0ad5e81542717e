"""Completions that were given are on record with the coefficient of every token, as sampled ones are."""

import io
from pathlib import Path

import pytest
import rich.console
from train.test_rejection import digits

from outscore.report import Console, RunDirectory, show_run
from outscore.report.rows import CompletionRow, read_parquet
from outscore.train.run import run_recipe

OPTIMIZER = {"lr": 5e-3, "warmup_steps": 0}
PAIRS = {"steps": 2, "batch_size": 4, "optimizer": OPTIMIZER}
PULLS = {"dpo": 0.1 / 2, "cdpo": 0.1 * (0.9 - 0.1) / 2, "ipo": 1 / 0.1}
"""|d loss / dh| of a pair where policy and reference are one: beta sigma(0), that of a tenth of wrong labels, and
2 / (2 beta)."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, str]:
    """A run of every stage whose completions are given, and what it printed."""
    path: Path = tmp_path_factory.mktemp("runs") / "given"
    sampled = {"num_prompts": 6, "group_size": 4, "min_reward": 0.3, "sampling": {"max_new_tokens": 30}}
    recipe = {
        "seed": 3,
        "model": {"source": "tiny", "tiny": {"hidden_size": 16, "num_layers": 1, "num_heads": 2}, "precision": "fp32"},
        "task": {"kind": "arithmetic", "num_train": 8, "num_eval": 2, "num_demonstrations": 8, "num_preferences": 8},
        "stages": [
            {"algorithm": "sft", "steps": 2, "batch_size": 4, "optimizer": OPTIMIZER},
            {"algorithm": "rft", "steps": 2, "batch_size": 3, "optimizer": OPTIMIZER, **sampled},
            *({"algorithm": name, **PAIRS} for name in PULLS),
            {"algorithm": "reward-model", **PAIRS},
        ],
        "evaluation": {"problems": 0},
        "scoring": {"isolate": False},
    }
    out = rich.console.Console(file=io.StringIO(), width=100)
    run_recipe(recipe, path, rewards=[digits], console=Console(rich_console=out))
    return RunDirectory.open(path), out.file.getvalue()  # type: ignore[attr-defined]  # a StringIO


def rows_of(run: RunDirectory, stage: str, step: int) -> list[CompletionRow]:
    return read_parquet(run.groups_path(stage, step))


@pytest.mark.parametrize("stage", ["sft", "rft"])
@pytest.mark.parametrize("step", [1, 2])
def test_imitation_pulls_at_every_token_alike(run: tuple[RunDirectory, str], stage: str, step: int) -> None:
    """1 / sum|o|: DeepSeekMath's coefficient 1 times the token's weight."""
    rows = rows_of(run[0], stage, step)
    total = sum(map(sum, (row.counts for row in rows)))
    assert len(rows) == (4 if stage == "sft" else 3) and total == run[0].metrics(stage)[step - 1]["num_tokens"]
    for row in rows:
        assert row.coefficients == pytest.approx([1 / total] * len(row.token_ids), rel=1e-6)
        assert row.was_given and row.rank is None
        assert (row.reward, row.advantage, row.sampler_logprobs, row.policy_version) == (None,) * 4


def test_what_rejection_sampling_kept_is_found_again_in_the_steps_that_imitate_it(
    run: tuple[RunDirectory, str],
) -> None:
    sampled = {(row.problem_id, row.token_ids): row.advantage for row in rows_of(run[0], "rft", 0)}
    assert None in sampled.values()
    for row in (*rows_of(run[0], "rft", 1), *rows_of(run[0], "rft", 2)):
        assert sampled[row.problem_id, row.token_ids] == 1.0


@pytest.mark.parametrize("stage", PULLS)
def test_pairs_pull_up_and_down_alike(run: tuple[RunDirectory, str], stage: str) -> None:
    first, second = (rows_of(run[0], stage, step) for step in (1, 2))
    for rows in (first, second):
        assert [(row.slot, row.sample) for row in rows] == [(slot, sample) for slot in range(4) for sample in range(2)]
        for one, other in zip(rows[::2], rows[1::2], strict=True):
            better, worse = (one, other) if one.rank == 0 else (other, one)
            assert (better.rank, worse.rank) == (0, 1) and better.prompt == worse.prompt
            assert min(better.coefficients or ()) > 0
            assert {*(better.coefficients or ())} == {-value for value in worse.coefficients or ()}
    pulls = [abs(value) for row in first for value in row.coefficients or ()]
    assert pulls == pytest.approx([PULLS[stage] / 4] * len(pulls), rel=1e-5)
    assert len({value for row in second for value in row.coefficients or ()}) > 2  # each pair its own


def test_a_reward_model_pulls_at_no_log_prob_and_leaves_no_groups(run: tuple[RunDirectory, str]) -> None:
    assert {item.stage for item in run[0].group_files()} == {"sft", "rft", *PULLS}
    with pytest.raises(ValueError, match="no groups in stage 'reward-model'"):
        show_run(run[0].path, stage="reward-model", step=1)


def test_given_completions_can_be_looked_at_and_are_not_shown_while_training(run: tuple[RunDirectory, str]) -> None:
    directory, printed = run
    assert "dpo 2/2" in printed and "mean coeff." not in printed and "response" not in printed

    def shown(**options: object) -> str:
        out = rich.console.Console(file=io.StringIO(), width=100)
        show_run(directory.path, console=out, **options)  # type: ignore[arg-type]
        return str(out.file.getvalue())  # type: ignore[attr-defined]

    rows = rows_of(directory, "sft", 1)
    pull = 1 / sum(len(row.token_ids) for row in rows)
    table = shown(stage="sft", step=1)
    assert rows[0].problem_id in table and f"{pull:+.1e}" in table
    tokens = shown(stage="sft", step=1, sample=0)
    assert f"completion 0 of {rows[0].problem_id}: given" in tokens and "log-prob" not in tokens
    # Three groups are shown.
    assert tokens.count(f"{pull:+.3e}") == sum(len(row.token_ids) for row in rows[:3])
    assert "given, rank 1" in shown(stage="dpo", step=1, sample=0) + shown(stage="dpo", step=1, sample=1)
    with pytest.raises(ValueError, match="best and worst are by reward"):
        shown(stage="sft", best=True)
    data = show_run(directory.path, worst=True, console=rich.console.Console(file=io.StringIO()))
    assert {row["stage"] for group in data["groups"] for row in group} == {"rft"}
