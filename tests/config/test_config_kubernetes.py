"""[kubernetes] of a cluster profile: what it may say, and what is refused on the laptop."""

from pathlib import Path

import pytest

from titan_recipes.config.cluster import Cluster, check_fits, read_cluster
from titan_recipes.config.kubernetes import Kubernetes, Volume, volume_at
from titan_recipes.config.kubernetes_names import (
    is_within,
    pages_fault,
    path_fault,
    quantity_fault,
)
from titan_recipes.config.schema import Plan
from titan_recipes.errors import ConfigError


def profile(tmp_path: Path, text: str, scheduler: str = "kubernetes") -> Cluster:
    file = tmp_path / "c.toml"
    file.write_text(f'scheduler = "{scheduler}"\n{text}\n')
    return read_cluster(file)


def problems(tmp_path: Path, text: str, scheduler: str = "kubernetes") -> list[str]:
    """What is wrong with a profile, a line each, without the file."""
    with pytest.raises(ConfigError) as caught:
        profile(tmp_path, text, scheduler)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(caught.value.problems)
    return [line.removeprefix(f"{tmp_path / 'c.toml'}: ") for line in lines]


def test_profile_when_all_keys_are_in_use_is_read(tmp_path: Path) -> None:
    text = """
        outputs = "/mnt/runs/team"
        [container]
        image = "registry.example/titan-recipes:1"
        python = "/opt/venv/bin/python"
        [secrets]
        HF_TOKEN = "secret:hugging-face/token"
        [preflight]
        enable = true
        [kubernetes]
        kind = "trainjob"
        namespace = "ml"
        context = "arn:aws:eks:eu-west-1:1:cluster/a b"
        queue = "team.queue"
        service_account = "trainer"
        priority_class = "high"
        image_pull_secrets = ["registry"]
        image_pull_policy = "Always"
        node_selector = { "cloud.example/pool" = "h100", "bare" = "" }
        affinity = { nodeAffinity = { x = [1, "2", { y = true }] } }
        labels = { team = "nlp", "kueue.x-k8s.io/priority-class" = "high" }
        annotations = { "example.com/note" = "any text: {at} all\\n" }
        topology = "cloud.example/rack"
        topology_mode = "required"
        gpu_resource = "amd.com/gpu"
        resources = { "rdma/hca" = 1, "aws/efa" = "4", hugepages-2Mi = "5Gi", cpu = "500m" }
        shm_gib = 64.5
        run_as_user = 20000
        run_as_group = 0
        fs_group = -1
        max_restarts = 0
        ttl_seconds = -1
        [[kubernetes.tolerations]]
        key = "nvidia.com/gpu"
        operator = "Exists"
        effect = "NoExecute"
        tolerationSeconds = 60
        [kubernetes.volumes.runs]
        claim = "team-runs"
        path = "/mnt/runs"
        size = "10Ti"
        storage_class = "nfs"
        access_mode = "ReadWriteMany"
        [kubernetes.volumes.data]
        path = "/mnt/runs/data"
        read_only = true
        [kubernetes.pod]
        hostNetwork = true
        initContainers = [{ name = "warm", image = "x", restartPolicy = "Always" }]
    """
    own = profile(tmp_path, text).kubernetes
    assert own.tolerations[0].tolerationSeconds == 60
    assert own.volumes["data"].claim_of("data") == "data"
    assert own.resources == {
        "rdma/hca": 1,
        "aws/efa": "4",
        "hugepages-2Mi": "5Gi",
        "cpu": "500m",
    }
    assert own.pod["initContainers"] == [{"name": "warm", "image": "x", "restartPolicy": "Always"}]


