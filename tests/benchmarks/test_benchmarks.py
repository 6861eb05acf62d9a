"""The benchmarks run small on a CPU, and what they write holds what they promise."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

sys.path.append(str(BENCHMARKS))

from trace_time import breakdown, class_of_kernel, class_of_operator, longest  # noqa: E402


def run(script: str, output: Path, *options: str) -> tuple[str, dict[str, Any]]:
    """What a benchmark prints, and the JSON that it writes."""
    command = [sys.executable, str(BENCHMARKS / script), "--write", str(output), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads(output.read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == written
    assert {"card", "cores", "date", "installed", "python", "revision"} <= written.keys()
    return done.stdout, written


# --- the scripts ------------------------------------------------------------------------------


def test_versus_without_torchtitan_compares_the_others_and_names_it(tmp_path: Path) -> None:
    options = ["--programs", "ours,torchtitan,bare", "--peers", str(tmp_path / "none")]
    options += ["--rounds", "2", "--steps", "2", "--seq-len", "32", "--precision", "fp32"]

    printed, figures = run("versus.py", tmp_path / "versus.json", *options)

    assert figures["left_out"].keys() == {"torchtitan"}
    assert "No module named 'torchtitan'" in figures["left_out"]["torchtitan"]
    assert "torchtitan: left out: exit 1" in printed
    assert figures["rounds"] == 2
    assert figures["parameters"] == 6_163_712
    ratios = (figures["ratios"], figures["ratios_by_cpu_time"])
    assert all(0.05 < ratio["ours/bare"] < 20 for ratio in ratios)
    # The same weights and tokens: in float32 even the fifth step is the same.
    logged = [figures["programs"][name]["loss_and_grad_norm"] for name in ("ours", "bare")]
    assert figures["same_math"]
    assert logged[0]["1"] == pytest.approx(logged[1]["1"], rel=1e-4)
    assert logged[0]["5"] == pytest.approx(logged[1]["5"], rel=1e-4)
    assert logged[0]["1"][0] != logged[0]["5"][0]


def test_gpu_single_on_a_cpu_measures_rows_and_names_those_it_can_not(tmp_path: Path) -> None:
    rows = "debug eager 32,nosuch eager 32"

    printed, figures = run(
        "gpu_single.py",
        tmp_path / "single.json",
        *("--device", "cpu", "--rows", rows, "--row-seconds", "0.1"),
    )

    (row,) = figures["rows"]
    assert (row["row"], row["batch"], row["ac"]) == ("debug eager 32", 2, "none")
    flops = figures["rows"][0]["tflops"] * 1e12 / row["tokens_per_second"]
    assert flops == pytest.approx(6 * (6_163_712 - 2048 * 256) + 6 * 2 * 256 * 32 * 6)
    assert row["share_of_ceiling"] == pytest.approx(row["tflops"] / figures["ceiling"]["best"])
    assert row["peak_gib"]["rss"] > 0.1
    assert 'nosuch eager 32: left out: no recipe "llama3_nosuch"' in printed


def test_step_breakdown_on_a_cpu_adds_up_to_the_step(tmp_path: Path) -> None:
    options = ["--seq-len", "32", "--steps", "2"]

    printed, figures = run("step_breakdown.py", tmp_path / "step.json", *options)

    assert sum(figures["shares"].values()) == pytest.approx(1, abs=1e-3)
    for name in ("attention", "matmul", "optimizer", "other", "host"):
        assert figures["shares"][name] > 0, name
    assert figures["shares"]["collectives exposed"] == 0
    assert "aten::mm" in printed


# --- traces -----------------------------------------------------------------------------------


def event(cat: str, name: str, start: float, end: float, tid: int = 1) -> dict[str, Any]:
    """A complete event of a Chrome trace."""
    return {"ph": "X", "cat": cat, "name": name, "ts": start, "dur": end - start, "tid": tid}


def test_breakdown_of_kernels_counts_only_collectives_that_nothing_hides() -> None:
    events = [
        event("user_annotation", "benchmark step", 0, 100),
        event("kernel", "nvjet_hsh_128x256", 0, 20, tid=7),
        event("kernel", "ncclDevKernel_AllGather_RING_LL", 10, 40, tid=9),
        event("kernel", "flash_fwd_kernel<cutlass>", 30, 45, tid=7),
        event("gpu_user_annotation", "Optimizer.step#AdamW.step", 50, 60, tid=7),
        event("kernel", "vectorized_elementwise_kernel", 50, 60, tid=7),
        event("kernel", "triton_poi_fused_mm_mul_0", 60, 65, tid=7),
        event("kernel", "nvjet_after_the_step", 100, 120, tid=7),
    ]

    found = breakdown(events)

    assert found == {
        "wall": 100,
        "attention": 15,
        "matmul": 20,
        "collectives exposed": 10,
        "optimizer": 10,
        "other": 5,
        "host": 40,
    }


def test_breakdown_of_operators_counts_each_without_those_it_calls() -> None:
    events = [
        event("user_annotation", "benchmark step", 0, 100),
        event("cpu_op", "aten::linear", 10, 40),
        event("cpu_op", "aten::t", 10, 15),
        event("cpu_op", "aten::scaled_dot_product_attention", 40, 60),
        event("cpu_op", "aten::mm", 45, 50),
        event("user_annotation", "Optimizer.step#AdamW.step", 60, 80),
        event("cpu_op", "aten::mul_", 65, 70),
        event("cpu_op", "aten::mm", 0, 100, tid=2),
    ]

    found = breakdown(events)

    assert [found[name] for name in ("matmul", "other", "attention", "optimizer", "host")] == [
        *(25, 5, 20, 20, 30)
    ]
    assert longest(events, 1) == [("aten::linear", "matmul", 25)]


def test_breakdown_without_an_annotated_step_says_so() -> None:
    with pytest.raises(ValueError, match="no annotated step"):
        breakdown([event("cpu_op", "aten::mm", 0, 1)])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sm90_xmma_gemm_bf16bf16", "matmul"),
        ("void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16>", "matmul"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma", "attention"),
        ("triton_tem_fused_flex_attention_2", "attention"),
        ("triton_tem_fused_mm_3", "matmul"),
        ("triton_red_fused__to_copy_mm_4", "other"),
        ("multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer"),
        ("ncclDevKernel_ReduceScatter_Sum_f32_RING_LL", "collectives exposed"),
    ],
)
def test_class_of_kernel_by_name(name: str, expected: str) -> None:
    assert class_of_kernel(name) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("aten::addmm", "matmul"),
        ("aten::addmm_", "matmul"),
        ("aten::mm", "matmul"),
        ("mkldnn::_linear_pointwise", "matmul"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("aten::_fused_adamw_", "optimizer"),
        ("c10d::allreduce_", "collectives exposed"),
        ("RegisterPostBackwardFunctionBackward", "collectives exposed"),
        ("aten::mul", "other"),
    ],
)
def test_class_of_operator_by_name(name: str, expected: str) -> None:
    assert class_of_operator(name) == expected
