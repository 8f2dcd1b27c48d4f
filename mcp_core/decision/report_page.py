"""The HTML of a report: tables and figures in one file without network. Every text is escaped here, and only here.

This file does not know what the tables say.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Chart", "Section", "page"]


@dataclass(frozen=True, slots=True)
class Section:
    """A table with its heading; cells are plain text."""

    title: str
    heading: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Chart:
    """Series of (name, x, y)."""

    title: str
    x: str
    y: str
    series: Sequence[tuple[str, Sequence[float], Sequence[float]]]
    lines: bool = True


def page(title: str, summary: str, badge: str, sections: Sequence[Section], charts: Sequence[Chart]) -> str:
    """The whole document. The policy in its head forbids every request, so it cannot phone home either."""
    from plotly.offline import get_plotlyjs

    body = "".join(
        [
            f"<h1>{html.escape(title)}</h1>",
            f'<p class="badge">{html.escape(badge)}</p>' if badge else "",
            f'<p class="answer">{html.escape(summary)}</p>',
            *(_figure(index, chart) for index, chart in enumerate(charts)),
            *map(_table, sections),
            "<footer>Made by MCP (Master Control Program). Figures without a value were not measured.</footer>",
        ]
    )
    library = f"<script>{get_plotlyjs()}</script><script>{_drawing(charts)}</script>" if charts else ""
    head = f"<title>{html.escape(title)}</title><style>{_STYLE}</style>"
    inner = f"<head>{_META}{head}</head><body><main>{body}</main>{library}</body>"
    return f"<!DOCTYPE html>\n<html lang=en>{inner}</html>\n"


def _table(section: Section) -> str:
    head = "".join(f"<th>{html.escape(each)}</th>" for each in section.heading)
    rows = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in section.rows)
    top = f"<thead><tr>{head}</tr></thead>" if any(section.heading) else ""
    return f'<h2>{html.escape(section.title)}</h2><div class="wide"><table>{top}<tbody>{rows}</tbody></table></div>'


def _figure(index: int, chart: Chart) -> str:
    return f'<h2>{html.escape(chart.title)}</h2><div class="chart" id="chart{index}"></div>'


def _drawing(charts: Sequence[Chart]) -> str:
    """The calls that draw. "<" cannot stand in it: no text ends the script, or begins a comment."""
    calls = [
        f"Plotly.newPlot('chart{index}',{_json(_traces(chart))},{_json(_layout(chart))},{{displaylogo:false,responsive:true}})"
        for index, chart in enumerate(charts)
    ]
    return ";".join(calls)


def _json(value: object) -> str:
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c").replace("\u2028", "\\u2028")


def _traces(chart: Chart) -> list[dict[str, object]]:
    # Plotly reads a little HTML in names: escaped, they are text there too.
    return [
        {
            "type": "scatter",
            "mode": "lines+markers" if chart.lines else "markers",
            "name": html.escape(name),
            "x": list(x),
            "y": list(y),
            "marker": {"size": 9},
        }
        for name, x, y in chart.series
    ]


def _layout(chart: Chart) -> dict[str, object]:
    axis = {"rangemode": "tozero", "gridcolor": "rgba(128,128,128,.25)", "zerolinecolor": "rgba(128,128,128,.5)"}
    return {
        "height": 380,
        "margin": {"l": 60, "r": 10, "t": 10, "b": 45},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "#808080"},
        "legend": {"orientation": "h", "y": -0.2},
        "showlegend": True,
        "xaxis": {"title": {"text": chart.x}, **axis},
        "yaxis": {"title": {"text": chart.y}, **axis},
    }


_META = (
    '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data: blob:; font-src data:\">"
)
_STYLE = """
:root{color-scheme:light dark;--line:light-dark(#d9dde3,#3a4048);--soft:light-dark(#5c6570,#a3acb8)}
body{font:15px/1.5 system-ui,sans-serif;margin:0;background:light-dark(#fff,#14171b)}
body{color:light-dark(#1b1f24,#e6e9ee)}
main{max-width:1150px;margin:0 auto;padding:2rem 1.25rem}
h1{font-size:1.7rem;margin:0 0 .25rem}h2{font-size:1.15rem;margin:2rem 0 .5rem}
.answer{font-size:1.1rem;max-width:75ch}
.badge{display:inline-block;border:1px solid var(--line);border-radius:1rem;padding:.1rem .7rem;color:var(--soft)}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.35rem .6rem;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--soft);font-weight:600}
td{overflow-wrap:break-word;max-width:32rem}
footer{margin-top:2.5rem;color:var(--soft)}
"""
