"""The stages of a run as a tree."""

import io

import rich.console

from outscore.report.evaluation import Evaluation
from outscore.report.lineage import branches, lineage_tree, parents

R1 = [
    {"name": "zero", "algorithm": "grpo"},
    {"name": "dev1", "algorithm": "sft", "start": "base"},
    {"name": "dev2", "algorithm": "grpo", "start": "previous"},
    {"name": "helpful", "algorithm": "reward-model", "start": "dev1"},
    {"name": "dev3", "algorithm": "rft", "start": "base", "samples_from": "dev2"},
    {"name": "", "algorithm": "grpo-r1"},
]


def evaluation(label: str, stage: str, greedy: float) -> Evaluation:
    return Evaluation(
        **{"label": label, "stage": stage, "step": 1, "policy_version": 1, "num_problems": 4, "samples": 1},
        **{"metrics": {"greedy": greedy}, "intervals": {}},
    )


def test_each_stage_has_the_weights_it_names_and_a_reward_model_passes_the_policy_on():
    assert parents(R1) == {
        **{"zero": "base", "dev1": "base", "dev2": "dev1", "helpful": "dev1", "dev3": "base", "grpo-r1": "dev3"}
    }
    assert parents([R1[3], R1[2]]) == {"helpful": "dev1", "dev2": "base"}


def test_a_line_of_stages_is_no_tree():
    line = [{"name": "", "algorithm": "sft"}, {"name": "", "algorithm": "grpo", "start": "previous"}]
    assert not branches(line)
    assert branches(R1) and branches([line[0], {**line[1], "start": "base"}])
    assert branches([line[0], {"name": "", "algorithm": "rft", "samples_from": "base"}])


def test_the_tree_says_how_far_each_is_and_what_it_reached():
    done = [
        evaluation("before zero", "zero", 0.0),
        evaluation("after zero", "zero", 0.25),
        evaluation("x", "dev1", 0.5),
    ]
    tree = lineage_tree(R1, {"zero": (9, 9), "dev1": (3, 9)}, done)
    out = io.StringIO()
    rich.console.Console(file=out, width=80).print(tree)
    assert out.getvalue().splitlines() == [
        "base  greedy 0.0 %",
        "├── zero  grpo, done  greedy 25.0 %",
        "├── dev1  sft, step 3 of 9  greedy 50.0 %",
        "│   ├── dev2  grpo, waiting",
        "│   └── helpful  reward-model, waiting",
        "└── dev3  rft, samples of dev2, waiting",
        "    └── grpo-r1  grpo-r1, waiting",
    ]
