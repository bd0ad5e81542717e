"""A reward file tested with its own examples: a list `EXAMPLES` beside the functions.

    EXAMPLES = [
        {"answer": "277", "completion": "It is 277.", "concise": 1.0},
        {"answer": "277", "completion": "It is 305.", "concise": 0.0},
    ]

An example is a row of data with a `completion`, and what functions of the file should give for it, each under its own
name: a number, or None for "does not apply". The other keys are data columns (`question` among them), `completion_ids`,
and `options`, those of the reward; without them its defaults count, whatever a recipe gives.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from outscore.inputs import nearest
from outscore.records import Completion, Problem, Prompt, SampledCompletion, SampledGroup, Score
from outscore.rewards.compose import NONE_APPLIES, Rewards
from outscore.rewards.loading import load_place
from outscore.settings import ScoringSettings

NAME = "EXAMPLES"
"""What the list is called in a reward's module."""
TOLERANCE = 1e-6
"""How far a value may be from the example's, of max(1, |value|)."""

_OWN = frozenset({"completion", "completion_ids", "question", "answer", "options"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Tried:
    """What one function gave for one example.

    >>> Tried(place="my_reward.py:concise", number=1, wanted=1.0, found=0.5, failure=None)
    """

    place: str
    """The function, as a recipe names it."""
    number: int
    """The example's place in the list, from 1."""
    wanted: float | None
    """What the example says."""
    found: float | None
    """What came; None where it does not apply, or failed."""
    failure: str | None
    """How it failed."""

    @property
    def ok(self) -> bool:
        """Whether it is as the example says."""
        if self.failure is not None or self.wanted is None or self.found is None:
            return self.failure is None and self.wanted == self.found
        return math.isclose(self.found, self.wanted, rel_tol=TOLERANCE, abs_tol=TOLERANCE)

    def __str__(self) -> str:
        came = self.failure or f"gave {self.found}"
        return f"example {self.number} of {self.place} {came}, and should give {self.wanted}"


def try_examples(
    source: str, *, folder: Path | None = None, scoring: ScoringSettings | None = None
) -> list[Tried] | None:
    """Score the examples of a reward file, or of one function in it.

    Args:
        source: `file.py`, or `file.py:function` or `module:function`.
        folder: what `file.py` is relative to; the working directory if not given.
        scoring: where the functions run, as in a recipe.

    Returns:
        What each function gave for each example that names it; None where the module has no `EXAMPLES`.

    Raises:
        ValueError: if the file cannot be loaded, or an example is none, naming what would be right.
    """
    module, name = load_place(source, folder or Path())
    examples = getattr(module, NAME, None)
    if examples is None:
        return None
    functions = _functions(module)
    _check(source, examples, functions)
    place = source.removesuffix(f":{name}") if name else source
    tried: list[Tried] = []
    for function in [name] if name else functions:
        own = [(number, each) for number, each in enumerate(examples, start=1) if function in each]
        by_options: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
        for number, example in own:
            by_options.setdefault(repr(example.get("options", {})), []).append((number, example))
        for rows in by_options.values():
            tried += _scored(f"{place}:{function}", function, rows, functions, folder, scoring)
    return sorted(tried, key=lambda each: (each.place, each.number))


def _functions(module: ModuleType) -> list[str]:
    """What the module itself defines and a recipe may name."""
    return [
        name
        for name, value in vars(module).items()
        if callable(value) and not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


def _check(source: str, examples: Any, functions: Sequence[str]) -> None:
    if not isinstance(examples, Sequence) or isinstance(examples, str) or not examples:
        raise ValueError(f"{source}: {NAME} must be a list of rows such as {{'completion': '277', 'my_reward': 1.0}}")
    for number, example in enumerate(examples, start=1):
        where = f"{source}: {NAME}, example {number}"
        if not isinstance(example, Mapping) or not isinstance(example.get("completion"), str):
            raise ValueError(f"{where} must be a row with a text under 'completion', not {example!r}")
        named = [key for key in example if key in functions]
        if not named:
            raise ValueError(
                f"{where} names no function of the file ({', '.join(functions) or 'it has none'}), so that it says "
                f"nothing{nearest(list(example)[-1], functions)}"
            )
        for key in named:
            value = example[key]
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise ValueError(f"{where}: {key} = {value!r} must be a number, or None for 'does not apply'")


def _scored(
    place: str,
    function: str,
    rows: Sequence[tuple[int, Mapping[str, Any]]],
    functions: Sequence[str],
    folder: Path | None,
    scoring: ScoringSettings | None,
) -> list[Tried]:
    """Examples with the same options, each a group of its own, scored as a step would."""
    spec = {"name": place, **rows[0][1].get("options", {})}
    rewards = Rewards([spec], on_failure="exclude", folder=folder, scoring=scoring)
    try:
        asked = inspect.signature(rewards.rewards[0].function).parameters
        for number, example in rows:
            if "completion_ids" in asked and "completion_ids" not in example:
                raise ValueError(f"{place} asks for the tokens: give `completion_ids` in example {number}")
        groups = [_group(number, example, functions) for number, example in rows]
        result = rewards.score(groups, step=0)
    finally:
        rewards.close()
    label = rewards.names[0]
    tried = []
    for (number, example), group in zip(rows, result.groups, strict=True):
        [score] = group.scores
        found = score.parts[label] if isinstance(score, Score) else None
        failed = None if isinstance(score, Score) or score.reason.startswith(NONE_APPLIES) else score.reason
        wanted = example[function]
        tried.append(
            Tried(
                place=place,
                number=number,
                wanted=None if wanted is None else float(wanted),
                found=found,
                failure=failed,
            )
        )
    return tried


def _group(number: int, example: Mapping[str, Any], functions: Sequence[str]) -> SampledGroup:
    asked, answer = example.get("question", ""), example.get("answer")
    question = asked if isinstance(asked, str) else tuple(asked)
    columns = {key: value for key, value in example.items() if key not in _OWN and key not in functions}
    problem = Problem(
        id=f"example {number}", question=question, answer=None if answer is None else str(answer), columns=columns
    )
    ids = tuple(example.get("completion_ids", ()))
    drawn = SampledCompletion(
        completion=Completion(token_ids=ids, text=example["completion"], counts=(True,) * len(ids)),
        sampler_logprobs=(0.0,) * len(ids),
        finish="stop",
        policy_version=0,
    )
    text = question if isinstance(question, str) else ""
    return SampledGroup(
        prompt=Prompt(problem=problem, text=text, token_ids=(0,)), completions=(drawn,), slot=number, attempt=0
    )
