"""The judge, played by a server on this machine that answers from a script."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from rewards.building import group
from rewards.models import CHARACTERS, saying
from transformers import AutoModelForCausalLM, AutoTokenizer

from outscore.model.tiny import tiny_model
from outscore.records import ScoringFailure
from outscore.rewards import RewardError, Rewards, endpoint, make_reward
from outscore.rewards.endpoint import Budget
from outscore.rewards.judge_models import LocalModel
from outscore.rewards.llm_judge import read_label, read_verdict


class Judge:
    """What it was asked, and what it answers: `answer(question, number of the call)` gives text, or (status, text)."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = []
        self.headers = []
        self.url = ""


@contextmanager
def scripted(answer):
    judge = Judge(answer)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                judge.asked.append(body)
                judge.headers.append(dict(self.headers))
                said = judge.answer(body["messages"][-1]["content"], len(judge.asked))
            status, text = said if isinstance(said, tuple) else (200, said)
            usage = {"total_tokens": 10}
            reply = {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage}
            data = text.encode() if isinstance(said, tuple) else json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    judge.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def _no_waiting_and_no_proxy(monkeypatch):
    monkeypatch.setattr(endpoint, "_sleep", lambda seconds: None)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def right_if_277(question, _):
    response = question.partition("<response>")[2]
    return json.dumps({"analysis": "…", "correctness": "correct" if "277" in response else "incorrect"})


def spec(judge, **options):
    return {"name": "llm_judge", "url": judge.url, "model": "scripted", **options}


def judged(judge, *texts, on_failure="stop", columns=None, **options):
    rewards = Rewards([spec(judge, **options)], on_failure=on_failure)
    return rewards.score([group(*texts, columns=columns)], step=1)


def parts(result):
    return [score.parts["llm_judge"] for group in result.groups for score in group.scores]


def test_a_verdict_is_one_or_zero_in_order():
    with scripted(right_if_277) as judge:
        assert parts(judged(judge, "277", "305", "so 277", concurrency=3)) == [1.0, 0.0, 1.0]
    first = judge.asked[0]
    assert first["model"] == "scripted" and first["temperature"] == 0
    question = first["messages"][0]["content"]
    assert "325-28-20=" in question and "<reference_answer>\n277\n" in question


def test_without_a_gold_answer_the_judge_sees_none():
    with scripted(right_if_277) as judge:
        Rewards([spec(judge)]).score([group("277", answer=None)], step=1)
    assert "reference" not in judge.asked[0]["messages"][0]["content"]


REPLIES = {
    '{"analysis": "a", "correctness": "correct"}': 1.0,
    '```json\n{"analysis": "a {b}", "correctness": "Incorrect"}\n```': 0.0,
    'I think {so}. {"correctness": true}': 1.0,
    '{"analysis": "{\\"correctness\\": \\"correct\\"}", "correctness": "incorrect"}': 0.0,
    '{"correctness": "perhaps"}': None,
    '{"analysis": "correct"}': None,
    "correct": None,
    "{" * 50: None,
    "": None,
}


@pytest.mark.parametrize("text", REPLIES)
def test_verdicts_are_read_from_replies(text):
    assert read_verdict(text) == REPLIES[text]


LABELS = {
    "[[A>>B]]": 1.0,
    "so [[A≫B]]": 1.0,
    "[[A>B]]": 0.75,
    "first [[A>B]], no: [[A=B]]": 0.5,
    "[[B>A]]": 0.25,
    "[[B >> A]]": 0.0,
    "A>B": None,
    "": None,
}


@pytest.mark.parametrize("text", LABELS)
def test_labels_are_read_from_replies(text):
    assert read_label(text) == LABELS[text]


def better_if_longer(question, _):
    a = question.partition("<response_a>\n")[2].partition("\n</response_a>")[0]
    b = question.partition("<response_b>\n")[2].partition("\n</response_b>")[0]
    return "[[A>>B]]" if len(a) > len(b) else "[[B>>A]]" if len(b) > len(a) else "[[A=B]]"


def test_a_comparison_is_made_in_both_orders():
    with scripted(better_if_longer) as judge:
        found = judged(judge, "longer text", "x", "four", columns={"reference": "four"}, mode="pairwise")
    assert parts(found) == [1.0, 0.0, 0.5]
    assert len(judge.asked) == 5  # for equals both orders are one question


def test_a_judge_that_prefers_what_stands_first_says_nothing():
    with scripted(lambda *_: "[[A>>B]]") as judge:
        found = judged(judge, "good", "bad", columns={"reference": "good"}, mode="pairwise")
    assert parts(found) == [0.5, 0.5]


