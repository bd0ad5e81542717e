"""What a reward is: TRL's contract, accepted unchanged, and the arguments a reward function is called with.

A reward function is called by keyword, once a step for the whole batch:

    def fn(prompts, completions, completion_ids, <every data column>, trainer_state, log_extra, log_metric): -> list

`prompts` are the questions as the data state them and `completions` what the model wrote: strings for plain data,
lists of messages for chat data; `rendered_prompts`, which TRL has not, are the texts that the policy read. Every data
column, with `question` and `answer`, is a list with one entry a completion. The result is a list of floats, None where
the reward does not apply; instead of a float, a completion may have a list of steps, (index of the step's last token,
reward), in order: its value is their sum, and process supervision pays each where it was earned. An exception in the
place of a value says that the reward failed on this completion alone. A function without **kwargs receives only what
its signature names.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import FunctionType
from typing import Any, Literal

from outscore.inputs import nearest
from outscore.records import Prompt, SampledCompletion, SampledGroup
from outscore.rewards.answers import extract_answer
from outscore.rewards.shaping import Shaping
from outscore.settings import OnFailure

RewardFunction = Callable[..., Any]
"""Keyword arguments in; a list of float or None out, or an awaitable of one."""

NOT_PASSED = frozenset({"prompt", "completion", "completion_ids"})
"""Data columns that do not reach rewards, as in TRL: they are the batch itself."""
_CONTRACT = ("prompts", "rendered_prompts", "completions", "trainer_state", "log_extra", "log_metric")


class RewardError(ValueError):
    """A reward returned what it may not return, or raised; the message names reward, prompt and completion.

    Args:
        reward_name: which reward.
        reason: what it did, in a sentence.
        problem_id: the problem whose completion it was about.
        sample: the completion's place in its group, from 0.
        group_size: how many completions the group has.
        prompt: the question.
        completion: the text.
        is_culprit: whether this completion makes the reward fail; else it is the first of the batch that failed.
    """

    def __init__(
        self,
        *,
        reward_name: str,
        reason: str,
        problem_id: str,
        sample: int,
        group_size: int,
        prompt: str,
        completion: str,
        is_culprit: bool = True,
    ) -> None:
        which = f"problem {problem_id!r}, completion {sample + 1} of {group_size}"
        where = f" ({which})" if is_culprit else f"\n  no completion alone is to blame; the batch begins with {which}"
        super().__init__(
            f"reward {reward_name!r} {reason}{where}\n  prompt: {shorten(prompt)}\n  completion: {shorten(completion)}"
        )
        self.reward_name = reward_name
        self.reason = reason
        self.problem_id = problem_id
        self.sample = sample


class MissingColumn(ValueError):
    """A reward that reads a data column named by one of its options, which the data do not have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerState:
    """What reward functions receive as `trainer_state`.

    These three mean what they mean in TRL; what else its state holds (its log history, its flags) has no counterpart.

    >>> TrainerState(global_step=12, max_steps=200, epoch=0.48)
    """

    global_step: int
    """The step whose completions are scored, from 1; 0 outside training."""
    max_steps: int
    """Steps of the stage; 0 outside training."""
    epoch: float | None = None
    """Passes over the training problems that the stage has made when this step ends, in fractions; None outside
    training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reward:
    """A reward function with its name and weight.

    >>> Reward(name="short", weight=0.1, function=lambda completions: [-len(text) for text in completions])
    """

    name: str
    """What columns and metrics call it."""
    weight: float = 1.0
    """Its factor in the total; with 0 it is shown and not counted."""
    function: RewardFunction
    """The function, TRL's contract."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further keyword arguments, the same at every call."""
    full: float | None = None
    """The greatest value it gives, if known."""
    extract: Callable[[str], str | None] = extract_answer
    """Completion text -> the answer this reward looks at, for tables and majority votes."""
    shaping: Shaping = field(default_factory=Shaping)
    """What becomes of its values before they are weighted; the parts that are kept stay what it said."""
    batched: bool = True
    """Whether a call is for all completions of a step; otherwise each has its own, which begins when it is sampled."""
    isolate: bool | None = None
    """Whether it runs in worker processes; None leaves that to the run. What needs the GPU or the policy says False."""
    limits: Mapping[str, Any] = field(default_factory=dict)
    """Those of `ScoringLimits` that differ from the run's."""
    prepare: Callable[[], None] | None = None
    """Called once in a worker before its first call, whose time limit it does not count against: slow imports."""
    bind: Callable[[Callable[[], Any] | None], None] | None = None
    """Called before a run begins with what loads the policy that the run begins with, None where that is built from
    scratch: for rewards that ask it."""
    on_failure: OnFailure | None = None
    """What its failures mean, if other than the run's `on_reward_failure`."""
    where: Mapping[str, Any] = field(default_factory=dict)
    """Data column -> the value, or the values, of the problems it is for; it does not apply to others, and never sees
    their completions."""
    origin: tuple[Mapping[str, Any], Path] | None = None
    """What `make_reward` built it from, if that names it: how it is found again in another process."""

    @property
    def is_async(self) -> bool:
        """Whether the function is a coroutine function, or an object whose call is one."""
        call = getattr(self.function, "__call__", None)  # noqa: B004 (asked for its kind, not whether it is callable)
        return inspect.iscoroutinefunction(self.function) or inspect.iscoroutinefunction(call)

    def is_for(self, item: "Item") -> bool:
        """Whether a completion's problem is one of those that the reward is for; ValueError for an unknown column."""
        for column, wanted in self.where.items():
            if column not in item.columns:
                raise ValueError(
                    f"reward {self.name!r}: where.{column}: problem {item.problem_id!r} has no column {column!r}"
                    f"{nearest(column, item.columns)}"
                )
            if item.columns[column] not in (wanted if isinstance(wanted, list | tuple) else [wanted]):
                return False
        return True


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One completion as rewards see it.

    >>> Item(problem_id="p/1", sample=0, group_size=8, prompt="1+1=", rendered="1+1=", text="2", token_ids=(5,),
    ...      columns={"answer": "2"})
    """

    problem_id: str
    """The problem's id."""
    sample: int
    """The completion's place in its group."""
    group_size: int
    """How many completions the group has."""
    prompt: str | tuple[Mapping[str, str], ...]
    """The question, plain or as messages."""
    rendered: str
    """The text the policy read, templates included."""
    text: str
    """What the model wrote."""
    token_ids: tuple[int, ...]
    """The completion's tokens."""
    columns: Mapping[str, Any]
    """Data columns."""

    def prompt_argument(self) -> str | list[dict[str, str]]:
        """Its entry in `prompts`, fresh, so that a function may change it."""
        return self.prompt if isinstance(self.prompt, str) else [dict(message) for message in self.prompt]

    def completion_argument(self) -> str | list[dict[str, str]]:
        """Its entry in `completions`."""
        return self.text if isinstance(self.prompt, str) else [{"role": "assistant", "content": self.text}]

    def error(self, reward_name: str, reason: str, *, is_culprit: bool = True) -> RewardError:
        """An error about this completion, or a batch that begins with it."""
        return RewardError(
            reward_name=reward_name,
            reason=reason,
            problem_id=self.problem_id,
            sample=self.sample,
            group_size=self.group_size,
            prompt=self.prompt if isinstance(self.prompt, str) else "\n".join(each["content"] for each in self.prompt),
            completion=self.text,
            is_culprit=is_culprit,
        )


