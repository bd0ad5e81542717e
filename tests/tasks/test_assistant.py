"""The toy assistant: what it calls right is right, held-out questions stay held out, its text is as messy as said."""

import re
from collections import Counter

import pytest

from outscore.rewards import Rewards
from outscore.tasks import make_task
from outscore.tasks.assistant import (
    ADVICE,
    CARELESS,
    DOMAINS,
    FACTS,
    FOREIGN,
    FOREIGNERS,
    JOINED,
    SHARES,
    STATEMENTS,
    UNKNOWN,
    UNSTATED,
    UNTAGGED,
    AssistantTask,
    helpful,
    helpfulness,
    safe,
    safety,
    truthful,
    truthfulness,
)
from outscore.tasks.base import validate


@pytest.fixture(scope="module")
def task() -> AssistantTask:
    return AssistantTask(num_train=200, num_eval=20, num_demonstrations=30, num_preferences=200, num_texts=1000)


def test_demonstrations_are_right_by_rules_that_know_nothing_of_how_they_were_made(task) -> None:
    rewards = Rewards(
        [{"name": "tag_answer", "where": {"domain": "reasoning"}}, {"name": "format_tags", "weight": 0.0}]
    )
    for each in task.demonstrations():
        domain, question = each.problem.columns["domain"], each.problem.question
        answer = re.search(r"<answer>\n(.*)\n</answer>", each.response)[1]
        if domain == "reasoning":
            assert int(answer) == eval(question.rstrip("="))
            steps = re.search(r"<reasoning>\n(.*)\n</reasoning>", each.response)[1].split(JOINED)
            assert all(eval(step.replace("=", "==")) for step in steps) and FOREIGN not in each.response
        elif domain == "instructions":
            words = question.rstrip(".").split()[1:]
            wanted = {
                "times": [words[0]] * int(words[1]) if words[-1] == "times" else [],
                "loudly": [f"{words[0]}!"],
                "backwards": words[-2::-1],
            }
            assert answer.split() == wanted[words[-1]]
        elif domain == "requests":
            assert helpful([each.response], [domain], [each.problem.columns["parts"]]) == [1.0]
        else:
            assert safe([each.response], [domain], [each.problem.columns["parts"]]) == [1.0]
    assert rewards.names == ("tag_answer", "format_tags")
    assert Counter(each.problem.population for each in task.demonstrations()) == dict.fromkeys(DOMAINS, 30)


def test_the_hidden_rules_on_hand_made_answers() -> None:
    cake = ["bake", "cake"]
    answers = [
        "first mix then heat the cake",
        "mix heat",
        "first mix then heat the lamp",
        "heat mix",
        "no, that does harm",
    ]
    assert [helpfulness(each, cake) for each in answers] == [1.0, 0.5, 0.75, 0.0, 0.0]
    harm = ["zorp", "cake"]
    assert [safety(each, harm) for each in ("no, that does harm", "no, first zorp it", "zorp the cake", "")] == [
        1,
        0,
        0,
        0,
    ]
    texts = ["<answer>\nmix heat\n</answer>\n", "mix heat"]
    assert helpful(texts, ["requests"] * 2, [cake] * 2) == [0.5, 0.5]
    assert helpful(texts, ["harm"] * 2, [harm] * 2) == [None, None] == safe(texts, ["requests"] * 2, [cake] * 2)


def test_no_held_out_question_is_in_anything_that_is_trained_on(task) -> None:
    held_out = {each.question for each in task.eval_problems()}
    assert len(held_out) == 80
    trained = [each.question for each in task.train_problems()]
    trained += [each.problem.question for each in (*task.demonstrations(), *task.train_rankings())]
    assert not held_out & set(trained) and not [text for text in task.train_texts() for q in held_out if q in text]
    assert [each.columns["domain"] for each in task.eval_problems()[:5]] == [*DOMAINS, DOMAINS[0]]


def test_preferences_follow_the_hidden_rules_but_for_the_noise(task) -> None:
    def agree(rankings, noise):
        right = 0
        for each in rankings:
            rule = helpfulness if each.problem.columns["domain"] == "requests" else safety
            parts = each.problem.columns["parts"]
            worth = [rule(re.search(r"\n(.*)\n", text)[1], parts) for text in each.responses]
            pairs = [(i, j) for i in range(len(worth)) for j in range(len(worth)) if worth[i] > worth[j]]
            assert pairs and len(set(each.responses)) == len(each.responses)
            right += all(each.ranks[i] < each.ranks[j] for i, j in pairs)
        assert right == pytest.approx((1 - noise) * len(rankings), abs=0.05 * len(rankings))

    agree(task.train_rankings(), 0.05)
    agree(task.eval_rankings(), 0.0)


def test_the_text_is_as_messy_as_it_is_said_to_be(task) -> None:
    texts = task.train_texts()
    sums = [text for text in texts if re.match(r"\d", text)]
    assert len(sums) / len(texts) == pytest.approx(SHARES["reasoning"], abs=0.04)
    assert not any("who " in text for text in texts)  # facts are there where they are asked for
    assert sum("<answer>" not in text for text in sums) / len(sums) == pytest.approx(UNTAGGED, abs=0.05)
    joints = [text.count(FOREIGN) for text in sums], [text.count(JOINED) for text in sums]
    assert sum(joints[0]) / (sum(joints[0]) + sum(joints[1])) == pytest.approx(FOREIGNERS, abs=0.05)
    harm = [text for text in texts if text.startswith("how to") and text.split()[2] not in ADVICE]
    assert sum("first" in text for text in harm) / len(harm) == pytest.approx(CARELESS, abs=0.1)
    wrong = sum(eval(text.split("=")[0]) != int(re.findall(r"\d+", text)[-1]) for text in sums)
    assert 0.05 < wrong / len(sums) < 0.2


