"""Conditions: what the machine was like while a Run was measured, from its telemetry, in a few figures.

This file does not know how telemetry is taken (``run_recorder.py``) or which conditions may be compared.
"""

from __future__ import annotations

from collections.abc import Iterator

from mcp_core.hardware import Hardware
from mcp_core.monitoring.run_telemetry import RunTelemetry
from mcp_core.monitoring.series import device_scope
from mcp_core.results import Conditions, DeviceConditions, Effective

__all__ = ["conditions", "incomparable"]

# A throttled share of time below this is a sample or two.
MOST_THROTTLED = 0.05


def conditions(
    telemetry: RunTelemetry | None, hardware: Hardware, effective: Effective | None
) -> Conditions | None:
    """None where nothing was recorded."""
    if telemetry is None:
        return None
    ceilings = hardware.ceilings_of(effective.device, effective.threads) if effective else None
    return Conditions(
        load_average=telemetry.mean("host.load_average"),
        others_cores=telemetry.mean("host.others_cores"),
        launch_us=ceilings.op_us if ceilings else None,
        device=_device(telemetry, effective),
    )


def incomparable(found: Conditions | None) -> Iterator[str]:
    """Why figures taken under these conditions may not be set beside others."""
    device = found.device if found else None
    if device is None:
        return
    if device.throttled is not None and device.throttled > MOST_THROTTLED:
        why = ", ".join(device.throttle_reasons) or "NVML gives no reason"
        yield f"throttled: clocks were held down {device.throttled:.0%} of the time ({why})"
    if device.others_memory_bytes:
        yield f"shared device: other processes held {device.others_memory_bytes / 1e9:.2f} GB of its memory"


def _device(telemetry: RunTelemetry, effective: Effective | None) -> DeviceConditions | None:
    kind, _, number = (effective.device if effective else "").partition(":")
    scope = device_scope(int(number or 0))
    if kind != "cuda" or scope not in telemetry.labels:
        return None
    shares = [telemetry.mean(f"{scope}.{name}") for name in ("power_throttled", "thermal_throttled")]
    known = [share for share in shares if share is not None]
    return DeviceConditions(
        sm_clock_mhz=telemetry.mean(f"{scope}.sm_clock_mhz"),
        memory_clock_mhz=telemetry.mean(f"{scope}.memory_clock_mhz"),
        power_w=telemetry.mean(f"{scope}.power_w"),
        power_limit_w=telemetry.lowest(f"{scope}.power_limit_w"),
        temperature_c=telemetry.highest(f"{scope}.temperature_c"),
        throttled=max(known, default=None),
        throttle_reasons=telemetry.throttle_reasons.get(scope, ()),
        others_memory_bytes=_whole(telemetry.highest(f"{scope}.others_memory_bytes")),
    )


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
