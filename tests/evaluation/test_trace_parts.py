from __future__ import annotations

import pytest

from mcp_core.evaluation.trace_parts import kernel_part, operator_part


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("aten::mm", "gemm"),
        ("aten::linear", "gemm"),
        ("aten::_int_mm", "gemm"),
        ("bitsandbytes::int8_linear_matmul", "gemm"),
        ("bitsandbytes::gemv_4bit", "dequantization"),
        ("bitsandbytes::dequantize_4bit", "dequantization"),
        ("bitsandbytes::int8_mm_dequant", "dequantization"),
        ("torchao::dequantize_affine", "dequantization"),
        ("torchao::choose_qparams_affine", "dequantization"),
        ("aten::_weight_int4pack_mm_for_cpu", "dequantization"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("mcp::paged_attention", "attention"),
        ("aten::index_copy_", "kv"),
        ("aten::index", "kv"),  # pages gathered
        ("aten::index_select", "elementwise"),
        ("aten::argmax", "sampling"),
        ("aten::silu", "elementwise"),
        ("aten::mul_", "elementwise"),
        ("aten::copy_", "copy"),
        ("graph_0_cpp_fused__to_copy_add_mean_mul_0", "elementwise"),
        ("aten::view", "other"),
        ("c10d::allreduce_", "communication"),
    ],
)
def test_operators(name, part):
    assert operator_part(name) == part


@pytest.mark.parametrize(
    ("types", "part"),
    [
        (["c10::BFloat16", "signed char", ""], "dequantization"),
        (["unsigned char", "c10::Half"], "dequantization"),
        (["c10::Float8_e4m3fn", "c10::BFloat16"], "dequantization"),
        (["c10::BFloat16", "float", ""], "copy"),
        ([], "copy"),
    ],
)
def test_a_conversion_of_packed_numbers_is_dequantization(types, part):
    assert operator_part("aten::copy_", types) == part


@pytest.mark.parametrize(("dimension", "part"), [("-2", "kv"), ("-1", "elementwise")])
def test_a_cache_grows_along_its_tokens(dimension, part):
    assert operator_part("aten::cat", [], ["", dimension]) == part


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("void kDequantizeBlockwise<__nv_bfloat16, 512, 64, 8, 1>(float*, unsigned char*)", "dequantization"),
        ("void kgemm_4bit_inference_naive<__nv_bfloat16, 128, 16>(int, int, int)", "dequantization"),
        ("void at::native::tinygemm_m16n8k16_chunk_kernel<...>(...)", "dequantization"),
        ("marlin::Marlin<__nv_bfloat16, 256>(int4 const*)", "dequantization"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "gemm"),
        ("nvjet_tst_64x8_64x16_4x1_v_bz_TNT", "gemm"),
        ("void cutlass::Kernel2<cutlass_80_wmma_tensorop_i161616gemm_s8>", "gemm"),
        ("void gemv2T_kernel_val<int, int, __nv_bfloat16>", "gemm"),
        ("void pytorch_flash::flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<64>>", "attention"),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80", "attention"),
        ("_attend", "attention"),
        ("_merge", "attention"),
        ("_keep", "kv"),
        ("_unpacked_vector", "dequantization"),
        ("_unpacked_rows", "dequantization"),
        ("_unpacked_sums", "dequantization"),
        ("ncclDevKernel_AllReduce_Sum_bf16_RING_LL", "communication"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add>", "elementwise"),
        ("triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_0", "elementwise"),
        ("void at::native::(anonymous namespace)::CatArrayBatchedCopy<...>", "elementwise"),
        ("void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda>", "copy"),
        ("void at::native::index_put_kernel_impl", "kv"),
        ("triton_tem_fused_mm_7", "gemm"),
        ("triton_tem_fused_flex_attention_3", "attention"),
        ("something_new", "other"),
    ],
)
def test_kernels(name, part):
    assert kernel_part(name) == part


@pytest.mark.parametrize(
    ("name", "launched_for", "part"),
    [
        ("sm80_xmma_gemm_f32f32_tf32", "attention", "attention"),  # attention by matrix products
        ("void at::native::elementwise_kernel", "dequantization", "dequantization"),
        ("void at::native::reduce_kernel<512, 1, at::native::ReduceOp<ArgMax>>", "sampling", "sampling"),
        ("void kDequantizeBlockwise", "attention", "dequantization"),  # a packed cache
        ("sm80_xmma_gemm_f32f32_tf32", "gemm", "gemm"),
        ("void at::native::elementwise_kernel", "gemm", "elementwise"),  # a bias added by a linear layer
    ],
)
def test_a_kernel_that_does_not_say_is_for_what_launched_it(name, launched_for, part):
    assert kernel_part(name, launched_for) == part
