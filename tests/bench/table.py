"""From samples to figures: medians, ratios, a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from measures import Figure, Measure, Sample

REFERENCES = ("plain", "netfilter")
Samples = Mapping[str, Sequence[Sample]]
"""Set-up -> one sample per round."""


def summary(measure: Measure, samples: Samples) -> dict[str, dict[str, dict[str, Any]]]:
    """Figure -> set-up -> its values, their median, and how that compares to the references."""
    return {
        figure.key: {name: _cell(figure, name, samples) for name in samples if _values(figure, name, samples)}
        for figure in measure.figures
    }


def _cell(figure: Figure, name: str, samples: Samples) -> dict[str, Any]:
    values = _values(figure, name, samples)
    cell: dict[str, Any] = {"median": statistics.median(values), "values": values}
    for reference in REFERENCES:
        theirs = _values(figure, reference, samples)
        if not figure.relative or len(theirs) != len(values):
            continue
        # Round by round: what disturbs the machine for minutes disturbs both.
        pairs = list(zip(values, theirs, strict=True))
        if figure.relative == "added":
            cell[f"minus_{reference}"] = statistics.median(a - b for a, b in pairs)
        elif all(theirs):
            cell[f"of_{reference}"] = statistics.median(a / b for a, b in pairs)
    return cell


def _values(figure: Figure, name: str, samples: Samples) -> list[float]:
    return [sample[figure.key] * figure.scale for sample in samples.get(name, ()) if figure.key in sample]


def rows(
    measure: Measure, cells: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> list[tuple[str, dict[str, str]]]:
    """Lines of the table: title, and set-up -> text."""
    lines = []
    for figure in measure.figures:
        by_setup = cells[figure.key]
        title = f"{figure.title} [{figure.unit}]" if figure.unit else figure.title
        lines.append(
            (title, {name: f"{cell['median']:,.{figure.digits}f}" for name, cell in by_setup.items()})
        )
        for reference in REFERENCES:
            if any(f"of_{reference}" in cell for cell in by_setup.values()):
                key, digits, title = f"of_{reference}", 2, f"    of {reference}"
            elif any(f"minus_{reference}" in cell for cell in by_setup.values()):
                key, digits, title = f"minus_{reference}", figure.digits, f"    more than {reference}"
            else:
                continue
            texts = {name: f"{cell[key]:.{digits}f}" for name, cell in by_setup.items() if key in cell}
            lines.append((title, texts))
    return lines


def print_table(lines: Sequence[tuple[str, dict[str, str]]], names: Sequence[str]) -> None:
    """One column per set-up."""
    width = max(len(title) for title, _ in lines)
    widths = [max(9, len(name)) for name in names]
    print(" " * width, *(name.rjust(w) for name, w in zip(names, widths, strict=True)), sep="  ")
    for title, texts in lines:
        cells = (texts.get(name, "").rjust(w) for name, w in zip(names, widths, strict=True))
        print(title.ljust(width), *cells, sep="  ")
