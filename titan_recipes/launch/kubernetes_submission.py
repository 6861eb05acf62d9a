"""One submission of a run to Kubernetes: its files, its objects made and deleted.

`kubernetes.json` in the run directory names the newest one; a `resume` is one more.
"""

import json
import re
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import cast
from uuid import uuid4

from titan_recipes.config.datasets import WhereOf
from titan_recipes.config.job import Job
from titan_recipes.config.kubernetes import OWN_KEYS, POD_OUTPUTS
from titan_recipes.config.layout import RunLayout, replace_file
from titan_recipes.errors import LaunchError
from titan_recipes.launch.image import DEFAULT_IMAGE, image_reference
from titan_recipes.launch.inputs import bundle_directory
from titan_recipes.launch.kubernetes_client import Api, Object, check_installed, connect
from titan_recipes.launch.kubernetes_errors import EXISTS, FORBIDDEN, KubernetesError
from titan_recipes.render import (
    JOB_YAML,
    PVC_YAML,
    RESOURCES,
    PodSubmission,
    object_name,
    render_claims,
    render_kubernetes,
)
from titan_recipes.render.kubernetes import (
    CLAIM,
    DIGEST,
    RUN_DIR,
    RUN_LABEL,
    RUN_NAME,
    RUNTIME,
    SUBMISSION_LABEL,
    ApiResource,
    handle_of,
)

KUBERNETES_SCHEDULERS = ("kubernetes", "titan_kubernetes")
"""What a record calls Kubernetes: `launch` and torchx do not say the same."""
TOKEN = f"{OWN_KEYS}token"
"""Annotation of the objects that one `submit` makes, and no other."""
UNSEEN_RUNTIME = re.compile(r"must be created before the TrainJob|\bruntime '.*' not found")
"""What the webhooks of Trainer and Kueue say of a runtime that they have not heard of yet."""
RUNTIME_SECONDS, AGAIN_SECONDS = 15.0, 0.25
LATE_SECONDS = (0.0, 0.5, 1.0)
"""Waits for an object whose request went off, but not its answer: the server may be at it yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """kubernetes.json: where the cluster keeps a run's newest submission."""

    kind: str
    """Of the profile: "jobset", "trainjob", "volcano"."""
    context: str
    """Of the kubeconfig; "" = its current one."""
    namespace: str
    name: str
    """The object's."""
    uid: str
    """The object's: another one of its name is not ours. "" = unknown."""
    number: int
    """1, 2, ...: which submission of the run it is."""
    run_dir: str
    """The run directory as the pods see it."""

    @property
    def handle(self) -> str:
        """torchx's."""
        return handle_of(self.namespace, self.name)

    def __str__(self) -> str:
        """For messages: `JobSet train/my-run`."""
        return f"{RESOURCES[self.kind].kind} {self.namespace}/{self.name}"


