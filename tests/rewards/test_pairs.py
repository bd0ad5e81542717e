"""Every built-in reward gives a good completion more than a bad one, both made by hand."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rewards.building import group, scores
from rewards.test_llm_judge import right_if_277, scripted
from train.building import tiny_policy
from transformers import AutoModelForSequenceClassification

from outscore.model.heads import reward_model_from
from outscore.model.tiny import tiny_model
from outscore.rewards import BUILTIN_REWARDS, Rewards
from outscore.rewards.sandbox import IsolationError, Sandbox

TAGGED = "<reasoning>\n325-28=297 297-20=277\n</reasoning>\n<answer>\n277\n</answer>\n"
WRONG = TAGGED.replace("277", "305")
PROSE = "The hens lay twelve eggs a day. We eat two of the eggs. So ten eggs are left to sell."
PROGRAM = "```python\ndef f(x):\n    return x + {}\n```"
PRINTS = "```python\nprint(int(input()) + {})\n```"

PAIRS: Mapping[str, list[tuple[Mapping[str, Any], str, str, Mapping[str, Any]]]] = {
    "format_tags": [
        ({}, TAGGED, "277", {}),
        ({"soft": True}, TAGGED, TAGGED.replace("</reasoning>", ""), {}),
        ({"tags": ["think", "answer"]}, "<think>\nx\n</think>\n<answer>\n1\n</answer>\n", TAGGED, {}),
    ],
    "answer_exact": [({}, "<answer>277</answer>", "<answer>0277</answer>", {})],
    "answer_numeric": [({}, "It is 277.0", "It is 277.1", {}), ({"tolerance": 0.01}, "279", "305", {})],
    "last_number": [({}, "297, no: 277", "277, no: 297", {})],
    "tag_answer": [({}, TAGGED, WRONG, {})],
    "math_verify": [({}, "\\boxed{\\frac{1}{2}}", "\\boxed{\\frac{2}{3}}", {"answer": "0.5"})],
    "multiple_choice": [({}, "The answer is (B).", "The answer is A or B", {"answer": "B"})],
    "answer_set": [({}, "<answer>3, 2, 1</answer>", "<answer>3, 2</answer>", {"answer": "1, 2, 3"})],
    "answer_list": [({"partial_credit": True}, "1, 2, 3", "1, 3, 2", {"answer": "1, 2, 3"})],
    "json_format": [
        ({}, '{"age": 3}', "{'age': 3}", {}),
        ({"schema": {"required": ["a"]}}, '{"a": 1}', '{"b": 1}', {}),
    ],
    "answer_follows": [({}, TAGGED, TAGGED.replace("<answer>\n277", "<answer>\n305"), {})],
    "equations_hold": [({}, TAGGED, TAGGED.replace("=297 ", "=299 "), {})],
    "language_consistency": [({}, "<think>So it is six.</think>", "<think>So it is 所以是六</think>", {})],
    "coherence": [({}, PROSE, "The hens lay eggs. Paris is old. Nobody knows why.", {})],
    "completeness": [({"parts": ["eggs"]}, PROSE, "The hens lay (about", {})],
    "fluency": [({}, PROSE, "eggs eggs eggs eggs eggs eggs eggs", {})],
    "repetition": [({}, PROSE, "we eat the eggs and we eat the eggs and we eat the eggs", {})],
    "degeneration": [({}, PROSE, PROSE + " so so so so so so so", {})],
    "reflection": [({}, "Wait, I check it", "It is so", {})],
    "soft_overlong": [({"max_length": 20, "cache": 10}, "short", "a little too long", {})],
    "target_length": [({"target": 10, "within": 8}, "ten tokens", "two", {})],
    "code_tests": [({}, PROGRAM.format(1), PROGRAM.format(2), {"columns": {"tests": "assert f(2) == 3"}})],
    "code_stdin": [
        ({}, PRINTS.format(1), PRINTS.format(2), {"columns": {"cases": [{"input": "2\n", "output": "3\n"}]}})
    ],
}
"""Reward -> (options, good, bad, the problem). Those below need a model, a judge or a package of their own."""


def check(name: str, options: Mapping[str, Any], good: str, bad: str, problem: Mapping[str, Any]) -> None:
    better, worse = scores({"name": name, **options}, good, bad, **problem)
    assert better is not None and worse is not None
    assert better > worse


@pytest.mark.parametrize(("name", "number"), [(name, n) for name, own in PAIRS.items() for n in range(len(own))])
def test_good_is_worth_more_than_bad(name: str, number: int) -> None:
    if name.startswith("code_"):
        box = Sandbox()
        try:
            box.check()
            box.close()
        except IsolationError as error:
            pytest.skip(str(error))
    check(name, *PAIRS[name][number])


def test_perplexity(tmp_path: Path) -> None:
    """A model that was shown sums finds a sum likelier than no sum."""
    model, tokenizer = tiny_model("0123456789+-= ", [], 0, hidden_size=32, num_layers=1, num_heads=2)
    ids = torch.tensor([tokenizer(f"{a}+{b}={a + b}")["input_ids"] for a in range(1, 5) for b in range(1, 5)])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    check("perplexity", {"path": str(tmp_path)}, "5", "=+", {"question": "2+3=", "answer": "5"})


def fitted(folder: Path, **options: Any) -> str:
    """A reward model whose head likes 5 and not 9 after one sum."""
    policy = tiny_policy()
    model = reward_model_from(policy, seed=0, end_token_id=None, **options)
    model.base.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    plain = AutoModelForSequenceClassification.from_pretrained(folder)
    ids = torch.tensor([policy.tokenizer(text)["input_ids"] for text in ("2+3=5", "2+3=9")])
    with torch.no_grad():
        good, bad = plain.base_model(input_ids=ids).last_hidden_state[:, -1]
        plain.score.weight[0] = good - bad
    plain.save_pretrained(folder)
    return str(folder)


def test_process_reward_model(tmp_path: Path) -> None:
    """As below, of a step."""
    spec = {"name": "process_reward_model", "path": fitted(tmp_path, separators=[" "])}
    [reward] = Rewards([spec]).rewards
    better, worse = reward.function(completions=["5", "9"], completion_ids=[[], []], rendered_prompts=["1+4="] * 2)
    assert better > worse


def test_reward_model(tmp_path: Path) -> None:
    """A head that is fitted to like 5 and not 9 after one sum does so after another."""
    path = fitted(tmp_path)
    sampled = group("5", "9", question="1+4=")
    object.__setattr__(sampled.prompt, "text", "1+4=")
    [scored] = Rewards([{"name": "reward_model", "path": path}]).score([sampled], step=1).groups
    better, worse = (score.reward for score in scored.scores)  # type: ignore[union-attr]
    assert better > worse


def test_llm_judge() -> None:
    with scripted(right_if_277) as judge:
        check("llm_judge", {"url": judge.url, "model": "scripted"}, "277", "305", {})


def test_gym() -> None:
    pytest.importorskip("reasoning_gym")
    from outscore.tasks import make_task

    task = make_task(kind="reasoning_gym", dataset="chain_sum", num_train=1, num_eval=1, min_terms=2, max_terms=2)
    problem = task.train_problems()[0]
    right = str(problem.answer)
    options: dict[str, Any] = {"answer": right, "question": problem.question, "columns": problem.columns}
    check("gym", {}, right, str(int(right) + 1), options)


def test_no_reward_is_left_out() -> None:
    own: dict[str, Callable[..., None]] = {
        **{"perplexity": test_perplexity, "reward_model": test_reward_model},
        **{"process_reward_model": test_process_reward_model},
        **{"llm_judge": test_llm_judge, "gym": test_gym},
    }
    assert set(PAIRS) | set(own) == set(BUILTIN_REWARDS)
