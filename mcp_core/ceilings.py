"""Ceilings: what a device reaches at most, measured once and kept under MCP_HOME as one JSON file each.

This file does not know how they are measured (``evaluation/ceilings_job.py``) or what a Run makes of them
(``evaluation/roofline.py``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mcp_core import paths
from mcp_core.errors import StoreError

__all__ = ["PRODUCTS", "Ceilings", "Product", "keep", "kept"]

Product = Literal["fp32", "tf32", "bf16", "fp16", "int8"]
PRODUCTS: tuple[Product, ...] = get_args(Product)


class Ceilings(BaseModel):
    """The most that one device gave in a short measurement; a CPU with so many threads."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str = Field(description="cpu or cuda:N.")
    device_name: str
    driver: str | None = Field(default=None, description="NVIDIA driver; null on a CPU.")
    torch: str = Field(description="torch's version, whose kernels were timed.")
    threads: int | None = Field(default=None, description="CPU threads; null on a GPU.")
    created: datetime
    read_bytes_s: float = Field(
        gt=0, description="Memory bandwidth, reading only: a sum or a product with a vector."
    )
    copy_bytes_s: float = Field(gt=0, description="Memory bandwidth of a copy, bytes read and written together.")
    matmul_flop_s: dict[Product, float] = Field(description="FLOP/s of a large product of matrices, by dtype.")
    op_us: float = Field(gt=0, description="Time of one tiny operation in a row of them, eager; us.")
    sync_us: float | None = Field(
        default=None, description="GPU: one tiny operation started and waited for, us; null on a CPU."
    )

    @property
    def bandwidth_bytes_s(self) -> float:
        """The larger of both bandwidths: what a floor is computed with."""
        return max(self.read_bytes_s, self.copy_bytes_s)


def keep(ceilings: Ceilings) -> None:
    """In place of earlier ones of the same device, driver, torch and threads. Raises StoreError."""
    path = paths.home("ceilings") / f"{ceilings.device.replace(':', '-')}-{_digest(ceilings)}.json"
    fresh = path.with_suffix(".new")
    fresh.write_text(ceilings.model_dump_json(indent=2) + "\n")
    fresh.replace(path)


def kept(device_names: Iterable[str], driver: str | None, torch: str | None) -> tuple[Ceilings, ...]:
    """Those of these devices that were measured with this driver and this torch, oldest first."""
    names = set(device_names)
    here = [
        each
        for each in _all()
        if each.device_name in names and each.torch == torch and each.driver in (None, driver)
    ]
    return tuple(sorted(here, key=lambda each: each.created))


def _all() -> Iterator[Ceilings]:
    try:
        found = sorted(paths.home("ceilings").glob("*.json"))
    except StoreError:
        return  # no home, no ceilings; whoever writes there says so
    for path in found:
        try:
            yield Ceilings.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            continue  # of another version, or a wreck: it is measured again


def _digest(ceilings: Ceilings) -> str:
    parts = (ceilings.device_name, ceilings.driver, ceilings.torch, ceilings.threads)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