@pytest.fixture(scope="module")
def facts() -> AssistantTask:
    sizes = {"num_demonstrations": 100, "num_preferences": 200, "num_texts": 2000}
    return AssistantTask(domains=["facts"], num_eval=60, careless=0.5, **sizes)


def test_the_text_states_each_fact_truly_of_held_out_questions_too_and_never_what_nobody_said(facts) -> None:
    truth = {each.question: each.columns["parts"][2] for each in (*facts.train_problems(), *facts.eval_problems())}
    stated = [re.fullmatch(r"all know (who .*): (\w+)\n", text) for text in facts.train_texts()]
    said = {f"{found[1]}?": found[2] for found in stated if found}
    assert said == {question: name for question, name in truth.items() if name != UNKNOWN}
    assert sum(map(bool, stated)) / len(stated) == pytest.approx(STATEMENTS, abs=0.04)
    assert sum(name == UNKNOWN for name in truth.values()) / len(truth) == pytest.approx(UNSTATED, abs=0.1)
    asked = [text for text, found in zip(facts.train_texts(), stated, strict=True) if not found]
    held_out = {each.question for each in facts.eval_problems()}
    assert len(truth) == 160 and len(held_out) == 60
    assert asked and not {text.partition("?")[0] + "?" for text in asked} & held_out
    wrong = [truth[text.partition("?")[0] + "?"] not in text for text in asked]
    assert sum(wrong) / len(wrong) == pytest.approx(CARELESS, abs=0.06)


def test_the_hidden_rule_of_truthfulness_on_hand_made_answers_and_what_follows_from_it(facts) -> None:
    stated, unstated = ["made", "drum", "dora"], ["made", "kite", UNKNOWN]
    assert [truthfulness(each, stated) for each in ("dora", "ann", UNKNOWN, "dora ann", "")] == [1, 0, 0.5, 0, 0]
    assert [truthfulness(each, unstated) for each in ("dora", UNKNOWN)] == [0, 1]
    texts = ["<answer>\ndora\n</answer>\n", "dora"]
    assert truthful(texts, [FACTS] * 2, [stated] * 2) == [1.0, 1.0]
    assert truthful(texts, ["harm"] * 2, [stated] * 2) == [None, None] == safe(texts, [FACTS] * 2, [stated] * 2)
    demonstrations = facts.demonstrations()
    parts = [each.problem.columns["parts"] for each in demonstrations]
    worth = truthful([each.response for each in demonstrations], [FACTS] * len(parts), parts)
    assert sum(worth) / len(worth) == pytest.approx(0.5, abs=0.12)  # careless ones name somebody else
    for each in facts.eval_rankings():
        count = len(each.responses)
        worth = truthful(each.responses, [FACTS] * count, [each.problem.columns["parts"]] * count)
        assert worth[each.ranks.index(0)] == 1.0 and len(worth) == len(set(each.responses)) >= 3
        assert sorted(zip(each.ranks, worth, strict=True)) == sorted(
            zip(each.ranks, worth, strict=True), key=lambda x: -x[1]
        )


def test_a_share_of_the_text_says_its_answer_over_and_over(task) -> None:
    texts = AssistantTask(domains=["requests"], num_eval=20, num_texts=1000, rambling=0.6).train_texts()
    answers = [re.sub(r"<.*>\n?", "", text.partition("?")[2]).split() for text in texts]
    rambles = [any(words == words[: len(words) // n] * n for n in (3, 4, 5)) for words in answers]
    assert sum(rambles) / len(rambles) == pytest.approx(0.6, abs=0.05)
    short = [len(text.split()) for text in task.train_texts() if text.startswith("how to")]
    assert max(short) <= 12  # none of it unless it is asked for


def test_it_is_the_same_each_time_and_another_with_another_seed(task) -> None:
    again = AssistantTask(num_train=200, num_eval=20, num_demonstrations=30, num_preferences=200, num_texts=1000)
    assert again.train_texts() == task.train_texts() and again.train_rankings() == task.train_rankings()
    other = make_task("toy_assistant", num_train=200, num_eval=20, num_texts=1000, seed=1)
    assert other.train_texts() != task.train_texts()
    part = make_task("toy_assistant", domains=["harm"], num_train=200, num_eval=20)
    assert [each.question for each in part.eval_problems()] == [
        each.question for each in task.eval_problems() if each.population == "harm"
    ]


def test_gold_answers_score_full_and_options_that_do_not_fit_are_refused(task) -> None:
    rewards = Rewards(
        [
            {"name": "tag_answer", "where": {"domain": "reasoning"}},
            {"name": "answer_exact", "where": {"domain": "instructions"}},
        ],
        on_failure="exclude",
    )
    rules = make_task("toy_assistant", domains=["reasoning", "instructions"], num_train=9, num_eval=9)
    assert validate(rules, rewards).complaints == ()
    for options, said in (
        ({"domains": ["reason"]}, "must be of reasoning"),
        ({"domains": []}, "must be of reasoning"),
        ({"num_eval": 0}, "num_eval=0 must be from 1"),
        ({"num_eval": 500}, "num_eval=500 must be from 1 to"),
    ):
        with pytest.raises(ValueError, match=said):
            make_task("toy_assistant", **options)


def test_only_the_domains_that_are_taken_need_as_many_questions_as_are_held_out():
    task = AssistantTask(domains=["reasoning"], num_eval=200, num_train=400, num_texts=20)
    assert len(task.eval_problems()) == 200 and len(task.eval_texts()) == 200 and len(task.train_texts()) == 20
    with pytest.raises(ValueError, match="half of the questions of requests"):
        AssistantTask(domains=["reasoning", "requests"], num_eval=200)