def test_profile_when_it_says_nothing_keeps_runs_on_a_claim(tmp_path: Path) -> None:
    own = profile(tmp_path, "").kubernetes
    assert own.volumes == {"outputs": Volume(claim="titan-recipes-outputs", path="/outputs")}
    assert (own.kind, own.namespace, own.max_restarts, own.ttl_seconds) == (
        "jobset",
        "default",
        100,
        604800,
    )


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('kind = "pytorchjob"', "kubernetes.kind: got \"pytorchjob\"; use 'jobset', 'trainjob'"),
        ('namespce = "a"', 'kubernetes.namespce: unknown key; did you mean "namespace"?'),
        ('namespace = "A"', 'kubernetes.namespace: got "A"; use lower-case letters'),
        ('namespace = ""', 'kubernetes.namespace: got ""; use lower-case letters'),
        (f'namespace = "{"a" * 64}"', "kubernetes.namespace: got"),
        (f'queue = "{"a" * 64}"', "kubernetes.queue: got"),
        (
            'image_pull_secrets = ["a", "b", "a"]',
            'kubernetes.image_pull_secrets: names "a" twice; name each once',
        ),
        (
            'resources = {"hugepages-2Mi" = "5Mi"}',
            'kubernetes.resources.hugepages-2Mi: got "5Mi"; use a whole number of pages of 2Mi',
        ),
        (
            'resources = {"hugepages-0Mi" = "5Mi"}',
            "kubernetes.resources.hugepages-0Mi: not the name of a resource",
        ),
        ('queue = "a_b"', 'kubernetes.queue: got "a_b"; use lower-case letters'),
        ('service_account = "-a"', 'kubernetes.service_account: got "-a"; use'),
        ('priority_class = "a..b"', 'kubernetes.priority_class: got "a..b"; use'),
        ('context = "a\\nb"', 'kubernetes.context: got "a\\nb"; must be one line'),
        ('image_pull_secrets = [""]', 'kubernetes.image_pull_secrets.0: got ""; use'),
        ('image_pull_policy = "never"', 'kubernetes.image_pull_policy: got "never"; use'),
        ('labels = {"a b" = "c"}', "kubernetes.labels.a b: not a key of Kubernetes; use letters"),
        ('labels = {"A/b" = "c"}', "kubernetes.labels.A/b: not a key of Kubernetes; before '/'"),
        ('labels = {a = "b c"}', 'kubernetes.labels.a: got "b c"; use letters'),
        (f'labels = {{a = "{"b" * 64}"}}', "kubernetes.labels.a: got"),
        (
            'labels = {"titan-recipes/run" = "x"}',
            "kubernetes.labels.titan-recipes/run: is set by titan-recipes itself; remove it",
        ),
        (
            'labels = {"kueue.x-k8s.io/queue-name" = "x"}',
            "kubernetes.labels.kueue.x-k8s.io/queue-name: has a key of its own; use kubernetes.que",
        ),
        ('annotations = {"a b" = "c"}', "kubernetes.annotations.a b: not a key of Kubernetes"),
        ('annotations = {a = "\\u0000"}', 'kubernetes.annotations.a: got "\\u0000"; must be text'),
        ('node_selector = {a = "b c"}', 'kubernetes.node_selector.a: got "b c"; use letters'),
        ("affinity = {weight = 0.5}", "kubernetes.affinity.weight: got 0.5: the API has no such"),
        ('tolerations = [{kee = "a"}]', 'kubernetes.tolerations.0.kee: unknown key; did you mean'),
        ("tolerations = [{}]", "kubernetes.tolerations.0.key: not set; name the taint"),
        (
            'tolerations = [{key = "a", tolerationSeconds = 3}]',
            "kubernetes.tolerations.0.tolerationSeconds: has no effect but with NoExecute",
        ),
        ('topology = "rack"', "kubernetes.topology: preferred, without a queue: it is Kueue that"),
        (
            'kind = "volcano"\ntopology = "rack"',
            'kubernetes.topology: has no effect with kind = "volcano"; use kubernetes.affinity',
        ),
        ('gpu_resource = "gpu"', 'kubernetes.gpu_resource: got "gpu"; use the device'),
        (
            'resources = {"nvidia.com/gpu" = 8}',
            "kubernetes.resources.nvidia.com/gpu: follows from the plan; remove it",
        ),
        ('resources = {mem = "4Gi"}', "kubernetes.resources.mem: not the name of a resource; use"),
        ('resources = {memory = "4GB"}', 'kubernetes.resources.memory: got "4GB"; use a number'),
        ("resources = {memory = -4}", "kubernetes.resources.memory: got -4; use a number"),
        ('resources = {"rdma/hca" = "1.5"}', 'kubernetes.resources.rdma/hca: got "1.5"; devices'),
        ("shm_gib = 0", "kubernetes.shm_gib: got 0; must be > 0.0"),
        ("run_as_user = 0", "kubernetes.run_as_user: got 0; must be >= 1"),
        (
            'pod = {terminationGracePeriodSeconds = 5}',
            "kubernetes.pod.terminationGracePeriodSeconds: can't be set; it follows from",
        ),
        (
            'pod = {tolerations = []}',
            "kubernetes.pod.tolerations: has a key of its own; use kubernetes.tolerations",
        ),
        (
            'pod = {securityContext = {}}',
            "kubernetes.pod.securityContext: can't be set; see run_as_user",
        ),
        ("pod = {hostPID = true}", "kubernetes.pod.hostPID: can't be set; pods keep to themselves"),
        (
            'pod = {hostnetwork = true}',
            'kubernetes.pod.hostnetwork: not a key of a pod\'s spec; did you mean "hostNetwork"?',
        ),
        (
            'pod = {containers = [{name = "a"}]}',
            'kubernetes.pod.containers.0.name: "a" would keep the pod from ending when the trainer',
        ),
        (
            'pod = {containers = [{name = "trainer", command = ["x"]}]}',
            "kubernetes.pod.containers.0.command: can't be set; stopping and the rendezvous rest",
        ),
        (
            'pod = {containers = [{name = "trainer", securityContext = {privileged = true}}]}',
            "kubernetes.pod.containers.0.securityContext: can't be set; see run_as_root",
        ),
        (
            'pod = {containers = [{name = "trainer", enf = []}]}',
            'kubernetes.pod.containers.0.enf: not a key of a container; did you mean "env"?',
        ),
        (
            'pod = {initContainers = [{name = "a", securityContext = {privileged = true}}]}',
            "kubernetes.pod.initContainers.0.securityContext.privileged: got true; remove it",
        ),
        (
            'pod = {initContainers = [{name = "a", securityContext = {runAsUser = 0}}]}',
            "kubernetes.pod.initContainers.0.securityContext.runAsUser: got 0; remove it",
        ),
        ("pod = {volumes = [{}]}", "kubernetes.pod.volumes.0.name: has no name; use lower-case"),
        ("pod = {volumes = {}}", "kubernetes.pod.volumes: got {}; must be tables"),
        ("pod = {volumes = [1]}", "kubernetes.pod.volumes: got [1]; must be tables"),
        (
            'pod = {containers = [{name = "trainer", env = "A=1"}]}',
            'kubernetes.pod.containers.0.env: got "A=1"; must be tables',
        ),
        (
            'pod = {initContainers = [{name = "a", volumeMounts = ["/a"]}]}',
            'kubernetes.pod.initContainers.0.volumeMounts: got ["/a"]; must be tables',
        ),
        (
            'kind = "volcano"\npod = {schedulerName = "x"}',
            "kubernetes.pod.schedulerName: can't be set with kind = \"volcano\"; remove it",
        ),
        (
            'kind = "volcano"\nmax_restarts = 0',
            "kubernetes.max_restarts: got 0, which Volcano takes for 3; use 1 or more",
        ),
    ],
)  # fmt: skip
def test_key_that_no_cluster_would_take_is_refused(tmp_path: Path, line: str, problem: str) -> None:
    (found,) = problems(tmp_path, f"[kubernetes]\n{line}")
    assert found.startswith(problem)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('path = "data"', 'path: got "data"; use an absolute path in the container'),
        ('path = "/a/../b"', 'path: got "/a/../b"; write it as "/b"'),
        ('path = "/a:b"', 'path: got "/a:b"; use an absolute path in the container'),
        ('path = "/tmp"', 'path: got "/tmp", where "tmp" of every pod is mounted; mount it'),
        (
            'path = "/outputs"',
            'path: got "/outputs", where "outputs" is mounted; mount it elsewhere',
        ),
        ("read_only = true", "path: missing; it has no default; write it"),
        ('path = "/d"\nclaim = "A_b"', 'claim: got "A_b"; use lower-case letters'),
        ('path = "/d"\nsize = "1TB"', 'size: got "1TB"; use a number more than 0'),
        ('path = "/d"\nsize = "0"', 'size: got "0"; use a number more than 0'),
        ('path = "/d"\nstorage_class = "nfs"', "storage_class: has no effect on a claim that is"),
        (
            'path = "/d"\nclaim = "runs"\nsize = "1Ti"',
            'claim: "runs" is made by another volume already; set size in one of them',
        ),
        (
            'path = "/d"\naccess_mode = "ReadOnlyMany"',
            "access_mode: ReadOnlyMany, but it is mounted to be written to; set read_only = true",
        ),
        ('path = "/d"\nsice = "1"', 'sice: unknown key; did you mean "size"?'),
    ],
)
def test_volume_that_no_pod_could_mount_is_refused(tmp_path: Path, line: str, problem: str) -> None:
    outputs = '[kubernetes.volumes.outputs]\npath = "/outputs"\nclaim = "runs"\nsize = "1Ti"'
    (found,) = problems(tmp_path, f"{outputs}\n[kubernetes.volumes.data]\n{line}")
    assert found.startswith(f"kubernetes.volumes.data.{problem}")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            'outputs = "/scratch/runs"',
            'outputs: got "/scratch/runs", which is on no volume: it would be lost with the pod; '
            "volumes are mounted at /outputs",
        ),
        ('outputs = "runs"', 'outputs: got "runs"; use an absolute path in the container'),
        (
            '[kubernetes.volumes.outputs]\npath = "/outputs"\nread_only = true',
            'outputs: got "/outputs", on the volume "outputs", which is read-only; remove',
        ),
        (
            '[kubernetes]\nnamespace = "ml"\n[secrets]\nHF_TOKEN = "env"',
            "secrets.HF_TOKEN: pods can't see the submitter's environment and files; kubectl "
            "--namespace ml create secret generic hf-token --from-file=value=/dev/stdin "
            "(type the value, then Ctrl-D twice), then "
            'HF_TOKEN = "secret:hf-token/value"',
        ),
        ('[secrets]\nA = "file:/a"', "secrets.A: pods can't see the submitter's environment"),
        ('[secrets]\nA = "secret:A_b/c"', "secrets.A: does not say where the secret is; use"),
        ('[env]\nPET_NNODES = "2"', "env.PET_NNODES: is set by Kubernetes' controllers or by"),
        ('[secrets]\nVC_KEY = "secret:a/b"', "secrets.VC_KEY: is set by Kubernetes' controllers"),
        ('setup = ["x"]', 'setup: has no effect with scheduler = "kubernetes"; remove it'),
        ('[mounts]\n"/a" = "/a"', 'mounts: has no effect with scheduler = "kubernetes"; remove'),
        (
            '[container]\nruntime = "docker"\nimage = "x"',
            'container.runtime: got "docker", with scheduler = "kubernetes"; remove it',
        ),
        (
            "[preflight]\nenable = true\nmin_shm_gib = 2.0\n[kubernetes]\nshm_gib = 1.5",
            "preflight.min_shm_gib: 2.0, but the pods have kubernetes.shm_gib = 1.5; raise shm_gib",
        ),
        (
            "[preflight]\nexclude_bad_nodes = true",
            'preflight.exclude_bad_nodes: has no effect with scheduler = "kubernetes"; remove it',
        ),
    ],
)
def test_table_that_pods_have_no_place_for_is_refused(
    tmp_path: Path, text: str, problem: str
) -> None:
    (found,) = problems(tmp_path, text)
    assert found.startswith(problem)