Part = Literal["all", "final"]
"""Whether a reward looks at a whole completion or at what follows its chain of thought."""


def shown_part(completion: Any, part: Part) -> str:
    """A completion's text, or what follows its chain of thought, if it has one that is closed."""
    text = completion_text(completion)
    for mark in ("</think>", "</reasoning>"):
        if part == "final" and mark in text:
            return text.rpartition(mark)[2].strip()
    return text


class Log:
    """What one call of a reward function logged: `extra` and `metric` are its `log_extra` and `log_metric`."""

    def __init__(self, num_completions: int) -> None:
        self._num_completions = num_completions
        self.columns: dict[str, list[Any]] = {}
        self.metrics: list[tuple[str, float]] = []

    def extra(self, column: str, values: Sequence[Any]) -> None:
        """Keep a column with one value for each completion of the call."""
        kept = list(values)
        if len(kept) != self._num_completions:
            raise ValueError(f"log_extra({column!r}) got {len(kept)} values for {self._num_completions} completions")
        self.columns[column] = kept

    def metric(self, name: str, value: float) -> None:
        """Keep a number; the step shows the mean of what was kept under this name."""
        self.metrics.append((name, float(value)))


def items_of(groups: Sequence[SampledGroup]) -> list[Item]:
    """The completions of groups in order, as rewards see them.

    Raises:
        ValueError: if a data column has a name of the contract.
    """
    return [item for group in groups for item in _items(group)]


