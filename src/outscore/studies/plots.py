"""Figures drawn by matplotlib, which only the extra `plots` installs."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from outscore.studies.records import Figure, Panel

FORMATS = ("png", "svg")
_PANEL_INCHES = (4.2, 3.2)
_BAR_INCHES = 0.4
_LEGEND_INCHES = 2.0
_DPI = 110
# A fixed salt and no date: the same numbers give the same SVG, byte for byte.
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "outscore",
    "svg.fonttype": "none",
    "font.size": 9.0,
    "axes.grid": True,
    "grid.alpha": 0.3,
}


def require_matplotlib() -> None:
    """ImportError naming the extra if matplotlib is not installed; asked before a study spends time."""
    try:
        import matplotlib.figure  # noqa: F401  (only whether it is there)
    except ImportError as error:
        raise ImportError("drawing figures needs matplotlib: pip install 'outscore[plots]'") from error


def draw(figures: Sequence[Figure], directory: Path) -> list[Path]:
    """Write each figure as NAME.png and NAME.svg, and return the paths. No display is needed.

    Raises ImportError without the extra `plots`.
    """
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    colours = {label: f"C{place}" for place, label in enumerate(_labels(figures))}
    paths = []
    with matplotlib.rc_context(_STYLE):
        for figure in figures:
            widths = [_width(panel) for panel in figure.panels]
            canvas = Canvas(figsize=(sum(widths), _PANEL_INCHES[1]), layout="constrained")
            canvas.suptitle(figure.title)
            places = canvas.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
            for axes, panel in zip(places, figure.panels, strict=True):
                _draw_panel(axes, panel, colours)
            for suffix in FORMATS:
                path = directory / f"{figure.name}.{suffix}"
                canvas.savefig(path, dpi=_DPI, metadata={"Date": None} if suffix == "svg" else None)
                paths.append(path)
    return paths


def _width(panel: Panel) -> float:
    """In inches; many bars need room for their names, and so do many lines."""
    if panel.kind == "bars":
        return max(_PANEL_INCHES[0], _BAR_INCHES * len(panel.series))
    return _PANEL_INCHES[0] + (_LEGEND_INCHES if _beside(panel) else 0.0)


def _beside(panel: Panel) -> bool:
    """Whether there are so many lines that their names would cover them."""
    return len(panel.series) > 4


def _labels(figures: Sequence[Figure]) -> list[str]:
    found = (series.label for figure in figures for panel in figure.panels for series in panel.series)
    return list(dict.fromkeys(found))


def _draw_panel(axes: Any, panel: Panel, colours: dict[str, str]) -> None:
    axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
    if panel.kind == "bars":
        for place, series in enumerate(panel.series):
            axes.bar(place, series.mean[-1], yerr=series.sem[-1], color=colours[series.label], capsize=3)
        axes.set_xticks(range(len(panel.series)), [series.label for series in panel.series], rotation=30, ha="right")
        return
    for series in panel.series:
        low = [mean - sem for mean, sem in zip(series.mean, series.sem, strict=True)]
        high = [mean + sem for mean, sem in zip(series.mean, series.sem, strict=True)]
        assert all(map(math.isfinite, [*low, *high]))
        axes.plot(series.x, series.mean, label=series.label, color=colours[series.label])
        axes.fill_between(series.x, low, high, color=colours[series.label], alpha=0.2, linewidth=0)
    if len(panel.series) > 1:
        axes.legend(**{"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if _beside(panel) else {})
