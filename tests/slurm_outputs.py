"""A cluster as SLURM prints it, in the words of several versions, and a profile that fits it."""

from typing import Any

from titan_recipes.config.cluster import Cluster
from titan_recipes.config.load import read_section
from titan_recipes.errors import LaunchError
from titan_recipes.launch.slurm_check import Comparison
from titan_recipes.launch.slurm_site import SlurmSite
from titan_recipes.launch.slurm_text import (
    parse_accounting,
    parse_config,
    parse_nodes,
    parse_partitions,
    parse_reservations,
)

CONFIG_22_05 = """\
Configuration data as of 2026-11-21T12:45:06
AccountingStorageEnforce = associations,limits,qos,safe
ClusterName             = lab
JobRequeue              = 0
KillWait                = 30 sec
PreemptMode             = REQUEUE
PreemptType             = preempt/partition_prio
SlurmctldParameters     = enable_configless,preempt_send_user_signal
SLURM_VERSION           = 22.05.8

Slurmctld(primary) at login is UP
"""
PARTITIONS_22_05 = """\
PartitionName=cpu AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default=YES \
QoS=N/A DefaultTime=00:10:00 DisableRootJobs=NO ExclusiveUser=NO GraceTime=0 Hidden=NO \
MaxNodes=UNLIMITED MaxTime=UNLIMITED MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED Nodes=c[1-2] \
PriorityJobFactor=1 PriorityTier=1 RootOnly=NO ReqResv=NO OverSubscribe=NO OverTimeLimit=NONE \
PreemptMode=OFF State=UP TotalCPUs=128 TotalNodes=2 SelectTypeParameters=NONE JobDefaults=(null) \
DefMemPerNode=UNLIMITED MaxMemPerNode=UNLIMITED TRES=cpu=128,mem=512G,node=2,billing=128
PartitionName=gpu AllowGroups=ALL AllowAccounts=team,physics AllowQos=normal,long AllocNodes=ALL \
Default=NO QoS=part_gpu DefaultTime=NONE DisableRootJobs=NO ExclusiveUser=NO GraceTime=120 \
Hidden=NO MaxNodes=16 MaxTime=2-00:00:00 MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED \
Nodes=g[1-3],old1 PriorityTier=1 OverSubscribe=EXCLUSIVE PreemptMode=REQUEUE State=UP \
JobDefaults=DefCpuPerGPU=8,DefMemPerGPU=65536 TRES=cpu=448,gres/gpu=28
"""
PARTITIONS_24_11 = """\
PartitionName=hopper AllowGroups=ALL DenyAccounts=guests DenyQos=debug AllocNodes=ALL Default=YES \
QoS=N/A DefaultTime=01:00:00 DisableRootJobs=NO ExclusiveUser=NO ExclusiveTopo=NO GraceTime=0 \
Hidden=NO MaxNodes=UNLIMITED MaxTime=04:00:00 MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED \
MaxCPUsPerSocket=UNLIMITED NodeSets=all Nodes=h[001-002] PriorityJobFactor=1 PriorityTier=1 \
RootOnly=NO ReqResv=NO OverSubscribe=NO OverTimeLimit=NONE PreemptMode=OFF State=DOWN \
TotalCPUs=384 TotalNodes=2 SelectTypeParameters=NONE JobDefaults=(null) DefMemPerNode=UNLIMITED \
MaxMemPerNode=UNLIMITED TRES=cpu=384,mem=4000000M,node=2,billing=384,gres/gpu=16
"""
NODES_22_05 = """\
NodeName=c1 Arch=x86_64 CoresPerSocket=32 CPUAlloc=0 CPUEfctv=64 CPUTot=64 CPULoad=0.10 \
AvailableFeatures=(null) ActiveFeatures=(null) Gres=(null) NodeAddr=c1 NodeHostName=c1 \
Version=22.05.8 OS=Linux 5.14.0 #1 SMP PREEMPT_DYNAMIC Wed RealMemory=257000 AllocMem=0 \
State=IDLE Partitions=cpu CfgTRES=cpu=64,mem=257000M,billing=64 AllocTRES=
NodeName=c2 Arch=x86_64 CPUEfctv=64 CPUTot=64 AvailableFeatures=(null) ActiveFeatures=(null) \
Gres=(null) RealMemory=257000 State=DOWN*+CLOUD Partitions=cpu CfgTRES=cpu=64 \
Reason=Gres=gpu:9 missing, Partitions=gpu [root@2026-11-20T08:00:00]
NodeName=g1 CPUEfctv=126 CPUTot=128 AvailableFeatures=ib,sxm ActiveFeatures=ib,sxm \
Gres=gpu:h100:8(S:0-1),shard:h100:32(S:0-1) RealMemory=1031000 MemSpecLimit=7000 State=MIXED \
Partitions=gpu,urgent CfgTRES=cpu=126,mem=1031000M,gres/gpu=8,gres/gpu:h100=8
NodeName=g2 CPUEfctv=126 CPUTot=128 AvailableFeatures=ib,sxm ActiveFeatures=ib,sxm \
Gres=gpu:h100:8(S:0-1) RealMemory=1031000 MemSpecLimit=7000 State=IDLE Partitions=gpu,urgent
NodeName=g3 CPUEfctv=126 CPUTot=128 AvailableFeatures=ib,sxm ActiveFeatures=ib,sxm \
Gres=gpu:h100:8(S:0-1) RealMemory=1031000 MemSpecLimit=7000 State=IDLE+DRAIN Partitions=gpu \
Reason=Xid 79 [root@2026-11-20T08:00:00]
NodeName=old1 CPUEfctv=64 CPUTot=64 AvailableFeatures=ib ActiveFeatures=ib \
Gres=gpu:v100:4(S:0-1) RealMemory=512000 State=IDLE Partitions=gpu
"""
NODES_24_11 = """\
NodeName=h001 Arch=x86_64 CoresPerSocket=48 CPUAlloc=0 CPUEfctv=192 CPUTot=192 CPULoad=0.01 \
AvailableFeatures=(null) ActiveFeatures=(null) Gres=gpu:nvidia_h100_80gb_hbm3:8(S:0-1) \
NodeAddr=h001 NodeHostName=h001 Version=24.11.1 RealMemory=2000000 AllocMem=0 FreeMem=1900000 \
Sockets=2 Boards=1 State=IDLE+CLOUD+POWERED_DOWN ThreadsPerCore=2 TmpDisk=0 Weight=1 Owner=N/A \
MCS_label=N/A Partitions=hopper BootTime=None SlurmdStartTime=None LastBusyTime=Unknown \
ResumeAfterTime=None CfgTRES=cpu=192,mem=2000000M,gres/gpu=8 AllocTRES= CurrentWatts=0 AveWatts=0
NodeName=h002 CPUTot=192 Gres=gpu:nvidia_h100_80gb_hbm3:8(S:0-1) RealMemory=2000000 \
State=IDLE+NOT_RESPONDING Partitions=hopper Comment=State=IDLE Extra=a=b
"""
RESERVATIONS = """\
ReservationName=lab StartTime=2026-11-21T12:45:33 EndTime=2026-11-28T13:45:33 Duration=01:00:00 \
Nodes=g1 NodeCnt=1 CoreCnt=4 Features=(null) PartitionName=(null) Flags=SPEC_NODES TRES=cpu=4 \
Users=root Groups=(null) Accounts=(null) Licenses=(null) State=ACTIVE MaxStartDelay=(null)
"""
ACCOUNTING = {
    "users": "physics\n",
    "associations": "team||long,normal|normal\nphysics||normal|\nphysics|cpu|normal|\n",
    "qos": "normal|\nlong|7-00:00:00\nshort|01:00:00\n",
}