def test_a_row_without_a_reference_does_not_apply():
    with scripted(better_if_longer) as judge:
        rewards = Rewards([spec(judge, mode="pairwise"), "last_number"])
        result = rewards.score([group("277", columns={"reference": None})], step=1)
    assert parts(result) == [None] and judge.asked == []


def test_only_the_final_part_is_shown_if_asked():
    with scripted(right_if_277) as judge:
        assert parts(judged(judge, "<think>277</think> 305", part="final")) == [0.0]
        assert parts(judged(judge, "<think>277</think> 305")) == [1.0]


def test_equal_questions_are_asked_once_and_a_cache_outlives_the_process(tmp_path):
    with scripted(right_if_277) as judge:
        kept = {"cache": str(tmp_path / "judge")}
        first = judged(judge, "277", "277", "305", **kept)
        again = judged(judge, "277", "305", **kept)  # another endpoint: what it knows comes from the disk
    assert len(judge.asked) == 2
    assert parts(first) == [1.0, 1.0, 0.0] and parts(again) == [1.0, 0.0]
    assert first.logged["llm_judge/cached"] == (1.0, 3.0) and first.logged["llm_judge/tokens"] == (20.0, 3.0)
    assert again.logged["llm_judge/cached"] == (2.0, 2.0) and again.logged["llm_judge/tokens"] == (0.0, 2.0)
    assert not list((tmp_path / "judge").glob("*.tmp"))


@pytest.mark.parametrize("status", [429, 500, 503])
def test_failures_that_may_pass_are_tried_again(status):
    with scripted(lambda q, n: (status, "busy") if n < 3 else right_if_277(q, n)) as judge:
        assert parts(judged(judge, "277", retries=2)) == [1.0]
    assert len(judge.asked) == 3


def test_waiting_grows_and_follows_the_endpoint_s_word(monkeypatch):
    waited = []
    monkeypatch.setattr(endpoint, "_sleep", waited.append)
    with scripted(lambda q, n: (503, "busy") if n < 4 else right_if_277(q, n)) as judge:
        judged(judge, "277", retries=3)
    assert waited == [1.0, 2.0, 4.0]


def test_what_will_not_pass_is_not_tried_again_and_stops_the_run():
    with (
        scripted(lambda *_: (401, "no such key")) as judge,
        pytest.raises(RewardError, match=r"refuses: 401 .*no such key"),
    ):
        judged(judge, "277")
    assert len(judge.asked) == 1


def test_a_judge_that_is_not_there_is_a_failure_and_no_zero():
    with scripted(right_if_277) as judge:
        pass
    result = judged(judge, "277", on_failure="exclude", retries=1)
    [score] = result.groups[0].scores
    assert isinstance(score, ScoringFailure) and "did not answer, asked 2 times" in score.reason


def test_a_judge_that_goes_away_fails_what_it_was_not_asked_and_what_it_said_stands():
    with scripted(lambda q, n: right_if_277(q, n) if "305" not in q else (500, "poison")) as judge:
        result = judged(judge, "277", "305", "277 or so", on_failure="exclude", retries=1, concurrency=1)
    first, failed, last = result.groups[0].scores
    assert [first.reward, last.reward] == [1.0, 1.0] and isinstance(failed, ScoringFailure)
    assert len(judge.asked) == 4  # one, two for what it cannot answer, one: nothing is asked again


def test_a_judge_that_is_down_is_waited_for_once_and_not_for_every_question(monkeypatch):
    waited = []
    monkeypatch.setattr(endpoint, "_sleep", waited.append)
    with scripted(lambda *_: (503, "down")) as judge:
        texts = [f"answer {n}" for n in range(40)]
        result = judged(judge, *texts, on_failure="exclude", retries=3, concurrency=4)
    assert all(isinstance(score, ScoringFailure) for score in result.groups[0].scores)
    # Those that are asked at the same time wait; of the others as many are asked once, and the rest is not.
    assert len(waited) <= 4 * 3 and len(judge.asked) <= 4 * 4 + 4 + 3
    reasons = [score.reason for score in result.groups[0].scores]
    assert sum("was not asked: it did not answer" in reason for reason in reasons) >= 40 - 8 - 3


def test_a_reply_without_a_verdict_is_asked_again_once():
    with scripted(lambda q, n: "hm" if n == 1 else right_if_277(q, n)) as judge:
        assert parts(judged(judge, "277")) == [1.0]
    with (
        scripted(lambda *_: "hm") as judge,
        pytest.raises(RewardError, match="no verdict, asked 2 times; at last 'hm'"),
    ):
        judged(judge, "277")


def test_what_is_no_chat_completion_is_named():
    with scripted(lambda *_: (200, '{"choices": []}')) as judge, pytest.raises(RewardError, match="no chat completion"):
        judged(judge, "277")


