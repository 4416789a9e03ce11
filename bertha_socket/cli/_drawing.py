"""A DAG as text and as SVG, for `bertha explain`: the program on top, the network at the bottom.

What an argument's sub-DAGs are (a branch's choices) stands beside each other below the chunnel that has them,
and comes together again below.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Final, NamedTuple

from bertha_socket.dag import Chunnel, Dag, Need

__all__ = ["as_svg", "as_text"]

_TOP: Final = "program"
_BOTTOM: Final = "network"
#: Pixels.
_LETTER: Final = 7.3
_HEIGHT: Final = 28
_GAP: Final = 22
_MARGIN: Final = 12
_LABEL_MAX: Final = 60


def _subdags(value: object) -> Iterator[Dag]:
    if isinstance(value, Dag):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _subdags(item)


def _choices(chunnel: Chunnel) -> list[Dag]:
    return [d for v in (*chunnel.args, *(v for _name, v in chunnel.kwargs)) for d in _subdags(v)]


def _label(chunnel: Chunnel) -> str:
    """The chunnel without its sub-DAGs, which are drawn."""
    args = tuple(a for a in chunnel.args if not any(_subdags(a)))
    kwargs = tuple((k, v) for k, v in chunnel.kwargs if not any(_subdags(v)))
    text = str(Chunnel(chunnel.type, args, kwargs, chunnel.scope, chunnel.need))
    return text if len(text) <= _LABEL_MAX else text[: _LABEL_MAX - 3] + "..."


def as_text(dag: Dag) -> list[str]:
    """Lines from the program down to the network."""
    return [_TOP, *_text(dag, "  |  "), _BOTTOM]


def _text(dag: Dag, indent: str) -> Iterator[str]:
    for chunnel in dag.chunnels:
        yield f"{indent.rstrip()[:-1]}+- {_label(chunnel)}"
        for number, choice in enumerate(_choices(chunnel)):
            yield f"{indent}  [{number}]"
            yield from _text(choice, indent + "   |  ")


class _Box(NamedTuple):
    """What has been laid out: its size, the SVG of it with the corner at 0,0."""

    width: float
    height: float
    body: str


def _box(text: str, style: str) -> _Box:
    width = max(60.0, len(text) * _LETTER + 20)
    body = (
        f'<rect width="{width:.0f}" height="{_HEIGHT}" rx="5" class="{style}"/>'
        f'<text x="{width / 2:.0f}" y="{_HEIGHT / 2 + 4:.0f}">{escape(text)}</text>'
    )
    return _Box(width, _HEIGHT, body)


def _moved(box: _Box, x: float, y: float) -> str:
    return f'<g transform="translate({x:.1f},{y:.1f})">{box.body}</g>'


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _stacked(boxes: list[_Box]) -> _Box:
    if not boxes:
        return _Box(20, _HEIGHT, _line(10, 0, 10, _HEIGHT))
    width = max(b.width for b in boxes)
    parts, y = [], 0.0
    for number, box in enumerate(boxes):
        if number:
            parts.append(_line(width / 2, y - _GAP, width / 2, y))
        parts.append(_moved(box, (width - box.width) / 2, y))
        y += box.height + _GAP
    return _Box(width, y - _GAP, "".join(parts))


def _chunnel(chunnel: Chunnel) -> _Box:
    own = _box(_label(chunnel), "chunnel" if chunnel.need is Need.REQUIRE else chunnel.need.value)
    choices = [_stacked([_chunnel(c) for c in choice.chunnels]) for choice in _choices(chunnel)]
    if not choices:
        return own
    across = sum(c.width for c in choices) + _GAP * (len(choices) - 1)
    width, tallest = max(own.width, across), max(c.height for c in choices)
    top = own.height + _GAP
    end = top + tallest + _GAP
    parts, x = [_moved(own, (width - own.width) / 2, 0)], (width - across) / 2
    for choice in choices:
        middle = x + choice.width / 2
        parts += [
            _line(width / 2, own.height, middle, top),
            _moved(choice, x, top),
            _line(middle, top + choice.height, width / 2, end),
        ]
        x += choice.width + _GAP
    return _Box(width, end, "".join(parts))


_STYLE: Final = (
    "text{font:12px monospace;text-anchor:middle}line{stroke:#555}rect{fill:#eef;stroke:#336}"
    ".end{fill:#eee;stroke:#555}.prefer{stroke-dasharray:5}.avoid{stroke-dasharray:2;fill:#fff}"
    ".prohibit{stroke:#a00;fill:#fdd}"
)


def as_svg(dag: Dag, title: str = "") -> str:
    """A whole SVG document."""
    found = _stacked([_box(_TOP, "end"), *(_chunnel(c) for c in dag.chunnels), _box(_BOTTOM, "end")])
    width, height = found.width + 2 * _MARGIN, found.height + 2 * _MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}"><title>{escape(title or str(dag))}</title>'
        f"<style>{_STYLE}</style>{_moved(found, _MARGIN, _MARGIN)}</svg>\n"
    )
