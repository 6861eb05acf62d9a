"""A real SLURM of four nodes on this machine, for the tests in this folder.

It needs root and Debian's packages: `tests/cluster/slurm-cluster install`, as .ci/run does. Without
them these tests are skipped by name.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

TOOL = Path(__file__).with_name("slurm-cluster")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "nsenter")


@dataclass(frozen=True, slots=True)
class SlurmCluster:
    """Four nodes, node1 to node4, of two pretended GPUs each."""

    directory: Path

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A SLURM command, as from the login host."""
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=check)

    def tool(self, *words: str) -> None:
        """slurm-cluster's own: crash, boot, unplug, plug a node."""
        subprocess.run([TOOL, *words], check=True, capture_output=True, timeout=60)

    def pid(self, daemon: str) -> int:
        """Process id of slurmctld, or of slurmd.node1 ..."""
        return int((self.directory / f"run/{daemon}.pid").read_text().split()[0])

    def inside(self, node: str, *command: str) -> None:
        """Run a command with a node's mounts."""
        enter = ("nsenter", f"--target={self.pid(f'slurmd.{node}')}", "--mount")
        subprocess.run([*enter, *command], check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"a SLURM of its own needs root and {', '.join(missing) or 'nothing else'}")
    namespaces = ("unshare", "--net", "--uts", "--mount", "--pid", "--fork", "true")
    if subprocess.run(namespaces, capture_output=True).returncode:
        pytest.skip("a SLURM of its own needs leave to make namespaces")
    # A short path that everybody may enter: munge's socket is in it.
    directory = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    directory.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CLUSTER_DIR", str(directory))
        up = subprocess.run(
            [TOOL, "up", "--nodes", "4", "--gpus", "2"], capture_output=True, text=True, timeout=90
        )
        assert up.returncode == 0, up.stderr
        patch.setenv("SLURM_CONF", str(directory / "etc/slurm.conf"))
        patch.setenv("PATH", f"{directory}/bin:{os.environ['PATH']}")
        yield SlurmCluster(directory)
        subprocess.run([TOOL, "down"], check=True, capture_output=True, timeout=60)
