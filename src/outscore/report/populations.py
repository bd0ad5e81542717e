"""Populations in reports: metrics by population, the worst-off one and the spread, and how their weights moved.

Names are paths: `greedy/Japan` is the greedy accuracy on Japan's problems, `worst/greedy` that of the population where
it is worst, `spread/greedy` how far the best and the worst are apart; in a step's metrics `population_weight/Japan`,
`population_loss/Japan` and `population_reward/Japan`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from outscore.report.evaluation import Evaluation, is_by_population
from outscore.report.text import format_value, is_share, sparkline
from outscore.report.views import History, literal, ordered, series

WORST, SPREAD = "worst", "spread"
"""What stands before the name of a metric of all populations together."""
STEP_METRICS = ("population_weight", "population_loss", "population_reward")
"""What a step says of a population."""


def falls(metric: str) -> bool:
    """Whether a smaller value of a metric is better; of any population, of the worst-off one, or of the spread.

    >>> [falls(name) for name in ("preference_loss/Japan", "worst/greedy", "spread/greedy")]
    [True, False, True]
    """
    head, _, rest = metric.partition("/")
    return head == SPREAD or (rest if head == WORST else head).endswith(("loss", "error"))


def by_population(metric: str, values: Mapping[str, float]) -> dict[str, float]:
    """The metric of each population, of the worst-off one, and the spread; nothing where there are not two.

    >>> by_population("greedy", {"a": 0.5, "b": 0.25})
    {'greedy/a': 0.5, 'greedy/b': 0.25, 'worst/greedy': 0.25, 'spread/greedy': 0.25}
    """
    if len(values) < 2:
        return {}
    low, high = min(values.values()), max(values.values())
    each = {f"{metric}/{name}": values[name] for name in sorted(values)}
    return {**each, f"{WORST}/{metric}": high if falls(metric) else low, f"{SPREAD}/{metric}": high - low}


def means_by_population(
    metric: str, values: Iterable[float], names: Iterable[str | None], weights: Iterable[float] | None = None
) -> dict[str, float]:
    """The same from a value, a population and, where they do not all count the same, a weight for each example; those
    of no population are left out."""
    found: dict[str, list[tuple[float, float]]] = {}
    given = [*values]
    for value, name, weight in zip(given, names, [1.0] * len(given) if weights is None else weights, strict=True):
        if name is not None:
            found.setdefault(name, []).append((value * weight, weight))
    return by_population(
        metric, {name: math.fsum(v for v, _ in own) / math.fsum(w for _, w in own) for name, own in found.items()}
    )


def population_table(found: Evaluation, weights: Mapping[str, float] | None = None) -> Table | None:
    """A row for each population, one for the worst of each metric and one for the spread; None where nothing was found
    out by population. `weights` are the last ones in training."""
    pairs = [(name.partition("/")[0], name.partition("/")[2]) for name in found.metrics if is_by_population(name)]
    metrics = ordered({rest for head, rest in pairs if head == WORST})
    if not metrics:
        return None
    names = sorted({rest for head, rest in pairs if head in metrics})
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column(literal(found.label, 24), no_wrap=True)
    heads = ["weight %"] if weights else []
    for head in heads + [f"{metric} %" if is_share(metric) else metric for metric in metrics]:
        # In words, which a narrow screen can set below each other.
        table.add_column(literal(head.replace("_", " "), 40), justify="right")
    for name in [*names, WORST, SPREAD]:
        keys = [f"{name}/{metric}" if name in (WORST, SPREAD) else f"{metric}/{name}" for metric in metrics]
        own = [_shown("population_weight", (weights or {}).get(name))] if weights else []
        style = "bold" if name in (WORST, SPREAD) else ""
        cells = [_shown(metric, found.metrics.get(key)) for metric, key in zip(metrics, keys, strict=True)]
        table.add_row(literal(name, 24, style=style), *own, *cells)
    return table


def population_curves(history: History, width: int, *, ascii_only: bool = False) -> list[Text]:
    """A line for each population of a stage: its weight and what it climbs by, each with its course over the steps."""
    lines = []
    for name in populations_of(history):
        parts: list[Text] = [literal(f"{name:<12}", 20)]
        for metric in STEP_METRICS:
            values = series(history, f"{metric}/{name}")
            known = [value for value in values if not math.isnan(value)]
            if known:
                shown = format_value(metric, known[-1])
                spark = sparkline(values, max(8, (width - 20) // 2 - 22), ascii_only=ascii_only)
                label = metric.removeprefix("population_")
                parts.append(Text.assemble(f"  {label} {shown:>8} ", (spark, "cyan")))
        lines.append(Text.assemble(*parts))
    return lines


def populations_of(history: History) -> list[str]:
    """The populations that these steps have weights of."""
    head = f"{STEP_METRICS[0]}/"
    return sorted({name.removeprefix(head) for step in history for name in step if name.startswith(head)})


def last_weights(history: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
    """The weights of the last step that has any."""
    for step in reversed(history):
        own = {name: step.get(f"{STEP_METRICS[0]}/{name}") for name in populations_of([step])}
        if own:
            return {name: value for name, value in own.items() if value is not None}
    return {}


def _shown(metric: str, value: float | None) -> Text:
    return Text(format_value(metric, value).removesuffix(" %"))
