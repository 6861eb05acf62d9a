"""Checks of one machine before it trains: GPUs and their health, driver, shared memory, folders.

Each check looks at what is there and returns a Finding; none of them imports torch, changes the
machine or takes more than a minute. What can't be read here (no nvidia-smi, a kernel log for root
alone) is no fault of the node: its finding is good and says so.

What nvidia-smi counts is explained in NVIDIA's "GPU Memory Error Management", what the kernel log
says in its "Xid Errors" (docs.nvidia.com/deploy).
"""

import os
import re
import resource
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from xml.etree.ElementTree import Element

from titan_recipes.config.data_root import install_command
from titan_recipes.config.hardware import ANY_GPU, NO_GPU
from titan_recipes.errors import LaunchError
from titan_recipes.launch.machine import check_trainer, num_gpus

PROGRAM_SECONDS = 60.0  # nvidia-smi takes seconds on eight GPUs, and for ever on a lost one
XID_HOURS = 24.0  # an older error was most likely seen to: the GPU was reset, or replaced
XIDS = {
    48: "uncorrected memory error",
    62: "the GPU's controller halted",
    64: "a memory row can't be remapped",
    74: "NVLink error",
    79: "fell off the bus",
    94: "uncorrected memory error, contained",
    95: "uncorrected memory error, not contained",
    119: "the GPU's system processor does not answer",
    120: "the GPU's system processor failed",
    140: "uncorrected memory error",
}
"""Xid errors of hardware; the others are mostly a program's own, such as 13, 31, 43 and 45."""
XID_LINE = re.compile(r"^\[\s*(\d+\.\d+)\].*NVRM: Xid \(PCI:([\da-fA-F:.]+)[^)]*\): (\d+)", re.M)
VERSION_LINE = re.compile(r"^(\w+)(?::[^=\n]+)? = '([^'\n]*)'", re.MULTILINE)
SHM = Path("/dev/shm")
RDMA_DEVICES = Path("/dev/infiniband")
CAP_IPC_LOCK = 14
"""Locks memory beyond any limit."""
ROCM = ("mi",)  # AMD's GPUs, by the start of their names in the hardware table
LOOK_ELSEWHERE = "take another node"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check saw. cure: what to do about it, where it is not good."""

    name: str
    ok: bool
    seen: str
    cure: str = ""


def check_node(
    gpu: str, num_wanted: int | None, min_shm_gib: float, folders: Sequence[Path]
) -> list[Finding]:
    """Every check of this machine.

    gpu: the plan's, "cpu" for none; num_wanted: GPUs that ranks here need, None = not known;
    folders: where a run writes to.
    """
    torch = torch_build()
    return [
        *check_gpus(gpu, num_wanted, torch),
        check_shm(min_shm_gib),
        check_locked_memory(),
        *(check_folder(folder) for folder in folders),
    ]


# --- GPUs -----------------------------------------------------------------------------------------


def check_gpus(gpu: str, num_wanted: int | None, torch: dict[str, str]) -> Iterator[Finding]:
    """Count, health, kernel log and driver, as far as the plan's GPU and the machine have them."""
    if gpu == NO_GPU:
        yield Finding("GPUs", True, "the plan uses none")
        return
    if gpu.startswith(ROCM):
        yield Finding("GPUs", True, "AMD's are not looked at")
        return
    present = num_gpus()
    yield check_count(gpu, num_wanted, present)
    if not present:
        return
    report = read_nvidia_smi()
    if isinstance(report, Element):
        yield check_health(visible(list(report.iter("gpu"))))
        yield check_driver(report, torch)
    elif report:
        yield Finding("GPU health", False, report, "reset the GPU, or reboot the node")
    else:
        yield Finding("GPU health", True, "not known: no nvidia-smi here")
    yield check_xids(read_kernel_log(), uptime_seconds())


def check_count(gpu: str, num_wanted: int | None, present: int) -> Finding:
    """A plan for any GPU runs on the CPU where there are none at all."""
    enough = num_wanted is None or present >= num_wanted or (gpu == ANY_GPU and not present)
    seen = f"{present or 'no'} GPU(s)"
    if enough:
        return Finding("GPUs", True, seen)
    cure = f"nvidia-smi -L and CUDA_VISIBLE_DEVICES say why; else {LOOK_ELSEWHERE}"
    return Finding("GPUs", False, f"{seen}, the plan wants {num_wanted}", cure)


