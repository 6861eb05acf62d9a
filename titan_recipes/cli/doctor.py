"""`doctor`: the preflight's checks of one machine, from a shell."""

import os
import sys
from dataclasses import asdict
from pathlib import Path

import click

from titan_recipes.cli.tables import json_option, print_json, print_table
from titan_recipes.errors import EXIT_DONE, EXIT_USER


@click.command(
    epilog="""\b
Examples:
  titan-recipes doctor
  titan-recipes doctor llama3_8b --plan h100x8
  srun --nodes=2 --ntasks-per-node=1 titan-recipes doctor llama3_8b --cluster lab"""
)
@click.argument("recipe", required=False)
@click.option("--plan", default="", help="The recipe's plan; default: its own default.")
@click.option("--cluster", help="Cluster profile, by name or path; default: the one named default.")
@json_option
def doctor(recipe: str | None, plan: str, cluster: str | None, as_json: bool) -> None:
    """Check this machine, for RECIPE's plan where one is given; exits 2 where it would not do.

    GPUs are counted where the job would run: here, or in a SLURM job.
    """
    from titan_recipes.bundle.find import find_bundle
    from titan_recipes.config.cluster import find_cluster
    from titan_recipes.config.hardware import ANY_GPU
    from titan_recipes.errors import LaunchError
    from titan_recipes.launch.node_checks import check_node, check_packages

    name, profile = find_cluster(cluster)
    gpu, num_wanted = ANY_GPU, None
    if recipe is not None:
        job = find_bundle(recipe).resolve(plan, cluster=profile, cluster_name=name).job
        gpu, num_wanted = job.plan.gpu, job.plan.gpus_per_node
    elif plan:
        raise LaunchError("--plan: a plan is a recipe's; name the recipe too")
    if profile.scheduler != "local" and "SLURM_JOB_ID" not in os.environ:
        num_wanted = None
    outputs = profile.outputs or os.environ.get("TITAN_RECIPES_OUTPUTS") or "outputs"
    findings = [
        *check_node(gpu, num_wanted, profile.preflight.min_shm_gib, [Path(outputs).absolute()]),
        check_packages(),
    ]
    ok = all(finding.ok for finding in findings)
    if as_json:
        print_json({"ok": ok, "findings": [asdict(finding) for finding in findings]})
    else:
        rows = [(one.name, "ok" if one.ok else "BAD", one.seen, one.cure) for one in findings]
        print_table(("CHECK", "STATE", "SEEN", "CURE"), rows)
    sys.exit(EXIT_DONE if ok else EXIT_USER)
