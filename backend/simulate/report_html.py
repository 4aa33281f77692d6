"""HTML building blocks and style of the simulation report."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence

from backend.simulate.statistics import Interval, signed
from backend.simulate.text import escaped

UNIT_WORDS = {"px": "pixels of the original image (px)", "mm": "millimetres (mm)"}


def caption_prefix(data: str) -> str:
    """The data set name before a caption; "" if it has no name."""
    return f"{escaped(data)}: " if data else ""


def figure_html(data: bytes | None, alt: str, caption: str) -> str:
    if data is None:
        return ""
    source = base64.b64encode(data).decode()
    return (
        f'<figure><div class="wide" tabindex="0" role="group" aria-label="Figure">'
        f'<img src="data:image/png;base64,{source}" alt="{escaped(alt)}" /></div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def table_html(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], *, words: int | None = None) -> str:
    """Heads and cells are HTML; the first cell of a row is its heading, and column `words` contains sentences."""

    def cell(place: int, text: str) -> str:
        if place == 0:
            return f'<th scope="row">{text.replace("+", "+<wbr />")}</th>'
        return f'<td class="words">{text}</td>' if place == words else f"<td>{text}</td>"

    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    body = "".join(f"<tr>{''.join(cell(k, text) for k, text in enumerate(row))}</tr>\n" for row in rows)
    caption = caption[0].upper() + caption[1:]
    return (
        f'<div class="wide" tabindex="0" role="group" aria-label="Table"><table>'
        f"<caption><span>{caption}</span></caption>"
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def interval_text(value: Interval | None, digits: int = 3, *, sign: bool = False, counted: bool = False) -> str:
    if value is None:
        return "no value"
    count = f" <small>({value.n})</small>" if counted else ""

    def say(number: float) -> str:
        return signed(number, digits) if sign else f"{number:.{digits}f}"

    if value.low is None or value.high is None:
        return say(value.mean) + count
    return f'{say(value.mean)}{count} <small class="range">{say(value.low)} to {say(value.high)}</small>'


def p_value(value: float | None) -> str:
    if value is None:
        return "no value"
    return "&lt; 0.001" if value < 0.001 else f"{value:.3g}"


STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: #1a1a1a; overflow-wrap: break-word;
  font: 17px/1.5 system-ui, "Segoe UI", "Liberation Sans", sans-serif; }
main { max-width: 56rem; margin: 0 auto; padding: 1.5rem 1.25rem 3rem; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 2.25rem 0 .5rem; }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .25rem; }
header p { margin: 0; color: #555; }
p { margin: .5rem 0; max-width: 44rem; }
.short, .notice { border-left: 4px solid #0072B2; background: #f1f6fa; padding: .75rem 1.1rem; margin: 1.25rem 0; }
.short p, .notice p { max-width: none; }
.short h2, .notice h2 { margin: 0 0 .25rem; font-size: 1.1rem; }
.notice { border-color: #B8860B; background: #fdf7e7; }
.notice ul { margin: .25rem 0; padding-left: 1.25rem; }
figure { margin: 1rem 0; }
.wide { overflow-x: auto; }
.wide:focus-visible { outline: 2px solid #0072B2; outline-offset: 2px; }
img { display: block; width: 100%; max-width: 43rem; height: auto; }
figcaption, caption { color: #444; font-size: .9rem; line-height: 1.4; text-align: left; max-width: 44rem; }
caption { padding: .25rem 0 .5rem; max-width: none; }
caption span { display: block; max-width: min(44rem, calc(100vw - 1.8rem)); position: sticky; left: 0; }
table { border-collapse: collapse; margin: 1rem 0 1.25rem; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .9rem .4rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd; }
thead th { border-bottom: 2px solid #888; vertical-align: bottom; }
tbody th { font-weight: 600; min-width: 10rem; max-width: 15rem; overflow-wrap: anywhere; }
td { min-width: 4rem; }
td small { color: #555; font-size: .85em; white-space: nowrap; }
td small.range { display: block; }
td.words { min-width: 14rem; }
.better { color: #00568a; }
.worse { color: #a34600; }
dl { display: grid; grid-template-columns: fit-content(18rem) 1fr; gap: .2rem 1.25rem; font-size: .95rem; }
dt { color: #555; overflow-wrap: anywhere; }
dd { margin: 0; overflow-wrap: anywhere; white-space: pre-wrap; }
pre { background: #f5f5f5; padding: .75rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .9rem; }
@media (max-width: 600px) {
  body { font-size: 16px; }
  main { padding: 1rem .9rem 2rem; }
  tbody th { min-width: 6.5rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .5rem; }
}
@media print {
  @page { margin: 15mm; }
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  .wide { overflow: visible; }
  img { max-width: 38rem; }
  table { font-size: 8.5pt; }
  tbody th { min-width: 6.5rem; }
  td.words { min-width: 9rem; }
  th, td { padding-right: .5rem; }
  figure, tr, .short, .notice { break-inside: avoid; }
  h2, h3, caption { break-after: avoid; }
}
"""
