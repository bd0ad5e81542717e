"""Which column of the data holds what, as its owner says or as the columns' names say."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from outscore.tasks.readers import Row

RESERVED_COLUMNS = frozenset({"prompts", "rendered_prompts", "completions", "trainer_state", "log_extra", "log_metric"})
"""Names that reward functions receive other things by."""
FEEDBACK_ROLES = ("chosen", "rejected", "completions", "ranking", "labels", "rating")
"""What was said about completions; a column with one of these names has that role unless it is given another."""
EXPECTED_REWARD = "expected_reward"
"""The column that is the rating where nobody names one."""
GOOD_OR_BAD = "label"
"""The same of Hugging Face's unpaired preferences, where it holds nothing but true and false."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnMap:
    """Which column holds what; None where there is none.

    >>> ColumnMap(question="prompt", answer="solution")
    """

    question: str | None = None
    """Plain text, or a list of chat messages."""
    messages: str | None = None
    """Chat messages instead of a question; a closing assistant message is the demonstration."""
    answer: str | None = None
    """The gold answer, text or a number."""
    answer_after: str | None = None
    """The gold answer is what follows this mark's last occurrence ("####" for GSM8K)."""
    demonstration: str | None = None
    """A response to imitate."""
    id: str | None = None
    """A unique id; without it the id is a hash of the question."""
    population: str | None = None
    """The group of people or the domain the row belongs to."""
    chosen: str | None = None
    """The response that was liked better, as text or messages; with it goes `rejected`."""
    rejected: str | None = None
    """The response that was liked less."""
    completions: str | None = None
    """Several responses, by label or as a list; the steps of one solution where `labels` is given."""
    ranking: str | None = None
    """Their order, as `B > A = C` or a list of ranks."""
    labels: str | None = None
    """A label for each step."""
    rating: str | None = None
    """The reward that the demonstration should have; it is then rated, not imitated."""

    def columns(self) -> Mapping[str, str]:
        """Role -> column, for the roles that are columns."""
        roles = ("question", "messages", "answer", "demonstration", "id", "population", *FEEDBACK_ROLES)
        return {role: getattr(self, role) for role in roles if getattr(self, role) is not None}

    @property
    def has_implicit_prompt(self) -> bool:
        """Whether the prompt is what both sides of a pair begin with."""
        return self.question is None and self.messages is None


def resolve(rows: Sequence[Row], asked: ColumnMap) -> ColumnMap:
    """Fill in the columns that nobody named; ValueError if one is nowhere in the data or has a reserved name."""
    present = {column: None for row in rows for column in row.values}
    says_good = {type(value) for row in rows if (value := row.values.get(GOOD_OR_BAD)) is not None} == {bool}
    roles = _default_roles(asked, present, rating=GOOD_OR_BAD if says_good else None)
    mapping = replace(asked, **roles, **_default_question(asked, present))
    reserved = sorted(RESERVED_COLUMNS.intersection(present) - set(mapping.columns().values()))
    if reserved:
        raise ValueError(
            f"{rows[0].where}: the column {reserved[0]!r} must be renamed: it is a name of the reward contract"
        )
    for role, column in mapping.columns().items():
        if column not in present:
            raise ValueError(
                f"{rows[0].where}: no column {column!r} (for {role}); present: {', '.join(map(repr, present))}"
            )
    for role, other in (("chosen", "rejected"), ("rejected", "chosen"), ("ranking", "completions")):
        if getattr(mapping, role) is not None and getattr(mapping, other) is None:
            raise ValueError(f"{rows[0].where}: the data have {getattr(mapping, role)!r}, but no column for {other}")
    return mapping


def _default_roles(asked: ColumnMap, present: Collection[str], *, rating: str | None) -> dict[str, str]:
    """The answer, and what was said about completions, from the columns of these names; `rating` where none is called
    so."""
    found = {role: role for role in ("answer", "chosen", "rejected", "ranking") if role in present}
    completions = asked.completions or "completions"
    kinds = [kind for kind in ("ranking", "labels") if (getattr(asked, kind) or kind) in present]
    if completions in present and kinds:
        found |= {"completions": completions, **{kind: kind for kind in kinds}}
    if rating := EXPECTED_REWARD if EXPECTED_REWARD in present else rating:
        found["rating"] = rating
    return {role: column for role, column in found.items() if getattr(asked, role) is None}


def _default_question(asked: ColumnMap, present: Collection[str]) -> dict[str, str]:
    """Where the question is: `question`, else `messages`, else `prompt` with its response; nowhere for a pair whose
    sides begin with it."""
    if asked.question is not None or asked.messages is not None:
        return {}
    if "question" in present:
        return {"question": "question"}
    if "messages" in present:
        return {"messages": "messages"}
    if "prompt" in present:
        responses = [column for column in ("response", "completion") if column in present]
        is_said = asked.demonstration is not None or not responses
        return {"question": "prompt"} if is_said else {"question": "prompt", "demonstration": responses[0]}
    is_pair = asked.chosen is not None or "chosen" in present
    return {} if is_pair else {"question": "question"}
