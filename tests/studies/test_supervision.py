"""The study of process supervision: what its rule pays for, and that its arms differ in nothing else."""

from outscore.config import parse_recipe
from outscore.model.load import encode
from outscore.model.tiny import character_tokenizer
from outscore.report import Evaluation
from outscore.stages import PolicySettings
from outscore.studies.over_seeds import course
from outscore.studies.supervision import ARMS, PROCESS, SUM, recipe, steps
from outscore.tasks.arithmetic import ArithmeticTask

TOKENIZER = character_tokenizer(ArithmeticTask.characters, ArithmeticTask.special_strings)


def paid(reasoning: str, answer: str, question: str = "47+38=") -> list[tuple[int, float]]:
    text = f"<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n{answer}\n</answer>\n"
    ids = [*encode(TOKENIZER, text), TOKENIZER.eos_token_id]
    [found] = steps([text], [ids], [question])
    return found


def test_a_step_is_paid_where_it_ends() -> None:
    # <reasoning> is token 0; "7+8=15 " ends with token 7, "4+3=7 " with 13, "7+1=8" with 18 and the tag behind it with
    # 19; the answer's tag is 20, its digits 21 and 22, the last tag 23, the end token 24.
    assert paid("7+8=15 4+3=7 7+1=8", "85") == [(7, 1.0), (13, 1.0), (19, 1.0), (24, 1.0)]
    assert paid("7+8=15 4+3=8 8+1=9", "95") == [(7, 1.0), (13, 0.0), (19, 0.0), (24, 0.0)]
    assert [value for _, value in paid("7+8=16 4+3=7 7+1=8", "86")] == [0.0, 1.0, 1.0, 0.0]


def test_more_steps_than_there_are_earn_nothing_and_a_step_left_out_shifts_the_others() -> None:
    assert [value for _, value in paid("7+8=15 4+3=7 7+1=8 7+1=8", "85")] == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert [value for _, value in paid("4+3=7 7+1=8", "85")] == [0.0, 0.0, 0.0]
    assert [value for _, value in paid("12-7=5 5-1=4 4-1=3", "35", question="52-17=")] == [1.0] * 4
    assert steps(["8"], [[3]], ["47+38="]) == [[(0, 0.0)]]


def test_arms_differ_in_what_is_paid_and_where_alone() -> None:
    made = parse_recipe(recipe(3)).stages
    arms = [stage for stage in made if isinstance(stage, PolicySettings)]
    assert len(arms) == len(ARMS) == len(made) - 1
    for stage in arms:
        assert stage.start == "sft"
        rest = {"name", "rewards", "cells"}
        assert stage.model_dump(exclude=rest) == arms[0].model_dump(exclude=rest)
    by_name = {stage.label.replace("-", " "): stage for stage in arms}
    assert by_name[PROCESS].rewards == by_name[SUM].rewards
    assert [dict(by_name[arm].cells)["supervision"] for arm in ARMS] == ["outcome", "process", "outcome"]


def test_a_course_begins_with_sft() -> None:
    def found(label: str, stage: str, step: int, **metrics: float) -> Evaluation:
        return Evaluation(
            **{"label": label, "stage": stage, "step": step, "policy_version": step, "num_problems": 4, "samples": 4},
            **{"metrics": metrics},
        )

    evaluations = [
        found("after sft", "sft", 140, **{"greedy": 0.5, "pass@1": 0.4}),
        found("step 15", "process", 15, greedy=0.6),
        found("after process", "process", 60, **{"greedy": 0.8, "pass@1": 0.7}),
        found("after outcome", "outcome", 60, **{"greedy": 0.1, "pass@1": 0.1}),
    ]
    assert course(evaluations, "sft", PROCESS) == [(0, 0.5, 0.4), (15, 0.6, None), (60, 0.8, 0.7)]
