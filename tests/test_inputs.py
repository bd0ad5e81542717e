"""What users write is read strictly, and what is wrong is named with what would be right."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from outscore.inputs import checked_options, nearest, read_yaml


class Shop:
    def __init__(
        self,
        *,
        count: int = 1,
        share: float = 0.5,
        words: Sequence[str] = (),
        pair: tuple[float, float] = (0.0, 1.0),
        path: str | Path | None = None,
        rows: Sequence[Any] | None = None,
        whatever=None,
        own: "Shop | None" = None,
    ) -> None:
        self.given = (count, share, words, pair, path, rows, whatever, own)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": "abc"}, "shop: count = 'abc' must be a valid integer"),
        ({"count": 1.5}, "shop: count = 1.5 must be a valid integer"),
        ({"share": "half"}, "shop: share = 'half' must be a valid number"),
        ({"words": 5}, r"shop: words = 5 must be a list: one item after each `-`, or \[one, another\]"),
        ({"words": "one"}, r"shop: words = 'one' must be a list; give a list: \[one\]"),
        ({"words": [1]}, r"shop: words = \[1\] must be a valid string"),
        ({"path": [1]}, r"shop: path = \[1\] must be a valid string or .*path"),
        ({"own": 3}, "shop: own = 3 must be an instance of Shop"),
        ({"cuont": 3}, r"shop has no option 'cuont' \(value 3\); did you mean `count`\?"),
        ({"wieght": 3}, r"did you mean `weight`\?"),
    ],
)
def test_an_option_that_does_not_fit_the_signature_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked_options(Shop, options, where="shop", also_known=("weight",))


def test_options_arrive_as_the_signature_has_them() -> None:
    # YAML 1.1 reads 1e-5 as text and knows no tuples.
    given = {"count": 3, "share": "1e-5", "words": ["a"], "pair": [0, 0.5], "path": None, "whatever": {"a": 1}}
    assert checked_options(Shop, given, where="shop") == {**given, "share": 1e-5, "pair": (0.0, 0.5)}
    own, rows = Shop(), ({"a": 1},)
    passed = checked_options(Shop, {"own": own, "rows": rows}, where="shop")
    assert passed["own"] is own and passed["rows"] is rows


def test_what_cannot_be_checked_is_passed_on() -> None:
    def reward(completions, untyped=None, typo: "NoSuchType" = None, **columns):
        return [0.0 for _ in completions]

    assert checked_options(reward, {"untyped": "x", "typo": 1}, where="mine") == {"untyped": "x", "typo": 1}
    with pytest.raises(ValueError, match="no option 'column'"):
        checked_options(reward, {"column": 1}, where="mine")
    assert checked_options(reward, {"column": 1}, where="mine", open_ended=True) == {"column": 1}


def test_a_merged_key_is_no_double_key() -> None:
    text = "base: &base {a: 1, b: 2}\nlate:\n  deep: {<<: *base, b: 3}\nagain: *base\n"
    assert read_yaml(text, "x") == {
        "base": {"a": 1, "b": 2},
        "late": {"deep": {"a": 1, "b": 3}},
        "again": {"a": 1, "b": 2},
    }
    with pytest.raises(ValueError, match="x: the key `a` stands twice in one mapping, on line 1"):
        read_yaml("{a: 1, a: 2}", "x")


def test_the_nearest_word_or_all_of_them() -> None:
    assert nearest("grop", ["grpo", "sft"]) == "; did you mean `grpo`?"
    assert nearest("gpro", ["gspo", "grpo", "sft"]) == "; did you mean `grpo`?"
    assert nearest("zzz", ["grpo", "sft"]) == "; known: grpo, sft"
    assert nearest("zzz", []) == ""
