"""The pods of a job: what they may do, what they get, and a profile's overlay over their spec."""

import json
from dataclasses import replace
from typing import Any

import pytest
from manifests import documents, pods, schema_faults
from pod_jobs import LIKENESS, job_of, pod_of, submission_of

from titan_recipes.config.site import Hardware
from titan_recipes.errors import ConfigError
from titan_recipes.render import render_kubernetes


def test_pod_can_do_no_more_than_it_needs() -> None:
    spec = pod_of(job_of(LIKENESS))
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "runAsGroup": 1000,
        "fsGroup": 1000,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    (trainer,) = spec["containers"]
    assert trainer["securityContext"] == {
        "privileged": False,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False


def test_pod_when_run_as_root_may_lock_memory_and_nothing_else() -> None:
    spec = pod_of(job_of(LIKENESS, run_as_root=True, read_only_root=False, fs_group=-1))
    assert spec["securityContext"] == {
        "runAsNonRoot": False,
        "runAsUser": 0,
        "runAsGroup": 1000,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert spec["containers"][0]["securityContext"] == {
        "privileged": False,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"], "add": ["IPC_LOCK"]},
        "readOnlyRootFilesystem": False,
    }


@pytest.mark.parametrize(
    ("gpu", "gpus", "expected"),
    [
        ("h100", 8, {"nvidia.com/gpu": "8", "cpu": "91", "memory": "972800Mi", "rdma/hca": "1"}),
        ("h100", 2, {"nvidia.com/gpu": "2", "cpu": "22", "memory": "243200Mi", "rdma/hca": "1"}),
        ("cpu", 2, {}),
        ("any", 2, {}),
    ],
)
def test_pod_asks_for_its_gpus_and_their_share_of_the_machine(
    gpu: str, gpus: int, expected: dict[str, str]
) -> None:
    job = job_of(LIKENESS, resources={"rdma/hca": 1})
    job = replace(job, plan=replace(job.plan, gpu=gpu, gpus_per_node=gpus))
    (trainer,) = pod_of(job)["containers"]
    asked = trainer.get("resources", {"requests": {}, "limits": {}})
    assert asked["requests"] == asked["limits"] == expected
    hidden = {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}
    assert (hidden in trainer["env"]) == (not expected)


def test_pod_asks_for_what_the_profile_says_first() -> None:
    asked = {"cpu": 8, "memory": "64Gi", "vpc.amazonaws.com/efa": "4"}
    job = job_of(LIKENESS, resources=asked, gpu_resource="amd.com/gpu", shm_gib=1.5)
    spec = pod_of(job)
    limits = spec["containers"][0]["resources"]["limits"]
    assert limits == {
        "cpu": "8",
        "memory": "64Gi",
        "vpc.amazonaws.com/efa": "4",
        "amd.com/gpu": "8",
    }
    shm = {"medium": "Memory", "sizeLimit": "1536Mi"}
    assert {"name": "dev-shm", "emptyDir": shm} in spec["volumes"]


def test_pod_when_huge_pages_stand_alone_is_refused() -> None:
    job = job_of(LIKENESS, resources={"hugepages-2Mi": "5Gi"})
    job = replace(job, site=replace(job.site, hardware=Hardware()))
    with pytest.raises(ConfigError, match=r"resources: hugepages, without cpu or memory"):
        pod_of(job)


def test_pod_has_longer_to_end_than_a_checkpoint_takes() -> None:
    job = job_of(LIKENESS)
    job = replace(job, fault_tolerance=replace(job.fault_tolerance, grace_seconds=700))
    assert pod_of(job)["terminationGracePeriodSeconds"] == 730


def test_pod_reads_secrets_by_reference_and_sees_no_value() -> None:
    (trainer,) = pod_of(job_of(LIKENESS))["containers"]
    (token,) = (entry for entry in trainer["env"] if entry["name"] == "HF_TOKEN")
    assert token == {
        "name": "HF_TOKEN",
        "valueFrom": {"secretKeyRef": {"name": "hf", "key": "token"}},
    }


@pytest.mark.parametrize(
    ("mode", "kind", "place"),
    [
        ("preferred", "jobset", "kueue.x-k8s.io/podset-preferred-topology"),
        ("required", "trainjob", "kueue.x-k8s.io/podset-required-topology"),
    ],
)
def test_topology_is_asked_of_kueue_by_the_pods(mode: str, kind: str, place: str) -> None:
    job = job_of(LIKENESS, kind, topology_mode=mode)
    found = documents(render_kubernetes(job, submission_of()))
    (pod,) = pods(found[0])
    assert pod["metadata"]["annotations"][place] == "example.com/rack"
    assert place not in found[0]["metadata"]["annotations"]


@pytest.mark.parametrize("kind", ["jobset", "trainjob"])
def test_topology_that_is_exclusive_is_asked_of_jobset(kind: str) -> None:
    key = "alpha.jobset.sigs.k8s.io/exclusive-topology"
    job = job_of(LIKENESS, kind, topology_mode="exclusive", queue="")
    (*_, last) = found = documents(render_kubernetes(job, submission_of()))
    jobset = found[0]["spec"]["template"] if kind == "trainjob" else found[0]
    assert jobset["metadata"]["annotations"][key] == "example.com/rack"
    (pod,) = pods(found[0])
    assert key not in pod["metadata"]["annotations"]
    assert "suspend" not in last["spec"]
    assert "kueue" not in json.dumps(found)


# --- the overlay ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pod", "expected"),
    [
        ({}, None),
        ({"hostNetwork": False}, None),
        ({"hostNetwork": True}, "ClusterFirstWithHostNet"),
        ({"hostNetwork": True, "dnsPolicy": "Default"}, "Default"),
    ],
)
def test_pod_on_its_nodes_network_finds_the_names_of_the_cluster(
    pod: dict[str, Any], expected: str | None
) -> None:
    assert pod_of(job_of(LIKENESS, pod=pod)).get("dnsPolicy") == expected


def test_overlay_is_merged_by_name() -> None:
    pod: dict[str, Any] = {
        "hostNetwork": True,
        "dnsPolicy": "None",
        "dnsConfig": {"nameservers": ["10.0.0.10"]},
        "containers": [
            {
                "name": "trainer",
                "env": [{"name": "HOST", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}],
                "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
            }
        ],
        "initContainers": [{"name": "tcpxo", "image": "x", "restartPolicy": "Always"}],
        "volumes": [
            {"name": "scratch", "hostPath": {"path": "/mnt/nvme"}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "50Gi"}},
        ],
    }
    plain = pod_of(job_of(LIKENESS, "trainjob"))
    job = job_of(LIKENESS, "trainjob", pod=pod)
    found = documents(render_kubernetes(job, submission_of()))
    assert [fault for one in found for fault in schema_faults(one)] == []
    spec = pod_of(job)
    assert (spec["hostNetwork"], spec["dnsPolicy"]) == (True, "None")
    (trainer,), (before,) = spec["containers"], plain["containers"]
    assert trainer["name"] == "node"
    assert trainer["env"] == [*before["env"], pod["containers"][0]["env"][0]]
    assert trainer["volumeMounts"] == [
        *before["volumeMounts"],
        {"name": "scratch", "mountPath": "/scratch"},
    ]
    assert {"name": "tmp", "emptyDir": {"sizeLimit": "50Gi"}} in spec["volumes"]
    assert len(spec["volumes"]) == len(plain["volumes"]) + 1
    (beside,) = spec["initContainers"]
    assert beside["securityContext"] == {
        "privileged": False,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }


@pytest.mark.parametrize(
    ("pod", "problem"),
    [
        (
            {"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "x"}}]},
            'kubernetes.pod.volumes: "data" is a volume of the profile; use',
        ),
        (
            {"volumes": [{"name": "tmp", "hostPath": {"path": "/x"}}]},
            'kubernetes.pod.volumes: "tmp" would be emptyDir, hostPath; give one source',
        ),
        (
            {
                "containers": [
                    {"name": "trainer", "volumeMounts": [{"name": "x", "mountPath": "/x"}]}
                ]
            },
            "kubernetes.pod.trainer.volumeMounts: /x: no volume is named 'x'; use one of",
        ),
        (
            {"containers": [{"name": "trainer", "env": [{"name": "HF_TOKEN", "value": "x"}]}]},
            "kubernetes.pod.containers.env: HF_TOKEN is set by the profile or the job already",
        ),
        (
            {"containers": [{"name": "trainer", "env": [{"name": "NCCL_IB_HCA", "value": "x"}]}]},
            "kubernetes.pod.containers.env: NCCL_IB_HCA is set by the profile or the job already",
        ),
        (
            {
                "containers": [
                    {"name": "trainer", "volumeMounts": [{"name": "tmp", "mountPath": "/outputs"}]}
                ]
            },
            "kubernetes.pod.containers.volumeMounts: /outputs is mounted by the profile already",
        ),
    ],
)
def test_overlay_that_does_not_fit_is_refused(pod: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        pod_of(job_of(LIKENESS, pod=pod))
    assert str(caught.value).startswith(f"cluster: {problem}")
