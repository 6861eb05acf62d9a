"""The checks of one machine: real files, and programs that stand in for nvidia-smi and dmesg."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from titan_recipes.launch import node_checks
from titan_recipes.launch.node_checks import (
    XID_HOURS,
    Finding,
    check_folder,
    check_gpus,
    check_locked_memory,
    check_shm,
    check_xids,
    torch_build,
)

TORCH = {"__version__": "2.13.0+cu128", "cuda": "12.8"}
GPU = """<gpu id="00000000:{number:02X}:00.0">
  <product_name>NVIDIA H100 80GB HBM3</product_name> <uuid>GPU-{number}</uuid>
  <ecc_errors>
    <volatile>
      <sram_correctable>7</sram_correctable>
      <sram_uncorrectable_parity>0</sram_uncorrectable_parity>
      <dram_uncorrectable>{ecc}</dram_uncorrectable>
    </volatile>
    <aggregate><dram_uncorrectable>12</dram_uncorrectable></aggregate>
  </ecc_errors>
  <retired_pages><pending_retirement>N/A</pending_retirement></retired_pages>
  <remapped_rows>
    <remapped_row_unc>3</remapped_row_unc>
    <remapped_row_pending>{pending}</remapped_row_pending>
    <remapped_row_failure>No</remapped_row_failure>
  </remapped_rows>
  <gpu_recovery_action>{action}</gpu_recovery_action>
</gpu>"""
NVIDIA_SMI = """#!{python}
import sys
if sys.argv[1:] == ["-L"]:
    for number in range({count}):
        print(f"GPU {{number}}: NVIDIA H100 80GB HBM3 (UUID: GPU-{{number}})")
elif sys.argv[1:] == ["-q", "-x"]:
    print({xml!r})
else:
    print("Invalid combination of input arguments.")
    sys.exit(1)