def test_a_budget_of_calls_ends_the_spending():
    with scripted(right_if_277) as judge, pytest.raises(RewardError, match="budget is spent: max_calls = 2"):
        judged(judge, "277", "305", "3", max_calls=2, concurrency=1)
    assert len(judge.asked) == 2


def test_a_budget_of_tokens_ends_the_spending():
    with scripted(right_if_277) as judge, pytest.raises(RewardError, match="budget is spent: max_tokens = 15, used 20"):
        judged(judge, "277", "305", "3", max_tokens=15, concurrency=1)


def test_the_key_is_sent_if_there_is_one(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "abc")
    with scripted(right_if_277) as judge:
        judged(judge, "277", api_key_env="JUDGE_KEY")
        judged(judge, "277", api_key_env="NO_SUCH_KEY")
    assert [each.get("Authorization") for each in judge.headers] == ["Bearer abc", None]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"url": "localhost:8000"}, "url = 'localhost:8000' must begin with http"),
        ({"concurrency": 0}, "concurrency = 0 must be 1 or more"),
        ({"mode": "both"}, "mode = 'both' must be 'verdict' or 'pairwise'"),
        ({"path": "models/judge"}, "url and model of an endpoint, or the path of a model, and not both"),
        ({"url": ""}, "url and model of an endpoint, or the path"),
        ({"model": ""}, "url and model of an endpoint"),
    ],
)
def test_impossible_options_are_named(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        make_reward({"name": "llm_judge", "url": "http://localhost", "model": "m", **options})


VERDICT = '{"analysis": "yes", "correctness": "correct"}'


def test_a_model_on_this_machine_is_asked_as_an_endpoint_is(tmp_path):
    judge = {"name": "llm_judge", "path": str(saying(VERDICT, tmp_path / "judge")), "max_new_tokens": 4}
    result = Rewards([judge]).score([group("277", "305", "277")], step=1)
    assert parts(result) == [1.0, 1.0, 1.0]
    assert result.logged["llm_judge/cached"] == (1.0, 3.0)  # equal questions are asked once
    worse = {**judge, "path": str(saying("so [[B>>A]]", tmp_path / "second")), "mode": "pairwise"}
    result = Rewards([worse]).score([group("277", columns={"reference": "x"})], step=1)
    assert parts(result) == [0.5]  # it prefers what stands second, in both orders


def test_its_answers_are_the_model_s_own_greedy_ones(tmp_path):
    folder = saved_judge(tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    questions = [[{"role": "user", "content": text}] for text in ("Is it so?", "And 2+2=4?", "Is it so?")]
    asked = LocalModel(str(folder), max_new_tokens=12, budget=Budget()).ask_all(questions)
    for question, reply in zip(questions, asked, strict=True):
        ids = torch.tensor([tokenizer(question[0]["content"], add_special_tokens=False)["input_ids"]])
        mask = torch.ones_like(ids)
        written = model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0)
        assert reply.text == tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
        assert reply.num_tokens in (0, written.shape[1])


def saved_judge(folder):
    model, tokenizer = tiny_model(CHARACTERS, (), 0, hidden_size=16, num_layers=1, num_heads=2)
    model.save_pretrained(folder / "random")
    tokenizer.save_pretrained(folder / "random")
    return folder / "random"


def test_a_local_judge_without_a_verdict_is_a_failure_and_no_zero(tmp_path):
    judge = {"name": "llm_judge", "path": str(saying("perhaps", tmp_path / "judge")), "max_new_tokens": 4}
    [score] = Rewards([judge], on_failure="exclude").score([group("277")], step=1).groups[0].scores
    assert isinstance(score, ScoringFailure) and "no verdict, asked 2 times; at last 'perhaps'" in score.reason


def test_a_local_judge_has_a_budget_and_a_cache_too(tmp_path, monkeypatch):
    path, cache = str(saying(VERDICT, tmp_path / "judge")), str(tmp_path / "cache")
    judge = {"name": "llm_judge", "path": path, "max_new_tokens": 4, "cache": cache, "max_calls": 1}
    with pytest.raises(RewardError, match="budget is spent: max_calls = 1"):
        Rewards([judge]).score([group("277", "305")], step=1)
    again = Rewards([judge]).score([group("277")], step=1)
    assert parts(again) == [1.0] and again.logged["llm_judge/tokens"] == (0.0, 1.0)


def test_a_question_that_the_judge_cannot_hold_is_a_failure(tmp_path):
    judge = {"name": "llm_judge", "path": str(saved_judge(tmp_path)), "max_new_tokens": 500}
    with pytest.raises(RewardError, match=r"holds 512 tokens, and a question of .* leaves no room for 500 more"):
        Rewards([judge]).score([group("277")], step=1)
