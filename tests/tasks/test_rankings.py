"""What people say about completions, in every shape it comes in, and every fault named with its place."""

import json
import re

import pytest

from outscore.tasks import DataTask, RankingTask, make_task, parse_ranking

FOUR = ["A", "B", "C", "D"]


def task_of(*rows, **options):
    return DataTask(rows=rows, eval_fraction=0, **options)


@pytest.mark.parametrize(
    ("text", "ranks"),
    [
        ("D > C > A = B", (2, 2, 1, 0)),
        ("A>B>C>D", (0, 1, 2, 3)),
        ("B = A = D = C", (0, 0, 0, 0)),
        ("  C = D>  A=B ", (1, 1, 0, 0)),
    ],
)
def test_a_ranking_is_read_with_its_ties(text, ranks):
    assert parse_ranking(text, FOUR) == ranks


def test_a_label_may_have_spaces_and_begin_like_another():
    labels = ["model", "model 2", "the human", "model 2b"]
    assert parse_ranking("the human > model 2b=model >model 2", labels) == (1, 2, 0, 1)
    with pytest.raises(ValueError, match="'the' is no completion") as caught:
        parse_ranking("model > the man", labels)
    assert str(caught.value).splitlines()[-1] == " " * (4 + 8) + "^"


def test_the_ranking_of_the_sources():
    assert parse_ranking("D > G > A = B", ["A", "B", "D", "G"]) == (2, 2, 0, 1)


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("A > B C > D", 6, "`>` or `=` should stand here, not 'C'"),
        ("A > > B > C > D", 4, "a label should stand here, not '>'"),
        ("> A > B > C > D", 0, "a label should stand here, not '>'"),
        ("A > B > C > D >", 15, "a label should stand here"),
        ("", 0, "a label should stand here"),
        ("A > B > C > E", 12, "'E' is no completion"),
        ("A > B > A > D", 8, "'A' stands here a second time"),
        ("A > B > C", 9, "'D' is missing"),
        ("A > B >= C > D", 7, "a label should stand here, not '='"),
        ("A < B > C > D", 2, "`>` or `=` should stand here, not '<'"),
    ],
)
def test_a_ranking_that_cannot_be_read_marks_the_position(text, place, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        parse_ranking(text, FOUR)
    marked, mark = str(caught.value).splitlines()[-2:]
    assert marked == f"    {text}" and mark == " " * (4 + place) + "^"


def test_pairs_of_every_hugging_face_shape_are_the_same_pair():
    user, good, bad = {"role": "user", "content": "1+1="}, "2", "3"

    def said(text):
        return {"role": "assistant", "content": text}

    conversations = (
        task_of({"prompt": [user], "chosen": [said(good)], "rejected": [said(bad)]}),
        task_of({"chosen": [user, said(good)], "rejected": [user, said(bad)]}),
    )
    for task in conversations:
        [ranking] = task.train_rankings()
        assert ranking.problem.question == (user,)
        assert (ranking.responses, ranking.ranks) == ((good, bad), (0, 1))
    for plain in (
        task_of({"prompt": "1+1=", "chosen": good, "rejected": bad}),
        task_of({"question": "1+1=", "better": good, "worse": bad}, chosen="better", rejected="worse"),
    ):
        [ranking] = plain.train_rankings()
        assert ranking.problem.question == "1+1="
        assert (ranking.responses, ranking.ranks) == ((good, bad), (0, 1))


def test_what_two_texts_begin_with_is_their_prompt_up_to_a_word():
    task = task_of({"chosen": "The sky is green-blue.", "rejected": "The sky is grey."})
    [ranking] = task.train_rankings()
    assert ranking.problem.question == "The sky is"
    assert ranking.responses == (" green-blue.", " grey.")


def test_rankings_by_label_by_letter_and_by_rank():
    texts = {"x": "1", "y": "2", "z": "3"}
    for completions, ranking in ((texts, "z > x = y"), (list("123"), "C > A = B"), (list("123"), [5, 5, 2])):
        [found] = task_of({"prompt": "q", "completions": completions, "ranking": ranking}).train_rankings()
        assert (found.responses, found.ranks) == (("1", "2", "3"), (1, 1, 0))
        assert "completions" not in found.problem.columns


def test_the_json_of_the_sources_loads_as_it_is(tmp_path):
    """A demonstration, and a rated response whose squared error is 0.04."""
    shown = {"prompt": "write me a song about an ox plowing a field of data", "response": "Surely! Here is a song"}
    rated = {
        "prompt": "write me a song about an ox",
        "response": "You got it! Ox go plow, make no sound, data so wow.",
        "expected_reward": 1.0,
        "predicted_reward": 0.8,
    }
    for name, row in (("a13", shown), ("a16", rated)):
        (tmp_path / f"{name}.json").write_text(json.dumps(row))
    [demonstration] = DataTask(path=tmp_path / "a13.json", eval_fraction=0).demonstrations()
    assert (demonstration.problem.question, demonstration.response) == (shown["prompt"], shown["response"])
    task = DataTask(path=tmp_path / "a16.json", eval_fraction=0)
    [rating] = task.train_ratings()
    assert (rating.problem.question, rating.response, rating.reward) == (rated["prompt"], rated["response"], 1.0)
    assert (rating.problem.columns["predicted_reward"] - rating.reward) ** 2 == pytest.approx(0.04)
    assert task.demonstrations() == []  # it is rated, not shown to be imitated


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completions": {"A": "1", "B": "2"}, "ranking": "B > A"},
        {"prompt": "q", "completions": ["1", "2"], "ranking": "B > A"},
        {"prompt": "q", "completions": ["1", "2"], "ranking": [2, 1]},
    ],
)
def test_one_object_is_one_row_unless_it_holds_a_list_of_objects(row, tmp_path):
    for content in (row, [row], {"version": 1, "rows": [row]}):
        (tmp_path / "d.json").write_text(json.dumps(content))
        [found] = DataTask(path=tmp_path / "d.json", eval_fraction=0).train_rankings()
        assert (found.responses, found.ranks) == (("1", "2"), (1, 0))


