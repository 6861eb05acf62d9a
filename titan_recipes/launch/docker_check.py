"""What is looked at before a container is made: the engine, the image, and what the job needs.

All that is wrong is said at once, and nothing is left behind.
"""

from collections.abc import Iterator
from dataclasses import replace

from titan_recipes.config.datasets import WhereOf
from titan_recipes.config.job import Job
from titan_recipes.errors import ConfigError, LaunchError, Problem
from titan_recipes.launch import docker_engine
from titan_recipes.launch.docker_inputs import with_homes
from titan_recipes.launch.docker_request import image_of
from titan_recipes.launch.image import DEFAULT_IMAGE
from titan_recipes.launch.inputs import input_problems
from titan_recipes.launch.machine import fit
from titan_recipes.launch.slurm_submit import missing_secrets
from titan_recipes.render.sbatch import asks_for_gpus

TOOLKIT = "install NVIDIA's container toolkit and restart the engine"
NOT_HERE = "not on this machine"


def image_cure(image: str) -> str:
    """How to get an image that the engine does not have."""
    if image == DEFAULT_IMAGE:
        return "build it: titan-recipes image build"
    if image.startswith("sha256:"):  # of a run that is resumed: removed, or built anew
        return "bring it back, or name another as site.container.image in the run's job.toml"
    return f"get it: docker pull {image}"


def as_container(job: Job, where_of: WhereOf) -> tuple[Job, str]:
    """The job as a container on this machine runs it, its image pinned; and a note.

    Raises ConfigError with all that keeps it from running here.
    """
    job = with_homes(job)
    problems = [*_node_problems(job, where_of), *missing_secrets(job)]
    if all(source == target.removesuffix(":ro") for source, target in job.site.mounts.items()):
        problems += input_problems(job, where_of)  # else they are elsewhere in the container
    where, named = job.origin.cluster or "--scheduler docker", image_of(job)
    try:
        gives_gpus = docker_engine.facts().gives_gpus
        image = docker_engine.pinned_image(named)
    except LaunchError as error:
        raise ConfigError([*problems, Problem("--scheduler docker", "", str(error))]) from error
    if image is None:
        problems.append(
            Problem(where, "container.image", f"{named}: {NOT_HERE}", image_cure(named))
        )
    note = ""
    if job.plan.nodes == 1 and (gives_gpus or asks_for_gpus(job)):
        try:
            job, note = fit(job, where_of)
        except ConfigError as error:
            problems += error.problems
        if asks_for_gpus(job) and not gives_gpus:
            got = "the engine gives no GPUs to containers"
            problems.append(Problem("--scheduler docker", "", got, TOOLKIT))
    if problems:
        raise ConfigError(problems)
    assert image is not None, "or there was a problem"
    container = replace(job.site.container, image=image)
    return replace(job, site=replace(job.site, container=container)), note


def _node_problems(job: Job, where_of: WhereOf) -> Iterator[Problem]:
    if job.plan.nodes > 1:
        got = f"the plan needs {job.plan.nodes} machines, --scheduler docker has this one"
        cure = "choose a plan with nodes = 1 (titan-recipes show RECIPE lists them), or --dry-run"
        yield Problem(where_of("plan.nodes"), "plan.nodes", got, cure)
