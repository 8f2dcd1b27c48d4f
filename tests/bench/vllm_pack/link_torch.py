"""An interpreter with the packages of SITE, and torch of the interpreter that runs this, linked in.

``SITE=/tmp/vllmsite DEST=/tmp/vllm python link_torch.py``. Nothing else of this interpreter is visible there, so
what was tried elsewhere is what runs. V5=1 takes transformers of this interpreter instead of SITE's.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from pathlib import Path

NUMERIC = ("numpy", "sympy", "mpmath", "networkx", "numba", "llvmlite", "setuptools")
TORCH = ("torch", "torchvision", "torchaudio", "triton")
PACKAGES = (*TORCH, "torchgen", "functorch", "nvidia", "cuda", *NUMERIC, "pkg_resources", "_distutils_hack")
VERSIONS = (*TORCH, "nvidia-nccl-cu13", *NUMERIC)
TRANSFORMERS_5 = ("transformers", "huggingface_hub", "tokenizers")
# DeepGEMM's headers and flashinfer are not carried: vLLM's sampler would import it, and end. Without a network the
# machine's own address is lo's.
ENVIRONMENT = {
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_USE_DEEP_GEMM": "0",
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
}


def folder_of(package: str) -> Path | None:
    """Where this interpreter has it: beside torch where there are two."""
    torch = importlib.util.find_spec("torch")
    assert torch is not None
    assert torch.origin is not None
    beside = Path(torch.origin).parent.parent / package
    if beside.is_dir():
        return beside
    spec = importlib.util.find_spec(package)
    return Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else None


def make_interpreter(destination: Path) -> Path:
    """A bare virtual environment; its folder of packages."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    base = Path(os.path.realpath(sys._base_executable))
    shutil.rmtree(destination, ignore_errors=True)
    packages = destination / "lib" / version / "site-packages"
    packages.mkdir(parents=True)
    (destination / "bin").mkdir()
    for name in ("python", "python3", version):
        (destination / "bin" / name).symlink_to(base)
    (destination / "pyvenv.cfg").write_text(f"home = {base.parent}\ninclude-system-site-packages = false\n")
    return packages


def link_packages(packages: Path, site: Path, ours: tuple[str, ...]) -> list[str]:
    """Links to folders of this interpreter that SITE has not, or that are ``ours``; names of those not found."""
    missing = []
    for name in (*PACKAGES, *ours):
        folder = folder_of(name)
        if folder is None:
            missing.append(name)
        elif name in ours or not (site / name).exists():
            (packages / name).symlink_to(folder)
            libraries = folder.with_name(f"{name}.libs")
            if libraries.is_dir():
                (packages / libraries.name).symlink_to(libraries)
    return missing


def link_versions(packages: Path, site: Path, ours: tuple[str, ...]) -> None:
    for name in (*VERSIONS, *ours):
        try:
            folder = Path(str(importlib.metadata.distribution(name)._path))
        except importlib.metadata.PackageNotFoundError:
            continue
        if folder.is_dir() and (name in ours or not list(site.glob(f"{name}-*.dist-info"))):
            (packages / folder.name).symlink_to(folder)


def main() -> None:
    site, destination = Path(os.environ["SITE"]), Path(os.environ["DEST"])
    ours = TRANSFORMERS_5 if os.environ.get("V5") else ()
    packages = make_interpreter(destination)
    missing = link_packages(packages, site, ours)
    link_versions(packages, site, ours)
    (packages / "vllm_site.pth").write_text(f"{site}\n")
    (packages / "vllm_env.pth").write_text(
        f"import os; [os.environ.setdefault(*it) for it in {ENVIRONMENT}.items()]\n"
    )
    print("linked into", packages, "; not there:", missing or "nothing")


if __name__ == "__main__":
    main()
