"""A thread's CUDA calls go to the device that is made current; a CPU has no such state."""

from __future__ import annotations

import pytest
import torch

from mcp_core.memory.current_device import make_current


@pytest.mark.parametrize(("device", "set_to"), [("cpu", []), ("cuda:1", [torch.device("cuda:1")])])
def test_only_cuda_has_a_current_device(
    monkeypatch: pytest.MonkeyPatch, device: str, set_to: list[torch.device]
) -> None:
    calls: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", calls.append)
    make_current(device)
    assert calls == set_to