@pytest.mark.parametrize(
    ("scheduler", "text", "refused"),
    [
        ("slurm", '[kubernetes]\nqueue = "a"', True),
        ("docker", '[kubernetes]\nqueue = "a"', True),
        ("docker", '[container]\nimage = "x"', False),
        ("docker", '[mounts]\n"/a" = "/a"', False),
        ("docker", '[secrets]\nA = "env"', False),
        ("docker", '[secrets]\nA = "secret:a/b"', True),
        ("docker", "[preflight]\nenable = true", True),
        ("docker", '[slurm]\npartition = "a"', True),
        ("slurm", '[secrets]\nA = "secret:a/b"', True),
        ("slurm", '[mounts]\n"/a" = "/a"', False),
        ("local", '[container]\nimage = "x"', True),
        ("local", '[secrets]\nA = "env"', True),
        ("kubernetes", "[preflight]\nenable = true", False),
    ],
)
def test_table_is_taken_only_where_a_scheduler_honours_it(
    tmp_path: Path, scheduler: str, text: str, refused: bool
) -> None:
    if not refused:
        profile(tmp_path, text, scheduler)
        return
    (found,) = problems(tmp_path, text, scheduler)
    assert f'has no effect with scheduler = "{scheduler}"' in found


@pytest.mark.parametrize(
    ("mode", "nodes", "refused"),
    [
        ("ReadWriteOnce", 1, False),
        ("ReadWriteOnce", 2, True),
        ("ReadWriteOncePod", 2, True),
        ("ReadWriteMany", 2, False),
        ("", 2, False),
    ],
)
def test_plan_when_its_nodes_cant_share_a_volume_is_refused(
    mode: str, nodes: int, refused: bool
) -> None:
    own = Kubernetes(volumes={"a": Volume(path="/outputs", access_mode=mode)})  # pyright: ignore
    plan = Plan(nodes=nodes, gpus_per_node=1, gpu="cpu")
    found = check_fits(plan, Cluster(scheduler="kubernetes", kubernetes=own), "plans/x.toml")
    assert [str(one) for one in found] == refused * [
        f"plans/x.toml: kubernetes.volumes.a.access_mode: {mode}, but the plan has {nodes} nodes "
        "that all mount it; use a ReadWriteMany claim, or a plan with one node"
    ]
    assert check_fits(plan, Cluster(scheduler="slurm", kubernetes=own), "plans/x.toml") == []