def test_completions_of_messages_are_ranked_by_what_the_assistant_says():
    user = {"role": "user", "content": "1+1="}
    said = [[{"role": "assistant", "content": text}] for text in "23"]
    for completions in (said, dict(zip("AB", said, strict=True))):
        [ranking] = task_of({"prompt": [user], "completions": completions, "ranking": "A > B"}).train_rankings()
        assert (ranking.problem.question, ranking.responses, ranking.ranks) == ((user,), ("2", "3"), (0, 1))


def test_unpaired_preferences_are_ratings_and_nothing_to_imitate():
    said = [[{"role": "assistant", "content": text}] for text in "23"]
    for good, bad in (("2", "3"), said):
        rows = (
            {"prompt": "1+1=", "completion": good, "label": True},
            {"prompt": "1+1=", "completion": bad, "label": False},
        )
        task = task_of(*rows)
        assert [(each.response, each.reward) for each in task.train_ratings()] == [("2", 1.0), ("3", 0.0)]
        assert task.demonstrations() == []
    [shown] = task_of({"prompt": "1+1=", "completion": "2", "label": "sums"}).demonstrations()
    assert shown.response == "2"  # this label says something else


def test_prompt_and_completion_of_messages_are_a_demonstration():
    turns = [{"role": "user", "content": "1+1="}], [{"role": "assistant", "content": "2"}]
    [demonstration] = task_of({"prompt": turns[0], "completion": turns[1]}).demonstrations()
    assert (demonstration.problem.question, demonstration.response) == (({"role": "user", "content": "1+1="},), "2")


