"""Pre-training: every token of a text is predicted once, and its loss is the model's own next-token loss."""

from pathlib import Path

import pytest
import torch
from train.building import tiny_policy
from transformers import AutoModelForCausalLM

from outscore.config import parse_recipe
from outscore.model.load import encode
from outscore.report import RunDirectory
from outscore.report.rows import read_parquet
from outscore.train.check import check_recipe
from outscore.train.materials import text_groups
from outscore.train.run import run_recipe
from outscore.train.setup import prepare
from outscore.train.texts import TextMeasure

RECIPE = {
    "seed": 1,
    "model": {"source": "tiny", "tiny": {"hidden_size": 16, "num_layers": 1, "num_heads": 2}, "precision": "fp32"},
    "stages": [{"algorithm": "pretrain", "steps": 3, "batch_size": 4, "piece": 9, "optimizer": {"lr": 5e-3}}],
    "evaluation": {"problems": 3, "samples": 1},
}


def corpus(folder: Path) -> dict[str, object]:
    (folder / "text.txt").write_text("\n".join(f"{n}+{n}={2 * n} and {n}-{n}=0" for n in range(40)))
    return {"kind": "text", "path": str(folder / "text.txt"), "split": "line", "eval_fraction": 0.1}


def test_pieces_join_to_the_document_and_each_token_is_predicted_once() -> None:
    policy = tiny_policy()
    end = int(policy.tokenizer.eos_token_id)
    text = "12+34=46 9-8=1"
    whole = [*encode(policy.tokenizer, text), end]
    pieces = text_groups([text, "7"], policy, 5)
    assert [len(each.completion.token_ids) for each in pieces] == [5, 5, 5, 2]
    assert [token for each in pieces[:3] for token in each.completion.token_ids] == whole
    befores = [each.prompt.token_ids for each in pieces]
    assert befores == [(end,), (whole[4],), (whole[9],), (end,)]


def test_the_loss_is_that_of_hugging_face(tmp_path: Path) -> None:
    workshop = prepare(parse_recipe({**RECIPE, "task": corpus(tmp_path)}))
    policy, pieces = workshop.policy, workshop.eval_texts
    found = TextMeasure(pieces=pieces, policy=policy, token_budget=64).run()["text_logprob"]
    policy.model.save_pretrained(tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    total, count = 0.0, 0
    for piece in pieces:
        ids = torch.tensor([[*piece.prompt.token_ids, *piece.completion.token_ids]])
        with torch.no_grad():
            loss = theirs(input_ids=ids, labels=ids).loss.item()
        total, count = total + loss * (ids.numel() - 1), count + ids.numel() - 1
    assert abs(float(found) + total / count) < 1e-5  # type: ignore[arg-type]


def test_a_check_says_what_text_there_is(tmp_path: Path) -> None:
    findings = {each.what: each for each in check_recipe(parse_recipe({**RECIPE, "task": corpus(tmp_path)}))}
    documents = (tmp_path / "text.txt").read_text().splitlines()
    trained = [text for place, text in enumerate(documents, start=1) if place % 10]  # every tenth is held out
    pieces = sum(-(-(len(text) + 1) // 9) for text in trained)  # a token for each character, and the end's
    assert findings["texts"].detail == f"stage pretrain: 36 documents, {pieces} pieces, 4 held out"
    assert findings["texts"].status == "ok"
    assert {"task", "prompts"}.isdisjoint(findings) and "MiB" in findings["memory"].detail


def test_held_out_text_gets_likelier(tmp_path: Path) -> None:
    stage = {**RECIPE["stages"][0], "steps": 40, "batch_size": 16}  # type: ignore[dict-item, index]
    run = run_recipe({**RECIPE, "stages": [stage], "task": corpus(tmp_path)}, tmp_path / "run")
    before, after = (each.metrics["text_logprob"] for each in run.evaluations)
    assert after > before + 0.5
    directory = RunDirectory.open(run.path)
    assert directory.metrics("pretrain")[0]["loss"] > -after
    # Every piece is on record, and each of its tokens pulls with 1 / (all tokens of the step).
    rows = read_parquet(directory.groups_path("pretrain", 40))
    coefficients = [value for row in rows for value in row.coefficients or ()]
    assert len(rows) == 16 and len(coefficients) == directory.metrics("pretrain")[-1]["num_tokens"]
    assert coefficients == pytest.approx([1 / len(coefficients)] * len(coefficients), rel=1e-6)
