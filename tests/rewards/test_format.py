"""Tags with partial credit, and JSON, on hand-made texts."""

import json

import pytest
from rewards.building import group, scores

from outscore.rewards import Rewards, make_reward
from outscore.rewards.format import share_of_tags

THINK = ("think", "answer")
SHARES = {
    "<think>7+8</think><answer>15</answer>": 1.0,
    "Sure! <think>7+8</think> so <answer>15</answer>": 1.0,
    "<think>7+8</think> 15": 0.5,
    "<think>7+8</think><answer>15": 0.75,
    "15": 0.0,
    "": 0.0,
    "<answer>15</answer><think>7+8</think>": 0.5,  # in order are either the one pair or the other
    "<think>a<think>b</think><answer>15</answer>": 0.75,  # a tag that stands twice is none of the scheme's
    "</think><think>": 0.25,
}


@pytest.mark.parametrize("text", SHARES)
def test_the_share_of_tags_that_stand_once_and_in_order(text):
    assert share_of_tags(text, THINK) == SHARES[text]


def test_soft_pays_the_share_and_strict_the_whole_or_nothing():
    soft = {"name": "format_tags", "tags": list(THINK), "line_breaks": False, "reward": 1.0, "soft": True}
    strict = {**soft, "soft": False}
    texts = ["<think>7+8</think> <answer>15</answer>", "<think>7+8</think> 15", "15"]
    assert scores(soft, *texts) == [1.0, 0.5, 0.0]
    assert scores(strict, *texts) == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("tags", [["final"], ["plan", "work", "final"]])
def test_a_scheme_may_have_any_number_of_tags(tags):
    good = "".join(f"<{tag}>\n1\n</{tag}>\n" for tag in tags)
    assert scores({"name": "format_tags", "tags": tags}, good, good.replace("final", "finale"), "") == [0.5, 0.0, 0.0]


JSON = {
    '{"a": [1, 2.5, null]}': 1.0,
    "[]": 1.0,
    "7": 1.0,
    'so\n```json\n{"a": 1}\n```\nand done': 1.0,
    '<answer>{"a": 1}</answer>': 1.0,
    "{'a': 1}": 0.0,
    '{"a": 1,}': 0.0,
    '{"a": NaN}': 0.0,
    '{"a": 1} and more': 0.0,
    "": 0.0,
    "[" * 100_000: 0.0,
    "9" * 10_000: 0.0,  # Python refuses to read it
}


@pytest.mark.parametrize("text", JSON, ids=lambda text: text[:20])
def test_json_is_json_or_not(text):
    assert scores("json_format", text) == [JSON[text]]


SCHEMA = {"type": "object", "required": ["name", "age"], "properties": {"age": {"type": "integer", "minimum": 0}}}
GOOD, TOO_YOUNG, NOT_JSON = '{"name": "Ann", "age": 3}', '{"name": "Ann", "age": -1}', "Ann is 3"


def test_a_schema_is_fulfilled_or_not():
    assert scores({"name": "json_format", "schema": SCHEMA}, GOOD, TOO_YOUNG, NOT_JSON) == [1.0, 0.0, 0.0]
    assert scores({"name": "json_format", "schema": SCHEMA, "parsed": 0.25}, GOOD, TOO_YOUNG, NOT_JSON) == [1, 0.25, 0]


@pytest.mark.parametrize("written", [SCHEMA, json.dumps(SCHEMA)])
def test_a_schema_may_be_a_column_of_the_data(written):
    spec = {"name": "json_format", "schema": "form"}
    assert scores(spec, GOOD, TOO_YOUNG, columns={"form": written}) == [1.0, 0.0]
    assert scores(spec, GOOD, TOO_YOUNG, columns={"form": None}) == [1.0, 1.0]


def test_a_schema_refers_to_no_other_document():
    with pytest.raises(ValueError, match=r"Unresolvable.*example\.org"):
        spec = {"name": "json_format", "schema": {"$ref": "https://example.org/schema.json"}}
        Rewards([spec]).score([group(GOOD)], step=1)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"schema": {"type": "objekt"}}, "schema is no JSON schema: 'objekt'"),
        ({"parsed": 2}, r"parsed = 2.0 must be from 0 to 1"),
    ],
)
def test_impossible_options_are_named(options, complaint):
    with pytest.raises(ValueError, match=f"reward 'json_format': {complaint}"):
        make_reward({"name": "json_format", **options})


def test_a_column_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"schema = 'form' is no column of the data"):
        Rewards([{"name": "json_format", "schema": "form"}]).score([group(GOOD)], step=1)
