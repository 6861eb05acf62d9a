"""Jobs on a profile with most keys of [kubernetes] in use, and what they are rendered to."""

from dataclasses import replace
from typing import Any

from manifests import documents, pods

from titan_recipes.bundle.find import find_bundle
from titan_recipes.config.job import Job
from titan_recipes.config.kubernetes import Kubernetes, Toleration, Volume
from titan_recipes.config.site import Container, Hardware, Site
from titan_recipes.render import PodSubmission, object_name, render_kubernetes

KINDS = ("jobset", "trainjob", "volcano")
LIKENESS = "llama3_8b"
IMAGE = "registry.example/titan-recipes@sha256:" + "0" * 64
FULL = Kubernetes(
    namespace="ml",
    queue="team",
    service_account="trainer",
    priority_class="high",
    image_pull_secrets=("registry",),
    image_pull_policy="IfNotPresent",
    node_selector={"node.example/pool": "h100"},
    tolerations=(Toleration(key="nvidia.com/gpu", operator="Exists", effect="NoSchedule"),),
    affinity={"nodeAffinity": {}},
    labels={"team": "nlp"},
    annotations={"example.com/cost-centre": "42, main"},
    resources={"rdma/hca": 1, "hugepages-2Mi": "5Gi"},
    volumes={
        "outputs": Volume(claim="runs", path="/outputs", size="1Ti", storage_class="nfs"),
        "data": Volume(path="/data", read_only=True, access_mode="ReadOnlyMany"),
    },
)
SITE = Site(
    hardware=Hardware(gpus_per_node=8, cpus=96, memory_gib=1000.0),
    container=Container(image=IMAGE),
    secrets={"HF_TOKEN": "secret:hf/token"},
    kubernetes=FULL,
)
ENV = {"NCCL_IB_HCA": "mlx5_0,mlx5_1"}


def job_of(recipe: str, kind: str = "jobset", plan: str | None = None, **own: Any) -> Job:
    """A recipe's job on a full profile, some keys of its [kubernetes] changed."""
    job = find_bundle(recipe).resolve(plan).job
    topology = {} if kind == "volcano" else {"topology": "example.com/rack"}
    kubernetes = replace(FULL, kind=kind, **topology, **own)
    return replace(job, env=ENV, site=replace(SITE, kubernetes=kubernetes))


def submission_of(name: str = "a-run", **changed: Any) -> PodSubmission:
    values = {
        "object_name": object_name(name),
        "run_name": name,
        "run_dir": f"/outputs/{name}",
        "image": IMAGE,
    }
    return PodSubmission(**values | changed)


def manifest(recipe: str, kind: str, **own: Any) -> list[dict[str, Any]]:
    job = job_of(recipe, kind, **own)
    return documents(render_kubernetes(job, submission_of()))


def pod_of(job: Job, **changed: Any) -> dict[str, Any]:
    """The spec of a job's pods."""
    (pod,) = pods(documents(render_kubernetes(job, submission_of(**changed)))[0])
    return pod["spec"]
