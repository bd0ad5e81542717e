"""math-verify answers: equivalence, work in any thread, and a guard that holds."""

import importlib.util
import threading

import pytest
from rewards.building import group

from outscore.rewards import Rewards, make_reward

pytest.importorskip("math_verify")

PAIRS = [
    ("1/2", r"\boxed{\frac{2}{4}}", 1.0),
    ("1/2", "so it is 0.5", 1.0),
    (r"\frac{1}{2}", r"$\frac12$", 1.0),
    ("82", "it is 7 and then <answer>\n82\n</answer>\n", 1.0),
    ("7", r"first $8$ then \boxed{7}", 1.0),
    ("x+1", "$1+x$", 1.0),
    ("7", "8", 0.0),
    ("7", "", 0.0),
    ("???", "8", None),
    (None, "8", None),
]


@pytest.fixture(scope="module")
def rewards():
    spec = {"name": "math_verify", "seconds": 120}  # a busy machine is no fault of the answer
    return Rewards([spec], on_failure="exclude")


def parts(rewards, gold, *texts):
    [scored] = rewards.score([group(*texts, answer=gold)], step=1).groups
    return [getattr(score, "parts", {"math_verify": None})["math_verify"] for score in scored.scores]


@pytest.mark.parametrize(("gold", "text", "expected"), PAIRS)
def test_equivalent_answers_score_and_others_do_not(rewards, gold, text, expected):
    assert parts(rewards, gold, text) == [expected]


def test_it_works_off_the_main_thread(rewards):
    found: list[list[float | None]] = []
    threads = [threading.Thread(target=lambda: found.append(parts(rewards, "0.5", "1/2", "1/3"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[1.0, 0.0]] * 3


def test_an_answer_that_takes_too_long_counts_as_0_and_is_a_failure_and_the_next_one_is_judged():
    """One worker: what is judged after the answer that hangs is judged by the worker that replaces it."""
    quick = Rewards([{"name": "math_verify", "seconds": 3, "limits": {"workers": 1}}])
    result = quick.score([group("$9^{9^{9^{9}}}$", "3", answer="3")], step=1)
    hung, judged = result.groups[0].scores
    assert (hung.reward, judged.reward) == (0.0, 1.0)
    assert hung.failures == {"math_verify": "took longer than 3 s"}
    assert result.metrics["scoring_failures/math_verify"] == (1.0, 2.0)
    assert quick.notices[-1].startswith("step 1: reward 'math_verify' failed on 1 of 2 completions: took longer")
    quick.close()


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"outscore\[math\]"):
        make_reward("math_verify")
