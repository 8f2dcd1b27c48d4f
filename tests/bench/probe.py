"""Asks /health and /metrics of a server for some seconds, for ``http_cost.py``.

Arguments: host, port, seconds. A connection a question. Prints the milliseconds of every answer by path.
"""

from __future__ import annotations

import http.client
import json
import sys
import time

EVERY_S = 0.025
SCRAPE_EVERY = 20  # questions


def main(host: str, port: int, seconds: float) -> None:
    took: dict[str, list[float]] = {"/health": [], "/metrics": []}
    began_s = time.perf_counter()
    number = 0
    while time.perf_counter() < began_s + seconds:
        path = "/metrics" if number % SCRAPE_EVERY == SCRAPE_EVERY - 1 else "/health"
        took[path].append(ask_ms(host, port, path))
        number += 1
        time.sleep(max(0.0, began_s + number * EVERY_S - time.perf_counter()))
    print(json.dumps(took))


def ask_ms(host: str, port: int, path: str) -> float:
    began_s = time.perf_counter()
    connection = http.client.HTTPConnection(host, port, timeout=30)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert answer.status == 200, body
    return (time.perf_counter() - began_s) * 1e3


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
