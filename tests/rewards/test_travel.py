"""Which functions of a script run as a copy in another process, and which stay because a copy would not be them."""

import functools
import math
import os
import re
import sys
import types
from collections.abc import Sequence
from fractions import Fraction
from re import search

import pytest
from rewards.building import group

from outscore.rewards import Rewards
from outscore.rewards.contract import Reward
from outscore.rewards.travel import CannotTravel, parcel_of, shared_state

pytestmark = pytest.mark.skipif(os.name != "posix", reason="worker processes need Linux or macOS")

PATTERN = re.compile("a")
TABLE = {"a": 1.0}
UNITS = (1, "b", Fraction(1, 3))


def helper(text):
    return float(bool(search("a", text))) + math.floor(0.5) + len(UNITS) * 0


def constant(completions: Sequence[str], **_):
    return [helper(PATTERN.pattern + text) for text in completions]


def table(completions):
    return [sum(TABLE[letter] for letter in text) for text in completions]


def through_another(completions):
    return table(completions)


class Object:
    def __call__(self, completions):
        return [1.0]


def closing(thing):
    def function(completions, scale=thing):
        return [float(bool(thing)) for _ in completions]

    return function


@pytest.mark.parametrize(
    ("function", "state"),
    [
        (constant, None),
        (lambda completions: [1.0], None),
        (closing(2.0), None),
        (closing(helper), None),
        (functools.partial(constant, scale=2.0), None),
        (len, None),
        (math.fsum, None),
        (table, "TABLE (dict)"),
        (through_another, "TABLE (dict)"),
        (closing([]), "thing (list)"),
        (closing(Object()), "thing (Object)"),
        (functools.partial(constant, scale=[]), "an argument of partial (list)"),
        (Object(), "itself (Object)"),
        (Object().__call__, "itself (method)"),
    ],
)
def test_a_function_that_holds_what_can_change_is_told_by_what_it_holds(function, state):
    assert shared_state(function) == state


def run(rewards: Rewards) -> list[float]:
    [scored] = rewards.score([group("a", "b")], step=1).groups
    rewards.close()
    return [score.reward for score in scored.scores]


def test_a_function_of_the_script_runs_as_a_copy_and_says_so():
    def mine(completions):
        import os

        return [float(os.getpid())] * len(completions)

    rewards = Rewards([mine], scoring={})
    assert set(run(rewards)) != {float(os.getpid())}
    [said] = rewards.notices
    assert said == (
        "reward 'mine' runs as a copy in a worker process (10 s a completion, 4 GiB); `isolate: false` runs it here"
    )


@pytest.mark.parametrize("how", ["nothing said", "scoring", "the reward", "it holds a list"])
def test_and_in_this_process_where_that_is_said_or_where_it_holds_what_can_change(how):
    seen = []

    def mine(completions):
        seen.append(len(completions)) if how == "it holds a list" else None
        return [float(os.getpid())] * len(completions)

    def plain(completions):
        return [float(os.getpid())] * len(completions)

    function = mine if how == "it holds a list" else plain
    spec = {"name": function, "isolate": False} if how == "the reward" else function
    scoring = {"nothing said": None, "scoring": {"isolate": False}}.get(how, {})
    rewards = Rewards([spec], scoring=scoring)
    assert run(rewards) == [float(os.getpid())] * 2
    if how == "it holds a list":
        assert seen == [2]
        assert (
            "'mine' runs in this process, where nothing guards the run against it: it holds seen (list)"
            in (rewards.notices[0])
        )
    else:
        assert rewards.notices == ()


def test_a_copy_is_made_of_an_object_with_state_that_is_told_to_go():
    class Scale:
        factor = 3.0

        def __call__(self, completions):
            return [self.factor * len(text) for text in completions]

    assert run(Rewards([{"name": Scale(), "isolate": True}])) == [3.0, 3.0]


def test_a_function_of_a_module_that_cannot_be_imported_again_is_copied():
    module = types.ModuleType("made_by_hand")
    exec("FACTOR = 2.0\ndef mine(completions):\n    return [FACTOR * len(text) for text in completions]", vars(module))
    sys.modules["made_by_hand"] = module
    try:
        rewards = Rewards([module.mine], scoring={})
    finally:
        del sys.modules["made_by_hand"]
    assert run(rewards) == [2.0, 2.0]


def test_what_cannot_be_pickled_stays_and_says_why():
    lock = __import__("threading").Lock()

    def mine(completions):
        with lock:
            return [1.0] * len(completions)

    with pytest.raises(CannotTravel, match="TypeError"):
        parcel_of(Reward(name="mine", function=mine))
    rewards = Rewards([{"name": mine, "isolate": True}])
    assert run(rewards) == [1.0, 1.0]
    assert "'mine' runs in this process" in rewards.notices[0] and "cannot be sent" in rewards.notices[0]


def test_built_in_rules_stay_in_this_process_unless_they_are_told_to_go():
    for spec, isolated in (("last_number", False), ({"name": "last_number", "isolate": True}, True)):
        rewards = Rewards([spec], scoring={})
        [scored] = rewards.score([group("277", "3")], step=1).groups
        assert [score.reward for score in scored.scores] == [1.0, 0.0]
        assert hasattr(rewards._runners["last_number"], "pool") is isolated
        rewards.close()


def test_a_data_column_that_cannot_be_sent_is_named_as_the_reason():
    columns = {"lock": __import__("threading").Lock()}
    rewards = Rewards([{"name": "last_number", "isolate": True}])
    with pytest.raises(ValueError, match=r"'last_number': a data column cannot be sent to its worker.*isolate: false"):
        rewards.score([group("a", columns=columns)], step=1)
    rewards.close()