def read_nvidia_smi() -> Element | str:
    """All that nvidia-smi knows, as its XML; else how it failed, "" where it is not installed."""
    try:
        asked = subprocess.run(
            ["nvidia-smi", "-q", "-x"],
            capture_output=True,
            text=True,
            timeout=PROGRAM_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        return ""
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi: {error}"
    try:
        return ElementTree.fromstring(asked.stdout)
    except ElementTree.ParseError:
        words = (asked.stdout + asked.stderr).strip().splitlines()
        return f"nvidia-smi ended with {asked.returncode}: {words[0] if words else ''}"


def visible(gpus: list[Element]) -> list[Element]:
    """Those of nvidia-smi's GPUs that CUDA_VISIBLE_DEVICES leaves, by number or UUID."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None or "MIG" in listed:
        return gpus
    words = [word.strip() for word in listed.split(",")]
    numbers = {int(word) for word in words if word.isdecimal()}
    uuids = tuple(word for word in words if word.startswith("GPU-"))
    return [
        gpu
        for number, gpu in enumerate(gpus)
        if number in numbers or (uuids and gpu.findtext("uuid", "").startswith(uuids))
    ]


def check_health(gpus: Sequence[Element]) -> Finding:
    """Uncorrected memory errors, and repairs that wait for a reset."""
    problems: list[str] = []
    for gpu in gpus:
        name = gpu.get("id") or gpu.findtext("uuid", "?")
        problems += [f"GPU {name}: {what}" for what in gpu_problems(gpu)]
    if problems:
        cure = "reset the GPU (nvidia-smi --gpu-reset, or reboot); if it comes back, replace it"
        return Finding("GPU health", False, "; ".join(problems), cure)
    names = sorted({gpu.findtext("product_name", "unknown") for gpu in gpus})
    return Finding("GPU health", True, ", ".join(names))


def gpu_problems(gpu: Element) -> Iterator[str]:
    """What one GPU of nvidia-smi's XML reports, in words."""
    volatile = gpu.find("ecc_errors/volatile")
    counts = volatile.iter() if volatile is not None else ()
    errors = sum(int(count.text or 0) for count in counts if _counts_uncorrected(count))
    if volatile is not None:  # GPUs before Ampere
        before = volatile.findtext("double_bit/total", "")
        errors += int(before) if before.isdecimal() else 0
    if errors:
        yield f"{errors} uncorrected memory error(s) since the driver was loaded"
    for path, what in (
        ("retired_pages/pending_retirement", "memory pages wait to be retired"),
        ("retired_pages/pending_blacklist", "memory pages wait to be retired"),
        ("remapped_rows/remapped_row_pending", "memory rows wait to be remapped"),
        ("remapped_rows/remapped_row_failure", "remapping memory rows failed"),
    ):
        if gpu.findtext(path, "").strip().lower() == "yes":
            yield what
    action = gpu.findtext("gpu_recovery_action", "None").strip()
    if action not in ("None", "N/A"):
        yield f'the driver asks for "{action}"'


def _counts_uncorrected(count: Element) -> bool:
    return "uncorrectable" in count.tag and (count.text or "").strip().isdecimal()


def check_driver(report: Element, torch: dict[str, str]) -> Finding:
    """The driver must know the CUDA that torch was built for, at least its major version."""
    driver, knows = report.findtext("driver_version", "?"), report.findtext("cuda_version", "")
    seen = f"driver {driver} (CUDA {knows or '?'})"
    if not torch:
        return Finding("driver", False, f"{seen}, but no torch here", install_command("trainer"))
    version, cuda = torch.get("__version__", "?"), torch.get("cuda", "")
    if not cuda:
        cure = "install a CUDA build: https://pytorch.org/get-started/locally"
        return Finding("driver", False, f"{seen}, but torch {version} has no CUDA", cure)
    seen += f", torch {version} (CUDA {cuda})"
    # Within a major version older drivers run newer toolkits: "CUDA minor version compatibility".
    if knows and _major(knows) < _major(cuda):
        cure = f"a node with a newer driver, or a torch built for CUDA {_major(knows)}"
        return Finding("driver", False, f"{seen}: the driver is too old", cure)
    return Finding("driver", True, seen)


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def torch_build() -> dict[str, str]:
    """`__version__`, `cuda` and `hip` of the installed torch, without importing it; {} = none."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return {}
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return {}
    return dict(VERSION_LINE.findall(text))


def read_kernel_log() -> str | None:
    """Kernel messages with seconds since boot; None where this user may not read them."""
    journal = ["journalctl", "-k", "-q", "--no-pager", "-o", "short-monotonic"]
    for command in (["dmesg"], journal):
        try:
            asked = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=PROGRAM_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if asked.returncode == 0 and asked.stdout:
            return asked.stdout
    return None


def uptime_seconds() -> float:
    return float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])


def check_xids(log: str | None, uptime_seconds: float) -> Finding:
    """Hardware errors of the last hours in the kernel log; they may be another job's GPU's."""
    if log is None:
        return Finding("Xid errors", True, "not known: the kernel log can't be read by this user")
    since = uptime_seconds - XID_HOURS * 3600
    found = {
        (pci, int(number)): None
        for moment, pci, number in XID_LINE.findall(log)
        if int(number) in XIDS and float(moment) >= since
    }
    if found:
        seen = "; ".join(f"Xid {number} ({XIDS[number]}) of GPU {pci}" for pci, number in found)
        return Finding("Xid errors", False, seen, "reset the GPU, or reboot the node")
    return Finding("Xid errors", True, f"none of hardware in the last {XID_HOURS:.0f} h")


def check_packages() -> Finding:
    """What the trainer can't do without, in this Python."""
    try:
        check_trainer()
    except LaunchError as error:
        seen, _, cure = str(error).partition("; ")
        return Finding("packages", False, seen, cure)
    return Finding("packages", True, f"{sys.executable} has what training needs")


# --- memory and folders ---------------------------------------------------------------------------


def check_shm(min_gib: float, place: Path = SHM) -> Finding:
    """Free shared memory: NCCL, gloo and data loaders of all ranks here live on it."""
    try:
        stat = os.statvfs(place)
    except OSError as error:
        cure = "mount a tmpfs there"
        return Finding("shared memory", False, f"{place}: {error.strerror}", cure)
    free = stat.f_bavail * stat.f_frsize / 2**30
    seen = f"{place} has {free:.1f} GiB free"
    if free < min_gib:
        cure = f"remove what others left in {place}; in a container make it larger (--shm-size)"
        return Finding("shared memory", False, f"{seen}, {min_gib:g} are wanted", cure)
    return Finding("shared memory", True, seen)


def check_locked_memory(devices: Path = RDMA_DEVICES) -> Finding:
    """RDMA registers buffers that must stay in memory: NCCL fails on them at any usual limit."""
    if not any(devices.glob("uverbs*")):
        return Finding("locked memory", True, "no RDMA devices here")
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY or has_capability(CAP_IPC_LOCK):
        return Finding("locked memory", True, "RDMA devices, memory may be locked")
    cure = "set LimitMEMLOCK=infinity for slurmd or the container runtime; ulimit -l"
    seen = f"RDMA devices, but only {limit / 2**20:.0f} MiB may be locked"
    return Finding("locked memory", False, seen, cure)


def has_capability(number: int) -> bool:
    """Whether this process has a capability that counts (capabilities(7))."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return effective is not None and bool(int(effective[1], 16) >> number & 1)


def check_folder(folder: Path) -> Finding:
    """Whether files can be written here, or where this folder would be made."""
    there = folder
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".titan-recipes-") as file:
            file.write(b"written")
            file.flush()
            os.fsync(file.fileno())  # where a quota or a full disk shows, on NFS
    except OSError as error:
        seen = f"can't write into {there}: {error.strerror}"
        return Finding("folder", False, seen, "mount it writable, or choose another with --outputs")
    return Finding("folder", True, f"{folder} can be written")
