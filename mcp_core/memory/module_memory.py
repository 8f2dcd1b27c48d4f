"""What each module of a loaded model occupies, by its real storages; a shared one counts where it comes first.

This file does not know what a model should weigh (``models/packing.py``).
"""

from __future__ import annotations

from torch import nn

from mcp_core.memory.storage import opaque_bytes, storages_of
from mcp_core.memory_readings import ModuleMemory

__all__ = ["memory_by_module"]


def memory_by_module(model: nn.Module) -> tuple[ModuleMemory, ...]:
    """Modules that hold something of their own, in the model's order; their sum is ``storage.weights_bytes``."""
    seen: set[int] = set()
    rows = (_row(name, module, seen) for name, module in model.named_modules())
    return tuple(row for row in rows if row.bytes)


def _row(name: str, module: nn.Module, seen: set[int]) -> ModuleMemory:
    new = {storage.data_ptr(): storage.nbytes() for storage in storages_of(module)}
    size = sum(count for address, count in new.items() if address not in seen) + opaque_bytes(module)
    seen.update(new)
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in module.parameters(recurse=False)}
    return ModuleMemory(name=name, kind=type(module).__name__, bytes=size, dtype=", ".join(sorted(dtypes)))