def _items(group: SampledGroup) -> Iterator[Item]:
    for sample, drawn in enumerate(group.completions):
        yield item_of(group.prompt, drawn, sample=sample, group_size=len(group.completions))


def item_of(prompt: Prompt, drawn: SampledCompletion, *, sample: int, group_size: int) -> Item:
    """A completion as rewards see it; ValueError if a data column has a name of the contract."""
    problem = prompt.problem
    wrong = [column for column in problem.columns if column in _CONTRACT]
    if wrong:
        raise ValueError(f"problem {problem.id!r}: rename its column {wrong[0]!r}, a name of the reward contract")
    columns = {key: value for key, value in problem.columns.items() if key not in NOT_PASSED}
    columns |= {"question": problem.question, "answer": problem.answer}
    return Item(
        problem_id=problem.id,
        sample=sample,
        group_size=group_size,
        prompt=problem.question if isinstance(problem.question, str) else tuple(problem.question),
        rendered=prompt.text,
        text=drawn.completion.text,
        token_ids=drawn.completion.token_ids,
        columns=columns,
    )


def call_arguments(reward: Reward, items: Sequence[Item], state: TrainerState, log: Log) -> dict[str, Any]:
    """The keyword arguments of one call.

    Raises:
        ValueError: if the signature asks for something there is not, naming what there is.
    """
    names = dict.fromkeys(name for item in items for name in item.columns)
    arguments: dict[str, Any] = {name: [item.columns.get(name) for item in items] for name in names}
    arguments |= {
        "prompts": [item.prompt_argument() for item in items],
        "rendered_prompts": [item.rendered for item in items],
        "completions": [item.completion_argument() for item in items],
        "completion_ids": [list(item.token_ids) for item in items],
        "trainer_state": state,
        "log_extra": log.extra,
        "log_metric": log.metric,
        **reward.options,
    }
    try:
        parameters = parameters_of(reward.function)
    except (TypeError, ValueError):  # some callables written in C have no signature
        return arguments
    check_signature(reward, parameters, arguments)
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in parameters}


def parameters_of(function: RewardFunction) -> Mapping[str, inspect.Parameter]:
    """The parameters by name; TypeError or ValueError for a callable that does not tell."""
    # Rewards that score one at a time are called often, and plain functions do not change their signature.
    return _remembered(function) if isinstance(function, FunctionType) else inspect.signature(function).parameters


@lru_cache(maxsize=64)
def _remembered(function: FunctionType) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def check_signature(reward: Reward, parameters: Mapping[str, inspect.Parameter], arguments: Mapping[str, Any]) -> None:
    """ValueError where the parameters ask for what is not among the arguments, naming the nearest that is."""
    for name, parameter in parameters.items():
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise ValueError(f"reward {reward.name!r}: parameter {name!r} is positional only, and calls are by keyword")
        needed = parameter.default is parameter.empty
        if needed and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) and name not in arguments:
            raise ValueError(
                f"reward {reward.name!r} asks for {name!r}, which neither the data nor the contract has"
                f"{nearest(name, sorted(arguments))}"
            )


def completion_text(completion: Any) -> str:
    """The text of an entry of `completions`: a string, or the content of the last of its messages."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


def shorten(text: str, limit: int = 400) -> str:
    """The text as a Python literal, its middle left out beyond `limit` characters."""
    half = limit // 2
    return repr(text if len(text) <= limit else f"{text[:half]} ... {text[-half:]}")
