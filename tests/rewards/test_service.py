"""Rewards in worker processes: what each fault does, and that nothing outlives or blocks the run."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rewards.building import group
from rewards.faults import HARMLESS, REASONS, SECONDS, SOURCE, value

from outscore.records import Score, ScoringFailure
from outscore.rewards import RewardError, Rewards, pool

pytestmark = pytest.mark.skipif(os.name != "posix", reason="worker processes need Linux or macOS")

LIMITS = {"seconds": SECONDS, "batch_seconds": 1.5 * SECONDS, "memory_gb": 1}


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Rewards]]:
    monkeypatch.setattr("sys.path", [*sys.path])
    (tmp_path / "faulty.py").write_text(SOURCE)
    made: list[Rewards] = []

    def rewards(name: str = "faulty", *, policy="exclude", source: str = "", **spec) -> Rewards:
        if source:
            (tmp_path / "own.py").write_text(source)
        named = {"name": f"{'own' if source else 'faulty'}.py:{name}", **spec}
        made.append(Rewards([named], on_failure=policy, folder=tmp_path, scoring=LIMITS))
        return made[-1]

    yield rewards
    for each in made:
        each.close()


def scores(rewards: Rewards, *texts: str):
    [scored] = rewards.score([group(*texts)], step=1).groups
    return scored.scores


@pytest.mark.parametrize("name", ["faulty", "faulty_async"])
def test_every_fault_fails_its_own_completion_and_no_other(make, name):
    """One completion at a time: the healthy ones between the faults are scored by workers that replace others."""
    kinds = [*REASONS, *HARMLESS, "unpicklable"]
    texts = [text for kind in kinds for text in (kind, f"healthy {kind}")]
    rewards = make(name, batched=False)
    for text, score in zip(texts, scores(rewards, *texts), strict=True):
        if text == "unpicklable":
            assert isinstance(score, ScoringFailure) and "returned function" in score.reason
        elif text in REASONS:
            assert score == ScoringFailure(reward_name=name, reason=REASONS[text])
        else:
            assert score == Score(reward=value(text), parts={name: value(text)})
    replaced = [notice for notice in rewards.notices if "its worker is replaced after" in notice]
    assert any("segmentation fault" in notice.lower() and "SIGSEGV" in notice for notice in replaced)


@pytest.mark.parametrize("kind", ["raise", "os_exit", "wrong_length", "nan", "loop"])
def test_in_a_batch_a_fault_fails_its_own_completion_and_the_rest_are_scored_together(make, kind):
    rewards = make("faulty")
    first, bad, last = scores(rewards, "a", kind, "bc")
    assert bad == ScoringFailure(reward_name="faulty", reason=REASONS[kind])
    assert [first.reward, last.reward] == [value("a"), value("bc")]
    assert rewards.notices[0] == "reward 'faulty' runs in a worker process (2 s a completion, 1 GiB)"
    [said] = [notice for notice in rewards.notices if notice.startswith("step 1: ")]
    assert f"failed on 1 of 3 completions: {REASONS[kind]} (1); " in said and said.endswith(" s lost")


def test_to_stop_names_the_completion_and_a_constant_counts_and_is_told(make):
    with pytest.raises(RewardError, match=r"by SIGSEGV \(problem 'p/1', completion 2 of 2\)"):
        scores(make(policy="stop", batched=False), "a", "segfault")
    rewards = make(batched=False, on_failure=-1)
    result = rewards.score([group("a", "raise")], step=1)
    assert result.groups[0].scores[1] == Score(
        reward=-1.0, parts={"faulty": -1.0}, failures={"faulty": REASONS["raise"]}
    )
    assert result.metrics["scoring_failures/faulty"] == (1.0, 2.0)
    assert result.metrics["reward/faulty"] == (value("a"), 1.0)  # the mean of what was really judged


def test_a_reward_that_compares_completions_sees_the_batch_without_those_that_fail(make):
    source = """
import os
def rank(completions, log_extra, log_metric, trainer_state, **columns):
    if "bad" in completions:
        os._exit(1)
    log_extra("seen", [len(completions)] * len(completions))
    log_metric("step", trainer_state.global_step)
    return [sorted(completions).index(text) for text in completions]
"""
    result = make("rank", source=source).score([group("b", "bad", "a"), group("c", id="p/2", slot=1)], step=5)
    first, failed, third = result.groups[0].scores
    assert isinstance(failed, ScoringFailure)
    assert [first.reward, third.reward, result.groups[1].scores[0].reward] == [1.0, 0.0, 2.0]
    assert result.extra_columns == {"seen": [3, None, 3, 3]}
    assert result.metrics["step"] == (5.0, 1.0)


def test_a_completion_s_call_is_made_again_as_often_as_declared(make, tmp_path):
    source = f"""
import pathlib
def flaky(completions, **columns):
    tries = pathlib.Path({str(tmp_path)!r}, completions[0])
    tries.write_text((tries.read_text() if tries.exists() else "") + "x")
    if len(tries.read_text()) < int(completions[0]):
        raise ConnectionError("try again")
    return [1.0]
