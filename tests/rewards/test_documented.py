"""What docs/rewards.md and docs/tasks.md show is what happens."""

import re
from inspect import signature
from pathlib import Path

import pytest
import torch
import yaml
from rewards.building import group, scores
from rewards.models import CHARACTERS, saved_policy
from transformers import AutoModelForCausalLM

from outscore.config import parse_recipe
from outscore.model.heads import reward_model_from
from outscore.model.policy import Policy
from outscore.model.tiny import tiny_model
from outscore.rewards import BUILTIN_REWARDS, Rewards
from outscore.rewards.endpoint import Endpoint, Reply
from outscore.rewards.examples import try_examples
from outscore.rewards.sandbox import IsolationError
from outscore.settings import ScoringLimits

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


def tables(page):
    """Rows of cells, without their marks."""
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("| ")]
    return [[cell.strip().strip("`") for cell in row] for row in rows]


def test_every_built_in_reward_has_its_row():
    documented = {row[0] for row in tables("rewards.md")}
    assert set(BUILTIN_REWARDS) <= documented


def test_every_built_in_reward_has_a_range_what_it_says_its_options_and_its_cost():
    rows = {row[0]: row for row in tables("rewards.md") if row[0] in BUILTIN_REWARDS and len(row) == 5}
    assert set(rows) == set(BUILTIN_REWARDS)
    for name, (_, span, says, options, cost) in rows.items():
        assert span and says and cost, name
        known = set(signature(BUILTIN_REWARDS[name]).parameters)
        assert known <= set(re.findall(r"\w+", options)), f"{name} has options that the page does not name"


def test_every_built_in_reward_has_an_example():
    page = (DOCS / "rewards.md").read_text(encoding="utf-8")
    entries = [row[0] for row in tables("rewards.md") if len(row) == 4] + [
        name for row in tables("rewards.md") if row[0] == "completion" for name in row[1:]
    ]
    shown = {each if not each.startswith("{") else yaml.safe_load(each)["name"] for each in entries}
    assert set(BUILTIN_REWARDS) - {"gym"} <= shown
    assert "`gym` gives what" in page  # for the problems of its own task


def set_up():
    """The examples of rewards that need more than a gold answer: (entry, where, completion, value)."""
    page = (DOCS / "rewards.md").read_text(encoding="utf-8")
    table = page.partition("| entry in `rewards` | where |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    entries = [yaml.safe_load(row[0].strip("`")) for row in rows]
    specs = [each if isinstance(each, dict) else {"name": each} for each in entries]
    return [
        (spec, where, text.removeprefix("`").removesuffix("`").strip().replace("⏎", "\n"), float(value))
        for spec, (_, where, text, value) in zip(specs, rows, strict=True)
    ]


def constant(folder, score, separators=None):
    """A reward model whose layers say nothing: every score is `score`."""
    plain, tokenizer = tiny_model(CHARACTERS, [], 0, hidden_size=8, num_layers=1, num_heads=2)
    end = int(tokenizer.eos_token_id)
    policy = Policy(plain, tokenizer, stop_token_ids=frozenset({end}))
    model = reward_model_from(policy, seed=0, end_token_id=end, separators=separators)
    model.rescale(0.0, score)
    model.base.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return str(folder)


def test_the_rewards_that_run_programs_give_what_their_rows_say():
    tests = {"tests": ["assert double(2) == 4", "assert double('ab') == 'abab'"]}
    cases = {"cases": [{"input": "2", "output": "4"}, {"input": "5", "output": "10"}]}
    shown = [each for each in set_up() if each[0]["name"].startswith("code_")]
    assert [each[0]["name"] for each in shown] == ["code_tests", "code_stdin"]
    for (spec, where, text, value), columns in zip(shown, (tests, cases), strict=True):
        assert "```" in text and all(f"`{test}`" in where for test in columns.get("tests", ()))
        try:
            assert scores(spec, text, columns=columns) == [value]
        except IsolationError as error:
            pytest.skip(str(error))


def test_the_judge_gives_what_its_rows_say(monkeypatch):
    shown = [each for each in set_up() if each[0]["name"] == "llm_judge"]
    assert len(shown) == 2
    for spec, where, text, value in shown:
        replies = [Reply(text=said, num_tokens=0, cached=False) for said in re.findall(r"`([^`]*)`", where)]
        monkeypatch.setattr(
            Endpoint, "ask_all", lambda self, questions, attempt, replies=replies: replies[: len(questions)]
        )
        judge = {**spec, "url": "http://localhost/v1", "model": "scripted"}
        assert scores(judge, text, columns={"reference": "It is 305."}) == [value]


def test_the_rewards_that_ask_models_give_what_their_rows_say(tmp_path):
    policy = saved_policy(tmp_path / "uniform")
    model = AutoModelForCausalLM.from_pretrained(policy)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    model.save_pretrained(policy)
    steps = constant(tmp_path / "steps", 0.0, separators=["\n"])
    scorers = [constant(tmp_path / "a", 1.0), constant(tmp_path / "b", 2.0)]
    paths = {"perplexity": str(policy), "reward_model": scorers, "process_reward_model": steps}
    shown = [each for each in set_up() if each[0]["name"] in paths]
    assert {each[0]["name"] for each in shown} == set(paths)
    for spec, _, text, value in shown:
        found = scores({**spec, "path": paths[spec["name"]]}, text, question="1+1=")
        assert found == pytest.approx([value], abs=1e-4), spec


def test_the_examples_in_the_file_hold(tmp_path):
    shown = blocks("rewards.md", "python")
    source, examples = shown[0], next(each for each in shown if "EXAMPLES" in each)
    (tmp_path / "my_reward.py").write_text(source + examples)
    tried = try_examples("my_reward.py", folder=tmp_path)
    assert len(tried) == 3 and all(each.ok for each in tried)


def test_the_rubric_shown_runs_as_it_is(tmp_path):
    (tmp_path / "rubric.py").write_text(next(each for each in blocks("rewards.md", "python") if "rubric.py" in each))
    spec = yaml.safe_load(next(each for each in blocks("rewards.md", "yaml") if "rubric.py" in each))["rewards"]
    asked = group("It is 277.", "305", question=({"role": "user", "content": "325-28-20="},))
    [scored] = Rewards(spec, folder=tmp_path).score([asked], step=1).groups
    assert [score.reward for score in scored.scores] == [1.0, 0.0]


def test_the_models_shown_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("runs/reward-model/checkpoints/reward-model", *(f"rm/{n}" for n in range(4))):
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "config.json").write_text("{}")
    specs = yaml.safe_load(next(each for each in blocks("rewards.md", "yaml") if "label: ensemble" in each))["rewards"]
    made = Rewards(specs).rewards
    assert [each.name for each in made] == ["reward_model", "ensemble", "perplexity", "fluent"]
    assert len(made[1].function.members) == 4 and made[1].shaping.uncertainty == 1.0


