from __future__ import annotations

import torch

from mcp_core.memory.gemm import gemm_backend


def test_the_library_is_the_one_that_torch_was_built_with():
    built = torch.__config__.show()
    fp32 = gemm_backend(torch.device("cpu"), torch.float32)
    assert (fp32 == "mkl") == ("BLAS_INFO=mkl" in built)
    assert gemm_backend(torch.device("cpu"), torch.bfloat16) in ("onednn", fp32)