"""
    for spec in ({}, {"isolate": False}):
        for count in "123":
            (tmp_path / count).unlink(missing_ok=True)
        found = scores(make("flaky", source=source, batched=False, limits={"retries": 1}, **spec), "1", "2", "3")
        assert [getattr(score, "reward", None) for score in found] == [1.0, 1.0, None]
        assert [len((tmp_path / count).read_text()) for count in "123"] == [1, 2, 2]


def test_an_exception_that_a_worker_gives_in_the_place_of_a_value_fails_that_completion_alone(make):
    source = """
def some(completions):
    return [ValueError("odd") if len(text) % 2 else float(len(completions)) for text in completions]
"""
    even, odd = scores(make("some", source=source), "aa", "b")
    assert even.reward == 2.0
    assert odd == ScoringFailure(reward_name="some", reason="failed with ValueError: odd")


def test_seconds_lost_count_retries_that_succeed_and_the_wait_for_a_new_worker(make, tmp_path):
    source = f"""
import os, pathlib, time
def flaky(completions, **columns):
    tries = pathlib.Path({str(tmp_path)!r}, completions[0])
    if not tries.exists():
        tries.touch()
        time.sleep(0.2)
        os._exit(3) if completions[0] == "dies" else 1 / 0
    return [1.0]
"""
    for text in ("raises", "dies"):
        rewards = make("flaky", source=source, limits={"retries": 1})
        begun = time.perf_counter()
        [scored] = scores(rewards, text)
        took = time.perf_counter() - begun
        assert scored.reward == 1.0
        [said] = [notice for notice in rewards.notices if "was called again" in notice]
        lost = float(said.removesuffix(" s lost").rpartition(" ")[2])
        least = 0.2 + 0.1 + (0.1 if text == "dies" else 0.0)  # the try, the pause, and a new process
        assert said.startswith("step 1: reward 'flaky' failed") and least <= lost + 0.05 and lost <= took + 0.05


def test_an_asynchronous_call_that_never_ends_delays_none_beside_it(make):
    rewards = make("faulty_async", batched=False)
    hung, healthy = scores(rewards, "async_sleep", "a")
    assert hung == ScoringFailure(reward_name="faulty_async", reason=REASONS["sleep"])
    assert healthy.reward == value("a")
    assert not any("replaced" in notice for notice in rewards.notices)  # it is cancelled, not killed


def test_a_reward_that_forks_and_comes_back_twice_is_heard_once(make):
    source = """
import os
def forked(completions, **columns):
    if "a" in completions:
        os.fork()
    return [float(len(text)) for text in completions]
"""
    rewards = make("forked", source=source)
    steps = [("a", "bb"), ("ccc", "dddd"), ("eeeee", "ffffff")]
    assert [[score.reward for score in scores(rewards, *texts)] for texts in steps] == [[1, 2], [3, 4], [5, 6]]


def test_a_worker_that_answers_nonsense_is_a_failure_and_is_replaced(make):
    source = """
import os, socket, struct
def nonsense(completions, **columns):
    for number in range(3, 64):
        try:
            channel = socket.socket(fileno=os.dup(number))
            channel.sendall(struct.pack("!Q", 3) + completions[0].encode()[:3])
        except OSError:
            continue
    return [1.0]
"""
    for text in ("###", "[1]", "{} "):
        rewards = make("nonsense", source=source, batched=False)
        [score] = scores(rewards, text)
        assert isinstance(score, ScoringFailure) and f"has its worker process answer b'{text}'" in score.reason
        assert len(scores(rewards, text)) == 1  # and the next worker is asked as this one was


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_memory_that_no_limit_of_the_process_counts_is_counted(make):
    source = """
import mmap
def hoard(completions, **columns):
    held = mmap.mmap(-1, 1 << 31)
    for place in range(0, len(held), 4096):
        held[place] = 1
    return [1.0] * len(completions)
