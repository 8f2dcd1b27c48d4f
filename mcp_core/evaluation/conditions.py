"""Conditions: what the machine was like while a Run was measured, from its telemetry, in a few figures.

This file does not know how telemetry is taken (``run_recorder.py``) or which conditions may be compared.
"""

from __future__ import annotations

from collections.abc import Iterator

from mcp_core.hardware import Hardware
from mcp_core.monitoring.nvml import POWER_CAP, throttle_names
from mcp_core.monitoring.run_telemetry import RunTelemetry
from mcp_core.monitoring.series import device_scope
from mcp_core.results import Conditions, DeviceConditions, Effective

__all__ = ["caps_itself", "conditions", "device_conditions", "incomparable", "own_clock_mhz", "remarks"]

# A throttled share of time below this is a sample or two.
MOST_THROTTLED = 0.05
_CAP = throttle_names(POWER_CAP)


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
    yield from _held_down(device)
    if device.others_memory_bytes:
        yield f"shared device: other processes held {device.others_memory_bytes / 1e9:.2f} GB of its memory"


def remarks(found: Conditions | None) -> Iterator[str]:
    """What to know of these conditions beside whatever keeps the figures from being compared.

    A card at a power limit that nobody lowered runs this configuration like that wherever it is deployed.
    """
    device = found.device if found else None
    if device is None or not caps_itself(device) or (device.power_capped or 0.0) <= MOST_THROTTLED:
        return
    clock = "" if device.sm_clock_mhz is None else f", mean SM clock {device.sm_clock_mhz:,.0f} MHz"
    if clock and device.uncapped_clock_mhz is not None:
        clock += f" ({device.uncapped_clock_mhz:,.0f} MHz without the cap)"
    limit, default = f"{device.power_limit_w:,.0f} W", f"{device.power_limit_default_w:,.0f} W"
    own = "the card's own" if limit == default else f"above the card's own {default}"
    yield f"power cap: at the limit of {limit}, {own}, {device.power_capped:.0%} of the time{clock}"


def own_clock_mhz(found: Conditions | None) -> float | None:
    """The SM clock by which a Run is set beside another: its mean, what a card's own power cap took from it apart.

    None where nothing tells it: not measured, or the cap always held the clock and nothing else did.
    """
    device = found.device if found else None
    if device is None:
        return None
    if not device.power_capped or not caps_itself(device):
        return device.sm_clock_mhz
    if device.uncapped_clock_mhz is not None:
        return device.uncapped_clock_mhz
    return None if set(device.throttle_reasons) <= set(_CAP) else device.sm_clock_mhz


def caps_itself(device: DeviceConditions) -> bool:
    """Whether a software power cap is the card's own: of a limit not below the one that the card came with."""
    return device.slowed is not None and device.power_limit_lowered is False


def _held_down(device: DeviceConditions) -> Iterator[str]:
    share, reasons, set_lower = device.throttled, device.throttle_reasons, ""
    if caps_itself(device):
        share, reasons = device.slowed, tuple(each for each in reasons if each not in _CAP)
    elif device.power_limit_lowered:
        default = device.power_limit_default_w
        set_lower = f"; the limit was {device.power_limit_w:,.0f} W, below the card's own {default:,.0f} W"
    if share is not None and share > MOST_THROTTLED:
        why = ", ".join(reasons) or "NVML gives no reason"
        yield f"throttled: clocks were held down {share:.0%} of the time ({why}{set_lower})"


def _device(telemetry: RunTelemetry, effective: Effective | None) -> DeviceConditions | None:
    kind, _, number = (effective.device if effective else "").partition(":")
    scope = device_scope(int(number or 0))
    return device_conditions(telemetry, scope) if kind == "cuda" and scope in telemetry.labels else None


def device_conditions(telemetry: RunTelemetry, scope: str) -> DeviceConditions:
    """Of the device of that scope."""
    shares = [telemetry.mean(f"{scope}.{name}") for name in ("power_throttled", "thermal_throttled", "slowed")]
    known = [share for share in shares if share is not None]
    return DeviceConditions(
        sm_clock_mhz=telemetry.mean(f"{scope}.sm_clock_mhz"),
        memory_clock_mhz=telemetry.mean(f"{scope}.memory_clock_mhz"),
        power_w=telemetry.mean(f"{scope}.power_w"),
        power_limit_w=telemetry.lowest(f"{scope}.power_limit_w"),
        power_limit_default_w=telemetry.highest(f"{scope}.power_limit_default_w"),
        temperature_c=telemetry.highest(f"{scope}.temperature_c"),
        throttled=max(known, default=None),
        power_capped=telemetry.mean(f"{scope}.power_capped"),
        slowed=telemetry.mean(f"{scope}.slowed"),
        uncapped_clock_mhz=_uncapped_clock_mhz(telemetry, scope),
        throttle_reasons=telemetry.throttle_reasons.get(scope, ()),
        others_memory_bytes=_whole(telemetry.highest(f"{scope}.others_memory_bytes")),
    )


def _uncapped_clock_mhz(telemetry: RunTelemetry, scope: str) -> float | None:
    """At points that have no cap, nor have those beside them: the cap and the clock are not read at one instant."""
    capped = telemetry.gauges.get(f"{scope}.power_capped", ())
    clocks = telemetry.gauges.get(f"{scope}.sm_clock_mhz", ())
    near = [any(capped[max(0, at - 1) : at + 2]) for at in range(len(capped))]
    free = [clock for clock, cap in zip(clocks, near, strict=False) if clock is not None and not cap]
    return sum(free) / len(free) if free else None


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
