"""Which library computes dense products of matrices: part of what a Run ran on.

This file does not know packed weights, whose kernels come with their scheme.
"""

from __future__ import annotations

import torch

__all__ = ["gemm_backend"]


def gemm_backend(device: torch.device, dtype: torch.dtype) -> str:
    """As torch would choose now: cublas, cublaslt or another that is preferred on CUDA; on a CPU mkl for fp32 and
    onednn for half precision, where torch was built with them, else its own "native" loops."""
    if device.type == "cuda":
        return str(torch.backends.cuda.preferred_blas_library()).rpartition(".")[2].lower()
    if dtype != torch.float32 and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "onednn"
    return "mkl" if torch.backends.mkl.is_available() else "native"  # type: ignore[no-untyped-call]