def submitted(layout: RunLayout) -> Submitted | None:
    """The newest submission; None where there was none from here. Raises LaunchError."""
    try:
        return Submitted(**json.loads(layout.kubernetes.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise LaunchError(f"{layout.kubernetes}: can't be read: {error}") from error


def is_mirror(layout: RunLayout) -> bool:
    """Whether pods run it and have the run directory elsewhere: here is what their logs told.

    Where they write into this very folder, a node entry point made attempts/, or a log before that.
    """
    if not layout.kubernetes.exists() or layout.attempts.exists():
        return False
    return not layout.node_log(0).exists() or (layout.mirror / "node-0.json").exists()


# --- rendering ------------------------------------------------------------------------------------


def pods_outputs(job: Job) -> str:
    """The folder of the run directories as the pods see it."""
    return job.site.outputs or POD_OUTPUTS


def pods_image(job: Job) -> str:
    """The image that the pods run, by its digest where that is known."""
    return image_reference(job.site.container.image or DEFAULT_IMAGE)


def as_pods(job: Job, where_of: WhereOf) -> tuple[Job, str]:
    """The job with the image that its pods run, and a note; what it reads is looked for in them.

    Raises LaunchError where nothing could be submitted from here.
    """
    check_installed()
    connect(job.site.kubernetes.context)
    image = pods_image(job)
    container = replace(job.site.container, image=image)
    note = ""
    if "/" not in image:
        hint = "push it to a registry of yours and set container.image in the profile"
        note = f"image {image}: nodes that lack it ask Docker Hub; {hint}"
    elif "@sha256:" not in image:
        got = "a gang that starts again after the tag was pushed again runs other code"
        note = f"image {image}: {got}; name it by digest"
    return replace(job, site=replace(job.site, container=container)), note


def pod_files(job: Job, run_name: str) -> dict[str, str]:
    """job.yaml, and pvc.yaml where the profile makes claims, as the first submission's."""
    submission = PodSubmission(
        object_name=object_name(run_name),
        run_name=run_name,
        run_dir=f"{pods_outputs(job)}/{run_name}",
        image=pods_image(job),
    )
    return manifests(job, submission)


def manifests(job: Job, submission: PodSubmission) -> dict[str, str]:
    """The files of a submission, path -> text, by the bundle's own templates if it has any."""
    own = [bundle_directory(job) / "templates"]
    claims = render_claims(job, own)
    files = {PVC_YAML: claims} if claims else {}
    return {**files, JOB_YAML: render_kubernetes(job, submission, own)}


# --- submitting -----------------------------------------------------------------------------------


def submit(layout: RunLayout, job: Job, submission: PodSubmission, number: int) -> Submitted:
    """Write a submission's files into a run's directory and make its objects; where they are.

    Claims that are there already stay as they are. Raises KubernetesError where the server refuses
    one of them. However it fails, neither object nor runtime is left that nobody would know of; a
    line says so where the server can't be asked.
    """
    own, files = job.site.kubernetes, manifests(job, submission)
    for path, text in files.items():
        replace_file(layout.root / path, text)
    api = connect(own.context)
    for claim in documents(files.get(PVC_YAML, "")):
        _make_claim(api, own.namespace, claim)
    *before, body = documents(files[JOB_YAML])
    token, sent = uuid4().hex, list[tuple[ApiResource, Object]]()
    deadline = time.monotonic() + RUNTIME_SECONDS

    def make(resource: ApiResource, thing: Object) -> Object:
        thing["metadata"].setdefault("annotations", {})[TOKEN] = token
        sent.append((resource, thing))
        while True:
            try:
                return api.create(resource, own.namespace, thing)
            except KubernetesError as error:
                if not UNSEEN_RUNTIME.search(str(error)) or time.monotonic() > deadline:
                    raise
            time.sleep(AGAIN_SECONDS)

    try:
        for runtime in before:
            make(RUNTIME, runtime)
        there = make(RESOURCES[own.kind], body)
        for runtime in before:
            with suppress(KubernetesError):  # without the right to patch, `cancel` deletes it
                api.own(RUNTIME, own.namespace, runtime["metadata"]["name"], there)
        where = replace(_place(job, submission, number), uid=there["metadata"].get("uid", ""))
        replace_file(layout.kubernetes, json.dumps(asdict(where), indent=2) + "\n")
    except BaseException as error:
        if isinstance(error, KubernetesError) and not error.in_doubt:
            sent.pop()  # it was refused
        for resource, thing in reversed(sent):
            _take_back(api, resource, own.namespace, thing)
        raise
    return where


def _place(job: Job, submission: PodSubmission, number: int) -> Submitted:
    """Where a submission is to be; nothing is known of its object yet."""
    own = job.site.kubernetes
    return Submitted(
        kind=own.kind,
        context=own.context,
        namespace=own.namespace,
        name=submission.object_name,
        uid="",
        number=number,
        run_dir=submission.run_dir,
    )


def _take_back(api: Api, resource: ApiResource, namespace: str, body: Object) -> None:
    """Delete what this very submission made or may have made, else say that it may be there."""
    name, token = body["metadata"]["name"], body["metadata"]["annotations"][TOKEN]
    try:
        for wait in LATE_SECONDS:
            time.sleep(wait)
            if there := api.get(resource, namespace, name):
                if _annotations(there).get(TOKEN) == token:
                    api.delete(resource, namespace, name)
                return
    except KubernetesError as error:
        see = f"kubectl -n {namespace} delete {resource.plural}.{resource.group} {name}"
        got = f"{resource.kind} {namespace}/{name} may be there: {error}"
        print(f"warning: {got}; delete it: {see}", file=sys.stderr)


def _make_claim(api: Api, namespace: str, claim: Object) -> None:
    """Make a claim unless it is there, which is enough for who may make none."""
    try:
        api.create(CLAIM, namespace, claim)
    except KubernetesError as error:
        if error.status == FORBIDDEN:
            with suppress(KubernetesError):  # the first error is the one to tell
                if api.get(CLAIM, namespace, claim["metadata"]["name"]):
                    return
        if error.status != EXISTS:
            raise


def withdraw(where: Submitted) -> None:
    """Delete a submission's objects; its pods are told to stop and go. Raises KubernetesError."""
    api = connect(where.context)
    api.delete(RESOURCES[where.kind], where.namespace, where.name)
    if where.kind == "trainjob":
        with suppress(KubernetesError):  # gone with its owner, if that was written down
            api.delete(RUNTIME, where.namespace, where.name)


def unknown_submission(job: Job, submission: PodSubmission, number: int) -> Submitted | None:
    """A submission of this run under the name of the one to come, of which no file here tells.

    It was left by a shell that was killed. Raises KubernetesError.
    """
    where = _place(job, submission, number)
    api, runtimes = connect(where.context), [RUNTIME] if where.kind == "trainjob" else []
    labels = {
        RUN_LABEL: object_name(submission.run_name),
        SUBMISSION_LABEL: submission.object_name,
    }
    annotations = {
        RUN_NAME: submission.run_name,
        RUN_DIR: submission.run_dir,
        DIGEST: job.origin.digest,
    }
    for resource in (RESOURCES[where.kind], *runtimes):
        there = api.get(resource, where.namespace, where.name)
        if (
            there
            and labels.items() <= (there["metadata"].get("labels") or {}).items()
            and annotations.items() <= _annotations(there).items()
        ):
            return where
    return None


def _annotations(thing: Object) -> dict[str, str]:
    return thing["metadata"].get("annotations") or {}


def documents(text: str) -> list[Object]:
    """The objects of a manifest."""
    if not text:
        return []
    import yaml

    return [cast(Object, body) for body in yaml.safe_load_all(text) if body]
