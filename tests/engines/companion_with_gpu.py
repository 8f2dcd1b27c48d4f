"""``mcp_core.serving.foreign`` on a machine that seems to have an H100."""

from __future__ import annotations

from mcp_core import hardware
from mcp_core.monitoring.fake_nvml import FakeDevice, FakeNvml
from mcp_core.monitoring.nvml import read_devices
from mcp_core.serving import foreign, foreign_memory

# Readings: the machine's, before the server, then with it. A container hides whose memory it is.
NVML = FakeNvml((FakeDevice(memory_used_bytes=(10**9, 10**9, 9 * 10**9), processes=(None,)),))


def read() -> object:
    return read_devices(NVML)


if __name__ == "__main__":
    hardware.read_devices = foreign_memory.read_devices = read
    foreign.end_as_the_server_did(foreign.main())