def test_the_examples_score_as_the_table_says():
    rows = tables("rewards.md")
    header = next(index for index, row in enumerate(rows) if row[0] == "completion" and "format_tags" in row)
    names, examples = rows[header][1:], rows[header + 1 : header + 5]
    rewards = Rewards(names)
    texts = [row[0].replace("⏎", "\n") for row in examples]
    [scored] = rewards.score([group(*texts, answer="277")], step=1).groups
    expected = [[float(cell) for cell in row[1:]] for row in examples]
    assert [[score.parts[name] for name in names] for score in scored.scores] == expected


def test_each_of_the_other_examples_scores_as_its_row_says():
    rows = tables("rewards.md")
    first = next(index for index, row in enumerate(rows) if row[0].startswith("entry in")) + 1
    last = next(index for index, row in enumerate(rows) if row[:2] == ["entry in `rewards", "where"])
    examples = [row for row in rows[first:last] if len(row) == 4]
    assert len(examples) > 20
    for entry, text, gold, value in examples:
        [scored] = scores(yaml.safe_load(entry), text, answer=gold or None, question="How many eggs do the hens lay?")
        assert scored == pytest.approx(float(value.replace("−", "-")), abs=1e-4), entry


def test_the_shaping_shown_is_read():
    specs = yaml.safe_load(next(each for each in blocks("rewards.md", "yaml") if "only_if" in each))["rewards"]
    assert [each.shaping.only_if for each in Rewards(specs[:3]).rewards] == [None, "format_tags", None]
    assert specs[3]["uncertainty"] == 1


def test_the_reward_in_ten_lines_works(tmp_path):
    source = blocks("rewards.md", "python")[0]
    assert len(source.splitlines()) <= 10
    (tmp_path / "my_reward.py").write_text(source)
    rewards = Rewards(["my_reward.py:concise"], folder=tmp_path)
    [scored] = rewards.score([group("277", "277" + " " * 297, "305")], step=1).groups
    assert [score.reward for score in scored.scores] == [1.0, 0.9, 0.0]


def test_in_the_first_recipe_the_answer_says_what_is_correct_and_not_the_format(tmp_path):
    (tmp_path / "my_reward.py").write_text(blocks("rewards.md", "python")[0])
    specs = yaml.safe_load(blocks("rewards.md", "yaml")[0])["rewards"]
    assert Rewards(specs, folder=tmp_path).says_correct().name == "concise"


def test_the_recipe_that_says_how_rewards_run_is_read_as_the_page_says(tmp_path):
    (tmp_path / "my_reward.py").write_text("def judged(completions): ...\ndef perplexity(completions): ...\n")
    given = yaml.safe_load(next(filter(lambda text: "scoring:" in text, blocks("rewards.md", "yaml"))))
    recipe = parse_recipe({"task": {"kind": "arithmetic"}, "stages": [{"algorithm": "grpo", "steps": 1}], **given})
    judged, perplexity = Rewards(recipe.rewards, folder=tmp_path, scoring=recipe.scoring).rewards
    assert (judged.batched, judged.on_failure, judged.limits) == (
        False,
        0.0,
        {"seconds": 30, "retries": 2, "workers": 4},
    )
    assert (perplexity.batched, perplexity.isolate, perplexity.on_failure) == (True, False, None)


def test_the_limits_in_the_page_are_the_defaults():
    shown = {row[0]: row[1] for row in tables("rewards.md")}
    for name, default in ScoringLimits().model_dump().items():
        assert float(shown[name]) == default


def test_the_task_in_a_page_validates(capsys):
    exec(blocks("tasks.md", "python")[0], {})
    assert capsys.readouterr().out == "TaskCheck(num_problems=26, complaints=())\n"


def test_the_error_shown_is_the_error_raised(tmp_path):
    lines = ['"""Rewards."""', "", "def ratio(completions):", "    return [1.0 / float(text) for text in completions]"]
    (tmp_path / "my_reward.py").write_text("\n".join(lines))
    rewards = Rewards(["my_reward.py:ratio"], folder=tmp_path)
    with pytest.raises(ValueError) as caught:
        rewards.score([group("1", "2", "0", "4", "5", "6", "7", "8", id="sums/17")], step=1)
    assert f"```\n{caught.value}\n```" in (DOCS / "rewards.md").read_text(encoding="utf-8")