def test_path_lies_on_the_volume_that_is_mounted_nearest_above_it() -> None:
    volumes = {"a": Volume(path="/mnt"), "b": Volume(path="/mnt/runs"), "c": Volume(path="/m")}
    found = {
        path: (volume_at(path, volumes) or ("none",))[0]
        for path in ("/mnt", "/mnt/runs/x", "/mnt/runsx", "/mntx", "/m/n", "/")
    }
    assert found == {
        "/mnt": "a",
        "/mnt/runs/x": "b",
        "/mnt/runsx": "a",
        "/mntx": "none",
        "/m/n": "c",
        "/": "none",
    }
    assert is_within("/a/b", "/a")
    assert not is_within("/ab", "/a")


@pytest.mark.parametrize("quantity", ["1", "1.5", "500m", "64Gi", "1e3", "5E", "12Ti", "0.5"])
def test_quantity_when_kubernetes_takes_it_is_taken(quantity: str) -> None:
    assert quantity_fault(quantity) == ""


@pytest.mark.parametrize(
    ("name", "quantity", "is_whole"),
    [
        ("hugepages-2Mi", "5Gi", True),
        ("hugepages-2Mi", "4194304", True),
        ("hugepages-2Mi", "2M", False),
        ("hugepages-1Gi", "1.5Gi", False),
        ("hugepages-1Gi", "4e9", False),
        ("hugepages-1Gi", "1024Mi", True),
        ("hugepages-64Ki", "65536", True),
        ("hugepages-64Ki", "65536000m", True),
        ("memory", "1.5", True),
    ],
)
def test_huge_pages_are_asked_for_whole(name: str, quantity: str, is_whole: bool) -> None:
    assert (pages_fault(name, quantity) == "") is is_whole


@pytest.mark.parametrize("quantity", ["", "0", "-1", "1 Gi", "1GB", "1,5", "1\n", "1\u0663", "1K"])
def test_quantity_when_kubernetes_refuses_it_is_refused(quantity: str) -> None:
    assert quantity_fault(quantity)


@pytest.mark.parametrize("path", ["", "/", "a", "/a/", "//a", "/a//b", "/a/.", "/a\n", "/a:b"])
def test_path_when_nothing_can_be_mounted_there_is_refused(path: str) -> None:
    assert path_fault(path)
