"""Tables, from records with round numbers."""

import re
from typing import Any

from repo.tree import ROOT

KEY = {"device": "A CPU", "cores": 2, "threads": 2, "torch": "2", "transformers": "5", "trl": "1"}


def step(seconds: float, precision: str, **other: Any) -> dict[str, Any]:
    """A step of which each of four phases takes a quarter."""
    phases = dict.fromkeys(("sample", "score", "backward", "optimizer"), seconds / 4)
    return {"seconds": seconds, **phases, "tokens": 100, "peak_bytes": 2e9, "precision": precision, **other}


def record(own: str = "fp32", **other: Any) -> dict[str, Any]:
    trl = [[step(8.0, "fp32"), step(16.0, "fp32")], [step(12.0, "fp32")]]
    rounds = {"trl": trl, "outscore": [[step(4.0, own, peak_bytes=1e9)], [step(4.0, own, peak_bytes=1e9)]]}
    limits = [{"sample": 0.5, "backward": 0.75, "optimizer": 9.0}, {"sample": 0.6, "backward": 0.25}]
    return {"key": KEY, "commit": "abc", "rounds": rounds, "limits": limits} | other


def rows(table: str) -> dict[str, list[str]]:
    """First cell -> the others."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    assert len({len(each) for each in cells}) == 1
    return {first: others for first, *others in cells}


def test_medians_stand_with_their_spread_the_ratio_and_the_share_of_the_limit():
    from comparison import table

    found = rows(table("short", record()))
    *sides, ratio, limit, share = found["short: 4 prompts of 45 tokens × 8, 8 to 64 new"]
    assert sides == ["TRL (fp32, rounds: 2, steps: 3)", "Outscore (fp32, rounds: 2, steps: 2)"]
    assert (ratio, limit, share) == ("times TRL", "limit", "reached")
    assert found["whole step, s"] == ["12 (8–16)", "4 (4–4)", "3.00", "0.75", "19%"]
    assert found["sampled tokens/s"] == ["33 (25–50)", "100 (100–100)", "3.00", "", ""]
    assert found["peak memory, GB"] == ["2.00", "1.00", "2.00", "", ""]


def test_a_limit_is_the_fastest_of_all_rounds_and_the_optimizer_has_none():
    from comparison import fastest, table

    assert fastest(record()["limits"], "step") == {"sample": 0.5, "backward": 0.25, "seconds": 0.75}
    assert fastest([{"sample": 0.5}], "sampling") == {"sample": 0.5} and fastest([], "step") == {}
    assert rows(table("short", record()))["optimizer, s"] == ["3 (2–4)", "1 (1–1)", "3.00", "", ""]


def test_sampling_alone_has_no_other_phases():
    from comparison import table

    found = table("sampling-32", record(limits=[{"sample": 0.5}]))
    assert list(rows(found))[1:] == ["sampling, s", "sampled tokens/s", "peak memory, GB"]


def test_another_precision_class_is_said_above_the_table():
    from comparison import table

    assert "differ" not in table("short", record())
    warned = "**The precision classes differ: TRL computes in fp32, Outscore computes in bf16.**"
    assert table("short", record("bf16")).splitlines()[0] == warned
    both = record("bf16")
    both["rounds"]["trl"] = [[step(8.0, "bf16-autocast")]]
    assert "differ" not in table("short", both)


def test_below_stand_the_machine_what_trl_tried_and_what_failed():
    from comparison import table

    tried = {"fp32": 3.0, "bf16": 9.25, "bf16-autocast": None}
    found = table("short", record(trial=tried), {"trl": "round 3: exit status 1"})
    assert "On: A CPU, cores 2, threads 2, torch 2, transformers 5, trl 1, Outscore's commit abc." in found
    assert "TRL's precisions, seconds of a smaller step: fp32 3, bf16 9.25, bf16-autocast failed." in found
    assert "Asked for: 6 times." in found and found.endswith("TRL failed: round 3: exit status 1.")


def test_a_side_without_a_round_has_no_column():
    from comparison import table

    alone = record()
    alone["rounds"]["trl"] = []
    assert "TRL" not in table("short", alone) and rows(table("short", alone))["scoring, s"] == ["1 (1–1)", "", ""]
    nothing = table("short", alone | {"rounds": {}}, {"trl": "round 1: exit status 1"})
    assert "|" not in nothing and "TRL failed" in nothing


def test_a_gpus_table_says_which_path_was_measured_and_has_no_memory_for_continuous_batching():
    from comparison import table

    paths = {"attention": "attention by FlexAttention", "graphs_refused": None, "graphs_recorded": 3}
    own = [step(4.0, "bf16", paths=paths), step(4.0, "bf16", paths=paths | {"graphs_recorded": 7})]
    batching = [[step(8.0, "bf16", peak_bytes=None)]]
    rounds = {"trl": [[step(12.0, "bf16")]], "trl, continuous batching": batching, "outscore": [own]}
    limits = [{"sample": 0.5, "backward": 0.5, "bandwidth": 4e12, "peak": 790e12}]
    found = table("step-qwen-1.5b", record(rounds=rounds, limits=limits))
    assert rows(found)["whole step, s"] == ["12", "8", "4 (4–4)", "3.00", "2.00", "1", "25%"]
    assert rows(found)["peak memory, GB"] == ["2.00", "", "2.00", "1.00", "", "", ""]
    assert "all that must be read at 4.00 TB/s, and multiplied at 790 TFLOP/s" in found
    assert "Outscore: attention by FlexAttention; decoding steps recorded as CUDA graphs: 7." in found
    own[1]["paths"] = paths | {"graphs_refused": "no CUDA graphs: too old"}
    refused = table("step-qwen-1.5b", record(rounds=rounds, limits=limits))
    assert "Outscore: attention by FlexAttention; no CUDA graphs: too old." in refused


def test_a_line_of_a_gpu_says_what_was_used():
    from device import paths_taken

    from outscore.rollout.graphs import Graphs

    class Engine:
        graphs = Graphs()

    Engine.graphs.refused, Engine.graphs.num_recorded = "it failed", 2
    facts = {"attention_probe": "attention in plain tensor operations: FlexAttention failed"}
    assert paths_taken(facts, Engine()) == {
        "attention": facts["attention_probe"],
        "graphs_refused": "it failed",
        "graphs_recorded": 2,
    }
    assert paths_taken({}, object())["graphs_refused"] == "no sampler that records CUDA graphs"


def test_the_results_page_holds_no_share_of_a_limit_above_one():
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    section = text[text.index("## Beside TRL") : text.index("## How a step grows")]
    shares = [int(each) for each in re.findall(r"\| (\d+) % \|", section)]
    assert shares and max(shares) <= 100
