"""The ceilings job: bandwidth, FLOP/s and the cost of a tiny operation of one device, in a few seconds.

A ceiling is the best of several tries, not their mean: others on the machine only ever make it lower. This file
does not know what a model makes of a device (``roofline.py``).
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mcp_core import ceilings, hardware
from mcp_core.ceilings import PRODUCTS, Ceilings, Product
from mcp_core.errors import InputError
from mcp_core.hardware import Device, Hardware
from mcp_core.jobs import Job, Outcome
from mcp_core.memory.current_device import make_current
from mcp_core.memory.switches import switches_on
from mcp_core.models.load_errors import memory_watched
from mcp_core.recipe import Switches
from mcp_core.results import now

__all__ = ["Bench", "run"]

# Far beyond any cache, and little beside what is free.
_BUFFER_BYTES = {"cpu": 2**30, "cuda": 2**32}
_OF_FREE_MEMORY = 1 / 8
# Sides of products: they grow until one takes so long that its start no longer counts.
_SIDES = {"cpu": (256, 512, 1024, 2048), "cuda": (1024, 2048, 4096, 8192)}
_LONG_ENOUGH_S = 0.05
# Fewer than a GPU lets be queued, so that starting them waits for none.
_TINY_OPERATIONS = 500
_DTYPES: dict[Product, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.int8,
}
_TF32_CAPABILITY = (8, 0)


async def run(job: Job) -> Outcome:
    """Request: device, threads (of a CPU). The result is a Ceilings, which is kept as well."""
    machine = hardware.detect()
    device = machine.device(job.request["device"])
    if device is None:
        raise InputError(f"This machine has no {job.request['device']}.", "mcp-core doctor lists its devices.")
    torch.set_num_threads(int(job.request["threads"]))
    with memory_watched(f"measuring {device.name}"):
        found = await _Measuring(job, machine, device).all()
    ceilings.keep(found)
    return Outcome("done", result=found.model_dump(mode="json"))


class _Measuring:
    """One device measured, with progress."""

    def __init__(self, job: Job, machine: Hardware, device: Device) -> None:
        self._job, self._machine, self._device = job, machine, device
        self._bench = Bench(torch.device(device.id))
        make_current(device.id)
        self._products = _products_of(device)
        self._done = 0

    async def all(self) -> Ceilings:
        bench, device, gpu = self._bench, self._device, self._device.kind == "cuda"
        free_bytes = device.memory_free_bytes * _OF_FREE_MEMORY
        size = int(min(_BUFFER_BYTES[device.kind], free_bytes))
        await self._tell("memory bandwidth")
        read, copy = bench.read_bytes_s(size), bench.copy_bytes_s(size)
        products: dict[Product, float] = {}
        for name in self._products:
            await self._tell(f"products in {name}")
            products[name] = bench.matmul_flop_s(name)
        await self._tell("tiny operations")
        return Ceilings(
            device=device.id,
            device_name=device.name,
            driver=self._machine.driver if gpu else None,
            torch=self._machine.libraries["torch"],
            threads=None if gpu else torch.get_num_threads(),
            created=now(),
            read_bytes_s=read,
            copy_bytes_s=copy,
            matmul_flop_s=products,
            op_us=bench.op_us(),
            sync_us=bench.sync_us() if gpu else None,
        )

    async def _tell(self, what: str) -> None:
        self._job.tell("measure", self._done / (len(self._products) + 2), what)
        self._done += 1
        await asyncio.sleep(0)  # where a cancellation arrives


@dataclass(frozen=True, slots=True)
class Bench:
    """Timings on one device. ``clock`` gives seconds; ``tries`` of each, after one that counts for nothing."""

    device: torch.device
    clock: Callable[[], float] = time.perf_counter
    tries: int = 5

    def best_s(self, work: Callable[[], object]) -> float:
        """The shortest of the tries, from start until the device is done."""
        self._timed(work)
        return min(self._timed(work) for _ in range(self.tries))

    def read_bytes_s(self, size: int) -> float:
        """Bytes read a second: the better of a sum and a product with a vector, over ``size`` bytes of fp32."""
        matrix = torch.ones(self._square(size), dtype=torch.float32, device=self.device)
        vector = torch.ones(matrix.shape[1], device=self.device)
        shortest = min(self.best_s(matrix.sum), self.best_s(lambda: torch.mv(matrix, vector)))
        return matrix.nbytes / shortest

    def copy_bytes_s(self, size: int) -> float:
        """Bytes read and written a second by a copy of ``size`` bytes."""
        source = torch.ones(self._square(size), dtype=torch.float32, device=self.device)
        target = torch.empty_like(source)
        return 2 * source.nbytes / self.best_s(lambda: target.copy_(source))

    def matmul_flop_s(self, name: Product) -> float:
        """2 n^3 / time of the product of two n x n matrices, the best over the sides that are tried."""
        best, multiply = 0.0, torch._int_mm if name == "int8" else torch.mm  # noqa: SLF001
        with switches_on(Switches(tf32=name == "tf32"), self.device):
            for side in _SIDES[self.device.type]:
                left = torch.ones(side, side, dtype=_DTYPES[name], device=self.device)
                right = left.t()  # as a linear layer's weight lies, and as int8 kernels want it
                elapsed_s = self.best_s(functools.partial(multiply, left, right))
                best = max(best, 2 * side**3 / elapsed_s)
                if elapsed_s > _LONG_ENOUGH_S:
                    break
        return best

    def op_us(self) -> float:
        """Time to start one tiny operation among many; on a CPU also to do it."""
        number = torch.zeros(1, device=self.device)

        def start_them() -> None:
            for _ in range(_TINY_OPERATIONS):
                number.add_(1)

        self._timed(start_them)
        shortest = min(self._timed(start_them, wait=False) for _ in range(self.tries))
        return shortest / _TINY_OPERATIONS * 1e6

    def sync_us(self) -> float:
        """One tiny operation started and waited for."""
        number = torch.zeros(1, device=self.device)
        return min(self._timed(lambda: number.add_(1)) for _ in range(50)) * 1e6

    def _timed(self, work: Callable[[], object], *, wait: bool = True) -> float:
        self._wait()
        began_s = self.clock()
        work()
        if wait:
            self._wait()
        return self.clock() - began_s

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _square(self, size: int) -> tuple[int, int]:
        columns = 4096
        return max(1, size // (4 * columns)), columns


def _products_of(device: Device) -> tuple[Product, ...]:
    """What this device multiplies with kernels of its own; a CPU has no TF32."""
    new = device.kind == "cuda" and (device.compute_capability or (0, 0)) >= _TF32_CAPABILITY
    return tuple(name for name in PRODUCTS if name != "tf32" or new)