"""
DMESG = """#!/bin/sh
[ $# = 0 ] || { echo "dmesg: unknown argument" >&2; exit 1; }
cat <<'END'
[    1.000000] Linux version 6.1
[ 5000.123456] NVRM: Xid (PCI:0000:01:00): 31, pid=7, name=python, MMU fault
END
"""


def gpu(number: int, ecc: str = "0", pending: str = "No", action: str = "None") -> str:
    return GPU.format(number=number, ecc=ecc, pending=pending, action=action)


def install(folder: Path, *gpus: str, cuda: str = "12.8") -> None:
    """An nvidia-smi, and a dmesg, first on PATH."""
    folder.mkdir(exist_ok=True)
    versions = f"<driver_version>570.1</driver_version><cuda_version>{cuda}</cuda_version>"
    xml = f'<?xml version="1.0" ?><nvidia_smi_log>{versions}{"".join(gpus)}</nvidia_smi_log>'
    text = NVIDIA_SMI.format(python=sys.executable, count=len(gpus), xml=xml)
    for name, program in (("nvidia-smi", text), ("dmesg", DMESG)):
        (folder / name).write_text(program)
        (folder / name).chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "programs"
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return folder


def by_name(wanted: int = 2, plan: str = "h100") -> dict[str, Finding]:
    return {finding.name: finding for finding in check_gpus(plan, wanted, TORCH)}


def test_gpus_when_all_is_well_are_good(programs: Path) -> None:
    install(programs, gpu(0), gpu(1))
    assert {name: (one.ok, one.seen) for name, one in by_name().items()} == {
        "GPUs": (True, "2 GPU(s)"),
        "GPU health": (True, "NVIDIA H100 80GB HBM3"),
        "driver": (True, "driver 570.1 (CUDA 12.8), torch 2.13.0+cu128 (CUDA 12.8)"),
        "Xid errors": (True, "none of hardware in the last 24 h"),
    }


def test_gpus_when_one_is_missing_says_how_many(programs: Path) -> None:
    install(programs, gpu(0))
    found = by_name()["GPUs"]
    assert (found.ok, found.seen) == (False, "1 GPU(s), the plan wants 2")


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (gpu(1, ecc="2"), "2 uncorrected memory error(s) since the driver was loaded"),
        (gpu(1, pending="Yes"), "memory rows wait to be remapped"),
        (gpu(1, action="Reset"), 'the driver asks for "Reset"'),
    ],
)
def test_health_when_a_gpu_is_bad_names_it(programs: Path, bad: str, words: str) -> None:
    install(programs, gpu(0), bad)
    found = by_name()["GPU health"]
    assert (found.ok, found.seen) == (False, f"GPU 00000000:01:00.0: {words}")


@pytest.mark.parametrize("shown", ["0", "GPU-0"])
def test_health_when_the_bad_gpu_is_another_jobs_is_good(
    programs: Path, monkeypatch: pytest.MonkeyPatch, shown: str
) -> None:
    install(programs, gpu(0), gpu(1, ecc="2"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    assert by_name(wanted=1)["GPU health"].ok
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert not by_name(wanted=1)["GPU health"].ok


def test_health_when_nvidia_smi_fails_repeats_its_words(programs: Path) -> None:
    install(programs, gpu(0))
    script = programs / "nvidia-smi"
    lost = "Unable to determine the device handle for GPU0000:01:00.0: Unknown Error"
    failing = f'elif sys.argv[1:] == ["-q", "-x"]:\n    print("{lost}")\n    sys.exit(15)\nelif 0:'
    script.write_text(script.read_text().replace('elif sys.argv[1:] == ["-q", "-x"]:', failing))
    found = by_name(wanted=1)["GPU health"]
    assert (found.ok, found.seen) == (False, f"nvidia-smi ended with 15: {lost}")


def test_driver_when_older_than_torchs_cuda_is_bad(programs: Path) -> None:
    install(programs, gpu(0), gpu(1), cuda="11.4")
    found = by_name()["driver"]
    assert not found.ok
    assert found.seen.endswith("torch 2.13.0+cu128 (CUDA 12.8): the driver is too old")
    install(programs, gpu(0), gpu(1), cuda="12.0")  # CUDA's minor version compatibility
    assert by_name()["driver"].ok


def test_driver_when_torch_has_no_cuda_is_bad(programs: Path) -> None:
    install(programs, gpu(0))
    found = {one.name: one for one in check_gpus("any", 1, {"__version__": "2.13.0+cpu"})}
    assert found["driver"].seen.endswith("but torch 2.13.0+cpu has no CUDA")
    assert not found["driver"].ok


def test_gpus_when_the_plan_uses_none_are_not_looked_at(programs: Path) -> None:
    install(programs, gpu(0, ecc="5"))
    assert by_name(plan="cpu") == {"GPUs": Finding("GPUs", True, "the plan uses none")}


def test_xids_of_hardware_count_for_a_day_and_those_of_programs_never() -> None:
    log = (
        "[  100.5] NVRM: Xid (PCI:0000:02:00): 79, pid=1, GPU has fallen off the bus.\n"
        "[ 9000.5] NVRM: Xid (PCI:0000:03:00): 31, pid=1, MMU fault\n"
        "[ 9001.5] host kernel: NVRM: Xid (PCI:0000:04:00 GPU-I:05): 94, pid=1, Contained\n"
    )
    found = check_xids(log, 9100.0)
    assert not found.ok
    assert found.seen == (
        "Xid 79 (fell off the bus) of GPU 0000:02:00; "
        "Xid 94 (uncorrected memory error, contained) of GPU 0000:04:00"
    )
    later = check_xids(log, 5000.0 + XID_HOURS * 3600)
    assert later.seen == "Xid 94 (uncorrected memory error, contained) of GPU 0000:04:00"
    assert check_xids(log, 1e6).ok
    assert check_xids(None, 1e6).ok


def test_torch_build_reads_the_version_without_importing_torch() -> None:
    code = (
        "import sys; from titan_recipes.launch.node_checks import torch_build as t;"
        "print(t()['__version__'], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{torch_build()['__version__']} False\n"
    import torch

    assert torch_build()["__version__"] == torch.__version__
    assert torch_build().get("cuda") == torch.version.cuda


@pytest.mark.skipif(os.geteuid() != 0, reason="capabilities are taken from root")
def test_has_capability_when_it_was_dropped_says_no() -> None:
    code = "from titan_recipes.launch.node_checks import *; print(has_capability(CAP_IPC_LOCK))"
    program = [sys.executable, "-c", code]
    kept, dropped = (
        subprocess.run([*words, *program], capture_output=True, text=True, check=True).stdout
        for words in ((), ("setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock"))
    )
    assert (kept, dropped) == ("True\n", "False\n")


def test_check_locked_memory_when_rdma_devices_meet_a_limit_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at_limit(limit: int, *, capable: bool = False) -> Finding:
        monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, limit))
        monkeypatch.setattr(node_checks, "has_capability", lambda number: capable)
        return check_locked_memory(tmp_path)

    assert at_limit(8 << 20).ok  # nobody registers anything
    (tmp_path / "uverbs0").touch()
    assert at_limit(resource.RLIM_INFINITY).ok
    assert at_limit(8 << 20, capable=True).ok
    found = at_limit(8 << 20)
    assert (found.ok, found.seen) == (False, "RDMA devices, but only 8 MiB may be locked")


def test_shm_when_too_small_says_how_much_is_free() -> None:
    assert check_shm(0.0).ok
    found = check_shm(1e6)
    assert not found.ok
    assert found.seen.startswith("/dev/shm has ")
    assert found.seen.endswith(" GiB free, 1e+06 are wanted")


def test_folder_when_it_can_be_made_leaves_nothing_behind(tmp_path: Path) -> None:
    assert check_folder(tmp_path / "not" / "yet").ok
    assert list(tmp_path.iterdir()) == []


def test_folder_when_it_can_not_be_written_is_bad(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = check_folder(tmp_path / "file")
    assert (found.ok, found.seen) == (False, f"can't write into {tmp_path}/file: Not a directory")
    assert not check_folder(Path("/proc/1")).ok


def doctor(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "titan_recipes.cli", "doctor", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_doctor_when_all_is_well_prints_a_table_and_exits_0() -> None:
    done = doctor("llama3_debug", "--plan", "cpu1", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["ok"] is True
    table = doctor("llama3_debug", "--plan", "cpu1").stdout.splitlines()
    assert table[0].split() == ["CHECK", "STATE", "SEEN", "CURE"]
    assert {line.split()[0] for line in table[1:]} >= {"GPUs", "shared", "folder", "packages"}


def test_doctor_when_gpus_are_missing_exits_2_but_not_on_a_login_node(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(programs, gpu(0))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    done = doctor("llama3_8b", "--plan", "h100x8", "--json")
    found = {one["name"]: one for one in json.loads(done.stdout)["findings"]}
    assert done.returncode == 2
    assert found["GPUs"]["seen"] == "1 GPU(s), the plan wants 8"
    profile = tmp_path / "lab.toml"
    profile.write_text(f'scheduler = "slurm"\noutputs = "{tmp_path}"\n')
    for job_id, ok in (("", True), ("7", False)):
        if job_id:
            monkeypatch.setenv("SLURM_JOB_ID", job_id)
        done = doctor("llama3_8b", "--plan", "h100x8", "--cluster", str(profile), "--json")
        found = {one["name"]: one for one in json.loads(done.stdout)["findings"]}
        assert found["GPUs"]["ok"] is ok
