"""Coherence, completeness, fluency, repetition and length on hand-made texts, scores worked by hand."""

import pytest
from rewards.building import scores

from outscore.rewards import make_reward
from outscore.rewards.writing import coherence_of, completeness_of, fluency_of, loop_share, repeated_share


def test_repeated_n_grams_are_counted():
    # ab ba ab ba ab: two different of five
    assert repeated_share("a b a b a b", 2) == pytest.approx(0.6)
    assert repeated_share("A a, a. a", 4) == 0.0  # one 4-gram
    assert repeated_share("one two three", 4) == 0.0  # none
    assert scores({"name": "repetition", "n": 1}, "a a a a", "a b c d", "") == [-0.75, 0.0, 0.0]


LOOPS = {
    "so it is is is is is": 15 / 20,  # " is" five times
    "hahahahaha": 1.0,
    "x" * 30: 1.0,
    "no no no": 0.0,  # the piece "no " comes 2 2/3 times
    "one two three": 0.0,
    "wait!!!": 0.0,  # three marks are no loop
    "": 0.0,
}


@pytest.mark.parametrize("text", LOOPS)
def test_loops_at_the_end_of_hand_written_texts(text):
    assert loop_share(text) == pytest.approx(LOOPS[text])


@pytest.mark.parametrize("text", ["so it is is is is is", "abcabcabcab", "aab" * 7, "b" + "a" * 40, "xyz"])
def test_the_loop_is_the_longest_that_a_naive_search_finds(text):
    longest = 0
    for start in range(len(text)):
        tail = text[start:]
        for period in range(1, len(tail) // 3 + 1):
            if len(tail) >= 8 and all(a == b for a, b in zip(tail, tail[period:], strict=False)):
                longest = max(longest, len(tail))
    assert loop_share(text) == longest / len(text)


def test_long_texts_are_looked_at_without_trying_every_period():
    """A search without its short cut takes minutes."""
    assert loop_share("c" + "a" * 40_000) == 40_000 / 40_001
    assert loop_share("ab" * 20_000 + "c" + "abc" * 5_000) == 15_003 / 55_001  # and the "abc" before it


def test_fluency_is_the_product_of_its_shares():
    assert fluency_of("The hens lay two eggs. We eat them.") == 1.0
    # 6 words, one of them no word; 3-grams all different; one sentence
    assert fluency_of("The hens lay zzz eggs today.") == pytest.approx(5 / 6)
    # sentences of 1 and 3 words
    assert fluency_of("Eggs. Hens lay eggs.") == pytest.approx(1 / 2)
    # 3-grams: "a b c", "b c a", "c a b", "a b c": 3 of 4 different
    assert fluency_of("Ab bc ca ab bc ca.") == pytest.approx(3 / 4)
    assert fluency_of("") == fluency_of("?!?!") == 0.0


def test_completeness_is_the_share_of_its_checks():
    assert completeness_of("<answer>(a) 5</answer>") == 1.0
    assert completeness_of("It is 5.") == 1.0
    assert completeness_of("It is about to") == pytest.approx(2 / 3)
    assert completeness_of("It is (about to") == pytest.approx(1 / 3)
    assert completeness_of("<think>It is (about to") == 0.0
    assert completeness_of("```python\nx = 1") == pytest.approx(2 / 3)  # a number ends it, the fence is open
    assert completeness_of("It is 5.", ["Answer:"]) == pytest.approx(3 / 4)
    assert completeness_of(" ") == 0.0


def test_coherence_is_the_share_of_sentences_that_are_tied():
    prompt = "How many eggs do the hens lay?"
    assert coherence_of("The hens lay 12 eggs. Those 12 cost little.", prompt) == 1.0
    assert coherence_of("The hens lay 12 eggs. Paris is in France.", prompt) == 0.5
    assert coherence_of("The hens lay 12 eggs. The hens lay 12 eggs.", prompt) == 0.5
    assert coherence_of("Paris is in France.", prompt) == 0.0
    assert coherence_of("", prompt) == 0.0


GOOD = "The hens lay 12 eggs every day. So they lay 84 eggs in a week, which is 7 days."
BAD = {
    "coherence": "The hens lay 12 eggs every day. Paris is in France.",
    "completeness": "The hens lay 12 eggs (every",
    "fluency": "eggs eggs eggs eggs eggs eggs eggs eggs",
    "repetition": "the hens lay eggs the hens lay eggs the hens",
    "degeneration": "The hens lay eggs eggs eggs eggs",
}


@pytest.mark.parametrize("name", BAD)
def test_each_ranks_good_writing_above_bad(name):
    good, bad = scores(name, GOOD, BAD[name], question="How many eggs do the hens lay in a week?", answer=None)
    assert good > bad
    assert good == make_reward(name).full


def test_reflective_words_are_counted_as_words():
    texts = ["Wait, wait: I check it, but what is awaited is no error", "nothing", ""]
    assert scores("reflection", *texts) == [5.0, 0.0, 0.0]
    assert scores({"name": "reflection", "words": ["Hmm"]}, "hmm, wait") == [1.0]
    with pytest.raises(ValueError, match="counts nothing"):
        make_reward({"name": "reflection", "words": []})


def test_soft_overlong_is_the_line_of_its_source():
    # tokens are characters here: free up to 6, -1 from 10 on
    texts = ["x" * n for n in (0, 6, 7, 8, 10, 11, 50)]
    assert scores({"name": "soft_overlong", "max_length": 10, "cache": 4}, *texts) == [0, 0, -0.25, -0.5, -1, -1, -1]


def test_soft_overlong_with_the_paper_s_numbers():
    spec = {"name": "soft_overlong", "max_length": 20480, "cache": 4096}
    assert scores(spec, "x" * 16384, "x" * 18432, "x" * 20480) == [0.0, -0.5, -1.0]


def test_target_length_falls_on_both_sides():
    spec = {"name": "target_length", "target": 10, "within": 4}
    assert scores(spec, *("x" * n for n in (10, 9, 12, 14, 30, 0))) == [1.0, 0.75, 0.5, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ({"name": "soft_overlong", "max_length": 10, "cache": 11}, "cache = 11 must be above 0 and at most max_length"),
        ({"name": "target_length", "target": 10, "within": 0}, "within = 0 1 or above"),
        ({"name": "repetition", "n": 0}, "n = 0 must be 1 or above"),
        ({"name": "soft_overlong"}, "reward 'soft_overlong' needs the option 'max_length'"),
    ],
)
def test_impossible_options_are_named(spec, complaint):
    with pytest.raises(ValueError, match=complaint):
        make_reward(spec)
