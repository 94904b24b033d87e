"""Markdown tables for pages that GitHub shows.

This module is ours because pandas and tabulate, which write such tables, are no dependencies, and rich's
``box.MARKDOWN`` wraps cells at the width of the terminal.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

_NUMBER = re.compile(r"[+-]?\d|-?$")


def markdown_table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    r"""Return the lines of a Markdown table. Columns of numbers are aligned to the right.

    Args:
        rows: at least one mapping of column title to text, all with the same keys.

    >>> markdown_table([{"row": "a|b", "mAP": "41.0"}])
    ['| row | mAP |', '| --- | ---: |', '| a\\|b | 41.0 |']
    """

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    numbers = {title for title in rows[0] if all(_NUMBER.match(cells[title]) for cells in rows)}
    alignment = ["---:" if title in numbers else "---" for title in rows[0]]
    return [line(rows[0]), line(alignment), *(line(cells.values()) for cells in rows)]


def format_points(value: float) -> str:
    """Format a difference in percentage points with its sign and one decimal.

    >>> format_points(1.26), format_points(-0.01)
    ('+1.3', '+0.0')
    """
    return f"{round(value, 1) + 0.0:+.1f}"  # adding 0.0 turns -0.0 into 0.0
