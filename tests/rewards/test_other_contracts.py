"""Functions that were written for TRL or for a rubric of verifiers run as they are."""

import asyncio
import os
import re
from pathlib import Path

import pytest
from rewards.building import group, scores

from outscore.rewards import RewardError, Rewards

CHAT = ({"role": "user", "content": "325-28-20="},)

# In TRL's contract: batches, messages where the prompt is messages, columns as lists, None for "does not apply".


def trl_format(completions, **kwargs):
    """As in TRL's documentation: the content of the first message of each completion."""
    contents = [completion[0]["content"] for completion in completions]
    return [1.0 if re.match(r"^<think>.*?</think><answer>.*?</answer>$", text) else 0.0 for text in contents]


def trl_correct(prompts, completions, completion_ids, answer, trainer_state, log_extra, log_metric, **kwargs):
    log_extra("seen", [prompt[-1]["content"] for prompt in prompts])
    log_metric("step", trainer_state.global_step)
    return [
        None if gold is None else float(gold in text[0]["content"])
        for text, gold in zip(completions, answer, strict=True)
    ]


async def trl_async(completions, **kwargs):
    await asyncio.sleep(0)
    return [float(len(completion[0]["content"])) for completion in completions]


# In the contract of verifiers: one completion at a time, whatever the function names.


def contains(completion, answer):
    return 1.0 if answer in completion[-1]["content"] else 0.0


async def contains_async(completion, answer) -> float:
    await asyncio.sleep(0)
    return 1.0 if answer in completion[-1]["content"] else 0.0


def with_everything(prompt, completion, answer, state, task, info, **kwargs):
    assert state["prompt"] == prompt and state["completion"] == completion and state["answer"] == answer
    asked = prompt[-1]["content"] == "325-28-20="
    return info.get("bonus", 0.0) + (task == "sums") + (kwargs["level"] == 3) + float(asked)


class Parser:
    def parse_answer(self, completion):
        found = re.search(r"<answer>(.*?)</answer>", completion[-1]["content"])
        return found and found.group(1)


def parsed(parser, completion, answer, **kwargs) -> float:
    return 1.0 if parser.parse_answer(completion) == answer else 0.0


def plain(completion, answer):
    return float(completion.strip() == answer)


RIGHT = "<think>x</think><answer>277</answer>"


def test_trl_s_functions_run_unchanged() -> None:
    rewards = Rewards([trl_format, trl_correct, trl_async])
    result = rewards.score([group(RIGHT, "305", question=CHAT)], step=4)
    parts = [score.parts for score in result.groups[0].scores]  # type: ignore[union-attr]
    assert [each["trl_format"] for each in parts] == [1.0, 0.0]
    assert [each["trl_correct"] for each in parts] == [1.0, 0.0]
    assert [each["trl_async"] for each in parts] == [len(RIGHT), 3.0]
    assert result.extra_columns["seen"] == ["325-28-20="] * 2 and result.logged["step"] == (4.0, 1.0)


@pytest.mark.peer
def test_trl_s_own_rewards_run_unchanged() -> None:
    from trl.rewards import think_format_reward

    said = scores(think_format_reward, "<think>x</think> 277", "277", question=CHAT)
    assert said == think_format_reward(
        [[{"role": "assistant", "content": text}] for text in ("<think>x</think> 277", "277")]
    )


@pytest.mark.parametrize("function", [contains, contains_async])
def test_a_function_of_verifiers_scores_one_completion_at_a_time(function) -> None:
    assert scores(function, RIGHT, "305", "277", question=CHAT) == [1.0, 0.0, 1.0]


def test_it_gets_what_it_names_of_prompt_state_task_info_and_columns() -> None:
    columns = {"info": {"bonus": 10.0}, "task": "sums", "level": 3}
    assert scores(with_everything, "277", question=CHAT, columns=columns) == [13.0]
    assert scores(with_everything, "277", question=CHAT, columns={"level": 0}) == [1.0]


def test_a_rubric_s_parser_is_an_option() -> None:
    assert scores({"name": parsed, "parser": Parser()}, RIGHT, "277", question=CHAT) == [1.0, 0.0]
    with pytest.raises(ValueError, match="reward 'parsed' asks for 'parser', which neither the data nor the contract"):
        scores(parsed, RIGHT, question=CHAT)


def test_plain_questions_come_as_text() -> None:
    assert scores(plain, "277 ", "305") == [1.0, 0.0]


def test_a_completion_that_it_fails_on_is_named_and_no_zero() -> None:
    with pytest.raises(RewardError, match=r"reward 'contains' raised TypeError.*completion 1 of 1"):
        Rewards([contains]).score([group("277", question=CHAT, answer=None)], step=1)
    assert scores(contains, "277", question=CHAT, answer=None) == [None]


def test_it_may_say_that_it_does_not_apply() -> None:
    def only_questions(completion):
        return None if "?" not in completion else 1.0

    assert scores(only_questions, "why?", "so") == [1.0, None]


@pytest.mark.skipif(os.name != "posix", reason="worker processes need Linux or macOS")
@pytest.mark.parametrize("name", ["contains", "contains_async"])
@pytest.mark.parametrize("batched", [True, False])
def test_it_runs_in_a_worker_process_too(tmp_path: Path, name: str, batched: bool) -> None:
    (tmp_path / "rubric.py").write_text(
        "async def contains_async(completion, answer):\n    return float(answer in completion[-1]['content'])\n\n"
        "def contains(completion, answer):\n    return float(answer in completion[-1]['content'])\n"
    )
    rewards = Rewards([{"name": f"rubric.py:{name}", "batched": batched}], folder=tmp_path, scoring={})
    [scored] = rewards.score([group("277", "305", question=CHAT)], step=1).groups
    rewards.close()
    assert [score.reward for score in scored.scores] == [1.0, 0.0]  # type: ignore[union-attr]