"""
    [score] = scores(make("hoard", source=source, batched=False, limits={"seconds": 60}), "a")
    assert isinstance(score, ScoringFailure) and score.reason.startswith("shares 1.")


def test_a_crash_is_told_with_the_line_of_the_reward_that_it_was_in(make):
    source = "import ctypes\ndef crashes(completions):\n    return ctypes.string_at(0)\n"
    rewards = make("crashes", source=source, batched=False)
    scores(rewards, "a")
    [said] = [notice for notice in rewards.notices if "its worker is replaced" in notice]
    assert (
        "Segmentation fault" in said and "Current thread" in said and "own.py" in said and "line 3 in crashes" in said
    )


def test_the_worker_keeps_what_a_reward_keeps_between_calls(make):
    source = "calls = []\ndef count(completions):\n    calls.append(1)\n    return [len(calls)] * len(completions)\n"
    rewards = make("count", source=source)
    assert [scores(rewards, "a")[0].reward for _ in range(3)] == [1.0, 2.0, 3.0]


def test_a_reward_is_not_run_here_where_its_worker_cannot_load_it(make):
    source = "import os\nif os.environ.get('AT_HOME') != str(os.getpid()):\n    raise RuntimeError('not at home')\n"
    os.environ["AT_HOME"] = str(os.getpid())
    try:
        rewards = make("f", source=source + "def f(completions):\n    return [1.0] * len(completions)\n")
    finally:
        del os.environ["AT_HOME"]
    with pytest.raises(ValueError, match=r"'f' cannot be loaded in a worker process: raised ValueError.*not at home"):
        scores(rewards, "a")


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ({"limits": {"secnods": 1}}, r"'faulty': limits\.secnods = 1 is not known; did you mean `seconds`"),
        ({"limits": {"seconds": 0}}, r"'faulty': limits\.seconds = 0 must be greater than 0"),
        ({"limits": 3}, r"'faulty': limits = 3 must be a mapping"),
        ({"isolate": "yes"}, r"'faulty': isolate = 'yes' must be true or false"),
        ({"batched": 0}, r"'faulty': batched = 0 must be true or false"),
        ({"on_failure": "ignore"}, r"'faulty': on_failure = 'ignore' must be `stop`, `exclude`, or a finite number"),
        ({"on_failure": float("nan")}, r"'faulty': on_failure = nan must be `stop`, `exclude`, or a finite number"),
    ],
)
def test_what_is_wrong_about_how_a_reward_runs_is_named(make, spec, complaint):
    with pytest.raises(ValueError, match=complaint):
        make(**spec)


PARENT = """
import sys, threading, time
from outscore.records import Completion, Problem, Prompt, SampledCompletion, SampledGroup
from outscore.rewards import Rewards

def group(text):
    completion = Completion(token_ids=(1,), text=text, counts=(True,))
    drawn = SampledCompletion(completion=completion, sampler_logprobs=(0.0,), finish="stop", policy_version=0)
    problem = Problem(id="p", question="q", answer=None, columns={})
    prompt = Prompt(problem=problem, text="q", token_ids=(1,))
    return SampledGroup(prompt=prompt, completions=(drawn,), slot=0, attempt=0)

if __name__ == "__main__":
    rewards = Rewards(["stuck.py:stuck"], scoring={"seconds": 600})
    rewards.score([group(sys.argv[1])], step=1)
"""
STUCK = """
import os, pathlib, re

def stuck(completions):
    pathlib.Path("pid.new").write_text(str(os.getpid()))
    os.rename("pid.new", "pid")
    if completions == ["forever"]:
        re.match("(a+)+$", "a" * 64 + "b")  # holds the interpreter's lock until the end of days
    return [1.0]
"""


def until(happened: Callable[[], object], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether it runs; one that has ended and that nobody has waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_worker_stuck_in_c_code_ends_with_its_parent_and_not_by_its_ctrl_c(tmp_path, number):
    (tmp_path / "parent.py").write_text(PARENT)
    (tmp_path / "stuck.py").write_text(STUCK)
    command = [sys.executable, "parent.py", "forever"]
    parent = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, start_new_session=True)
    worker = None
    try:
        until((tmp_path / "pid").exists)
        worker = int((tmp_path / "pid").read_text())
        assert os.getsid(worker) == worker != os.getsid(parent.pid)  # Ctrl-C reaches the terminal's session only
        os.killpg(parent.pid, number)
        parent.communicate(timeout=120)
        until(lambda: not is_alive(worker))
    finally:
        for pid in (parent.pid, worker):
            if pid is not None and is_alive(pid):
                os.kill(pid, signal.SIGKILL)
        parent.communicate()


def test_workers_end_when_the_rewards_are_let_go_of(make, tmp_path):
    (tmp_path / "stuck.py").write_text(STUCK)
    source = STUCK.replace('"pid', f'"{tmp_path}/pid')
    rewards = make("stuck", source=source)
    scores(rewards, "a")
    worker = int((tmp_path / "pid").read_text())
    assert is_alive(worker)
    rewards.close()
    assert not is_alive(worker)
    assert scores(rewards, "a")[0].reward == 1.0  # it begins again
    rewards.close()


def test_a_worker_that_cannot_be_started_again_at_once_is_started_later(make, monkeypatch):
    """The machine has no room for a process when the fault's worker is replaced: the run waits, and goes on."""
    rewards = make(batched=False, limits={"workers": 1})
    assert scores(rewards, "a")[0].reward == value("a")
    refusals = iter([OSError("no room"), OSError("no room")])
    real = pool.WorkerProcess

    def start(*arguments, **named):
        for refusal in refusals:
            raise refusal
        return real(*arguments, **named)

    monkeypatch.setattr(pool, "WorkerProcess", start)
    bad, after = scores(rewards, "os_exit", "bc")
    assert bad == ScoringFailure(reward_name="faulty", reason=REASONS["os_exit"]) and after.reward == value("bc")
    assert next(refusals, None) is None
