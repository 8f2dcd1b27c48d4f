"""Many users as bars: how long each waited in the queue, for its prompt, and how long its reply took. Pure.

This file does not know where requests come from.
"""

from __future__ import annotations

from typing import Any

from mcp_core.crowd import CrowdRequest, CrowdRun

__all__ = ["chart_height", "crowd_chart", "parts_ms"]

_PARTS = ("queue", "prefill", "waiting", "decode", "broken off")
# At least 3:1 on the light and the dark background.
_COLOURS = ("#8a7f72", "#d9631e", "#b58105", "#2f7de1", "#d9485f")
_LEGEND_PX, _ROW_PX, _LEAST_PX, _MOST_PX = 90, 12, 190, 460


def parts_ms(request: CrowdRequest, now_ms: float) -> tuple[float, ...]:
    """How long each part of ``_PARTS`` has taken so far, ms; they add up to what has passed since it was sent.

    Queue and prefill are told apart by the worker, once the reply has ended; until then both are "waiting".
    """
    first_ms = request.first_ms
    if first_ms is None:
        gone = max(0.0, now_ms - request.sent_ms)
        broken = request.state in ("failed", "cancelled")
        return (0.0, 0.0, 0.0, 0.0, gone) if broken else (0.0, 0.0, gone, 0.0, 0.0)
    wait_ms = first_ms - request.sent_ms
    last_ms = request.last_ms if request.last_ms is not None else first_ms
    reply_ms = (now_ms if request.state == "decoding" else last_ms) - first_ms
    tail = (0.0, reply_ms) if request.state in ("failed", "cancelled") else (reply_ms, 0.0)
    if request.queue_ms is None or request.prefill_ms is None:
        return (0.0, 0.0, wait_ms, *tail)
    queue_ms = min(request.queue_ms, wait_ms)  # the rest: reading the prompt, and the way there and back
    return (queue_ms, wait_ms - queue_ms, 0.0, *tail)


def chart_height(users: int) -> int:
    """Pixels for so many bars."""
    return max(_LEAST_PX, min(_MOST_PX, _LEGEND_PX + _ROW_PX * users))


def crowd_chart(run: CrowdRun, users: int, end_s: float) -> dict[str, Any]:
    """An ECharts option: a bar a user from sent to last token, the time axis up to ``end_s``."""
    rows = [(request.sent_ms, *parts_ms(request, run.elapsed_ms)) for request in run.requests]
    rows += [(0.0,) * (1 + len(_PARTS))] * (users - len(rows))
    series = [_series("sent", [row[0] for row in rows], "rgba(0,0,0,0)", silent=True)]
    for at, (name, colour) in enumerate(zip(_PARTS, _COLOURS, strict=True), start=1):
        values = [row[at] for row in rows]
        if any(values):
            series.append(_series(name, values, colour))
    return {
        "animation": False,
        "grid": {"left": 0, "right": 12, "top": 30, "bottom": 22, "containLabel": True},
        "legend": {
            "top": 0,
            "left": 0,
            "itemWidth": 12,
            "itemHeight": 10,
            "data": [each["name"] for each in series[1:]],
        },
        "tooltip": {
            "trigger": "axis",
            "confine": True,
            "axisPointer": {"type": "shadow"},
            "valueFormatter": "%.2f s",
        },
        "xAxis": {
            "type": "value",
            "min": 0,
            "max": round(end_s, 1),
            "splitNumber": 3,
            "name": "s",
            "nameLocation": "middle",
            "nameGap": 22,
            "axisLabel": {"showMaxLabel": False, "hideOverlap": True},
        },
        "yAxis": {
            "type": "category",
            "inverse": True,
            "data": [str(index + 1) for index in range(users)],
            "axisTick": {"show": False},
        },
        "series": series,
    }


def _series(name: str, values_ms: list[float], colour: str, *, silent: bool = False) -> dict[str, Any]:
    return {
        "name": name,
        "type": "bar",
        "stack": "time",
        "barCategoryGap": "20%",
        "silent": silent,
        "itemStyle": {"color": colour},
        "data": [round(value / 1e3, 3) for value in values_ms],
    }