def site(settings: dict[str, str] | None = None, *, accounting: bool = True) -> SlurmSite:
    """The cluster of the 22.05 texts."""
    return SlurmSite(
        settings=parse_config(CONFIG_22_05) | (settings or {}),
        partitions=parse_partitions(PARTITIONS_22_05),
        nodes=parse_nodes(NODES_22_05),
        reservations=parse_reservations(RESERVATIONS),
        accounting=parse_accounting(**ACCOUNTING) if accounting else None,
        no_accounting="" if accounting else "sacctmgr show user: connection refused",
    )


def profile(slurm: dict[str, Any] | None = None, **hardware: Any) -> Cluster:
    """A profile that fits `site()` but for what is given; "" = left out."""
    options = {"partition": "gpu", "account": "team", "time": "04:00:00", "constraint": "sxm"}
    options |= slurm or {}
    facts = {"gpu": "h100", "gpus_per_node": 8, "cpus": 126, "memory_gib": 1000.0} | hardware
    data = {
        "scheduler": "slurm",
        "slurm": {name: value for name, value in options.items() if value != ""},
        "hardware": facts,
    }
    return read_section(Cluster, data, "lab")


def expand(text: str) -> list[str]:
    """For lists without brackets."""
    if "[" in text:
        raise LaunchError("scontrol show hostnames: Invalid hostlist")
    return text.split(",")


def said(cluster: Cluster, found: SlurmSite | None = None) -> tuple[list[str], list[str]]:
    """(problems, notes), but for those of every profile here."""
    findings = Comparison("lab", cluster, found or site(), expand).findings()
    always = ("JobRequeue", "KillWait", "preemption", "nodes")
    lines = [(bad, line) for bad, line in findings if line.what not in always]
    most = "slurm.partition: gpu gives a job at most 16 node(s); choose plans that need no more"
    texts = [(bad, str(line).removeprefix("lab: ")) for bad, line in lines]
    problems = [text for bad, text in texts if bad]
    return problems, [text for bad, text in texts if not bad and text != most]