@pytest.mark.parametrize(
    ("labels", "read"),
    [
        ([True, False], (1.0, 0.0)),
        ([1, 0], (1.0, None)),  # PRM800K: 0 is neither
        ([0, -1], (None, 0.0)),
        ([0.25, 1], (0.25, 1.0)),  # Math-Shepherd's soft estimates
        ([1.0, 0.0], (1.0, 0.0)),
    ],
)
def test_steps_keep_their_labels(labels, read):
    [found] = task_of({"prompt": "q", "completions": ["one", "two"], "labels": labels}).labelled_solutions()
    assert (found.steps, found.labels) == (("one", "two"), read)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, r"rows\[0\]: both sides of the pair are the same.*'a'"),
        ({"prompt": "q", "chosen": "a"}, "but no column for rejected"),
        ({"prompt": "q", "chosen": 3, "rejected": "a"}, "'chosen' must be text, or messages"),
        ({"chosen": "left", "rejected": "right"}, r"rows\[0\]: .* no beginning in common"),
        (
            {"prompt": "q", "completions": ["a", "b"], "ranking": "A > B > C"},
            r"rows\[0\]: 'ranking' cannot be read: 'C' is no completion",
        ),
        ({"prompt": "q", "completions": ["a", "b"], "ranking": [1]}, "a list of 2 ranks, not"),
        ({"prompt": "q", "completions": ["a"], "ranking": "A"}, "at least two texts"),
        (
            {"prompt": "q", "completions": {"x": "a", "y": 3}, "ranking": "x > y"},
            r"rows\[0\]: completion y of 'completions' must be text, or messages .* not 3",
        ),
        ({"prompt": "q", "completions": ["a", "a"], "ranking": "A > B"}, "A and B are the same text"),
        (
            {"prompt": "q", "completions": ["a", "b"], "labels": [1]},
            r"rows\[0\]: 2 steps in 'completions', but 1 labels",
        ),
        ({"prompt": "q", "completions": ["a"], "labels": [1.5]}, r"\[0\] = 1.5 must be a number from 0 to 1"),
        ({"prompt": "q", "completions": ["a", "b"], "labels": [0.5, -1]}, r"\[1\] = -1 must be a number from 0 to 1"),
        ({"prompt": "q", "completions": ["a"], "labels": [2]}, r"'labels'\[0\] = 2 must be true, false, -1, 0 or 1"),
        ({"prompt": "q", "response": "a", "expected_reward": "good"}, "'expected_reward' must be .*, not 'good'"),
        ({"prompt": "q", "completions": ["a", "b"]}, "'completions' must be renamed"),
    ],
)
def test_what_is_wrong_names_the_record(row, message):
    with pytest.raises(ValueError, match=message):
        task_of(row)


def test_held_out_preferences_share_no_question_with_training():
    rows = [{"prompt": f"{n % 25}+1=", "chosen": str(n % 25 + 1), "rejected": f"{n}!"} for n in range(50)]
    task = DataTask(rows=rows, eval_fraction=0.3)
    sides = [{ranking.problem.question for ranking in side} for side in (task.train_rankings(), task.eval_rankings())]
    assert all(sides) and not sides[0] & sides[1]
    assert isinstance(task, RankingTask)


def test_slips_in_arithmetic_are_plausible_and_change_nothing_else():
    plain, paired = make_task("arithmetic"), make_task("arithmetic", num_preferences=50, num_slips=3)
    assert plain.train_problems() == paired.train_problems() and plain.eval_problems() == paired.eval_problems()
    assert plain.eval_rankings() == [] and len(paired.eval_rankings()) == 200
    seen = {each.id for each in (*paired.train_problems(), *paired.eval_problems())}
    for ranking in paired.train_rankings():
        assert ranking.problem.id not in seen
        assert ranking.ranks == (0, 1, 1, 1) and len(set(ranking.responses)) == 4
        answers = [re.search(r"<answer>\n(\d+)\n", text)[1] for text in ranking.responses]
        assert answers[0] == ranking.problem.answer and ranking.problem.answer not in answers[1:]
        # In a wrong solution exactly one step is a false equation.
        for wrong in ranking.responses[1:]:
            steps = re.findall(r"(\d+)([+-])(\d+)=(\d+)", wrong)
            false = [s for s in steps if int(s[0]) + (1 if s[1] == "+" else -1) * int(s[2]) != int(s[3])]
            assert len(false) == 1


def test_a_held_out_question_whose_preference_is_trained_on_is_found():
    from outscore.rewards import Rewards
    from outscore.tasks import validate

    task = make_task("arithmetic", num_train=20, num_eval=5, num_preferences=10)
    assert validate(task, Rewards(["tag_answer"])).ok
    task._preferences.append(task._eval_preferences[2])
    [complaint] = validate(task, Rewards(["tag_answer"])).complaints
    assert complaint.startswith("1 evaluation questions are trained on")
