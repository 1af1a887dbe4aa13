"""Where an iteration's time goes: what the profiler names is told apart by kind of work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sparsewm.evaluation.profile import kernel_part, operation_part, profile_iterations
from tests.model.test_problem import candidates, make_problem
from tests.model.tiny import tiny_model


@pytest.mark.parametrize(
    ("kernel", "part"),
    [
        ("attend", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x64_4x1x1", "attention"),
        ("modulate", "residual, norm, modulation"),
        ("nvjet_sm90_tst_128x224_64x4_1x2_h_bz_coopA_bias_TNT", "linear layers"),
        ("void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_32x32>", "linear layers"),
        ("Memcpy HtoD (Pageable -> Device)", "copies"),
        ("void at::native::elementwise_kernel<128, 4, direct_copy_kernel_cuda(at::TensorIteratorB", "copies"),
        ("void at::native::elementwise_kernel<128, 4, CUDAFunctor_add<float> >", "other operations"),
        ("rollout and cost", None),
        ("sparsewm::attend", None),
    ],
)
def test_kernels_are_told_apart(kernel: str, part: str | None) -> None:
    assert kernel_part(kernel) == part


def test_operations_are_told_apart() -> None:
    names = ("aten::mm", "sparsewm::advance", "aten::sort", "new mask")
    parts = ["linear layers", "all layers of a frame", "other operations", None]
    assert [operation_part(x) for x in names] == parts


def test_a_profile_accounts_for_all_of_an_iteration(tmp_path: Path) -> None:
    model = tiny_model()
    problem = make_problem(model, drop=0.5)
    with torch.inference_mode():
        rows = profile_iterations(problem, candidates(model), tmp_path / "trace.json", iterations=2)
    assert sum(row["share"] for row in rows) == pytest.approx(1.0, abs=0.05)
    assert [row["seconds"] for row in rows] == sorted((row["seconds"] for row in rows), reverse=True)
    assert (tmp_path / "trace.json").stat().st_size > 1000
