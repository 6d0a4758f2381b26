"""Draws lines as SVG, for the docs: panels side by side, with a logarithmic vertical axis."""

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 470, 340  # of a panel, in px
LEFT, RIGHT, TOP, BOTTOM = 46, 130, 34, 44  # its margins; names are at the right
LABEL_PX = 13  # between two names
COLORS = (
    *("#4269d0", "#b5651d", "#c9302c", "#2a8c82", "#3ca951"),
    *("#c2559d", "#7a4fc0", "#5c6f8a", "#8a5a33", "#57606a"),
)


def draw_lines(
    panels: Mapping[str, Mapping[str, Sequence[float]]], ticks: Sequence[str], caption: str
) -> str:
    """Return an SVG. panels: by title, the values of each line by its name, one for each tick.

    caption: below the horizontal axis. All panels have the same vertical axis.
    """
    values = [value for lines in panels.values() for line in lines.values() for value in line]
    low = math.floor(math.log10(min(values)))
    high = max(low + 1, math.ceil(math.log10(max(values))))
    parts = [
        _draw_panel(title, lines, ticks, caption, decades=(low, high), left=number * WIDTH)
        for number, (title, lines) in enumerate(panels.items())
    ]
    size = f'width="{WIDTH * len(panels)}" height="{HEIGHT}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{"".join(parts)}</svg>\n'
    )


def _draw_panel(
    title: str,
    lines: Mapping[str, Sequence[float]],
    ticks: Sequence[str],
    caption: str,
    *,
    decades: tuple[int, int],
    left: int,
) -> str:
    low, high = decades
    plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(number: int) -> float:
        return left + LEFT + plot_width * number / max(1, len(ticks) - 1)

    def y(value: float) -> float:
        return TOP + plot_height * (high - math.log10(value)) / (high - low)

    parts = [_text(left + LEFT, 18, title, "font-weight='bold'")]
    for decade in range(low, high + 1):
        at = y(10.0**decade)
        parts.append(f'<path d="M{x(0):.1f} {at:.1f}H{x(len(ticks) - 1):.1f}" stroke="#d8dee4"/>\n')
        parts.append(_text(left + LEFT - 6, at + 4, f"{10.0**decade:g}", "text-anchor='end'"))
    for number, tick in enumerate(ticks):
        parts.append(_text(x(number), HEIGHT - BOTTOM + 16, tick, "text-anchor='middle'"))
    parts.append(_text(left + LEFT + plot_width / 2, HEIGHT - 8, caption, "text-anchor='middle'"))
    below = -math.inf
    for name, values in sorted(lines.items(), key=lambda line: -line[1][-1]):
        color = COLORS[list(lines).index(name) % len(COLORS)]
        points = " ".join(f"{x(i):.1f},{y(value):.1f}" for i, value in enumerate(values))
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.8"/>\n'
        )
        below = max(below + LABEL_PX, y(values[-1]) + 4)
        parts.append(_text(x(len(ticks) - 1) + 8, below, name, f"fill='{color}'"))
    return "".join(parts)


def _text(x: float, y: float, text: str, attributes: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{escape(text)}</text>\n'
