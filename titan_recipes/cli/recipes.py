"""`list`, `show` and `validate`: what recipes there are, what is in one, whether it holds."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

import click

from titan_recipes.bundle.bundle import Bundle
from titan_recipes.bundle.find import find_bundle, list_bundles
from titan_recipes.cli.tables import json_option, print_json, print_table
from titan_recipes.errors import ConfigError, Problem

if TYPE_CHECKING:
    from titan_recipes.config.job import Job
    from titan_recipes.config.resolve import Resolution

recipe_argument = click.argument("recipe")
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override section.key (TOML)."
)


@click.command(
    epilog="""\b
Examples:
  titan-recipes list
  titan-recipes list --tag pretrain --json"""
)
@click.option("--tag", "tags", multiple=True, help="Only recipes with this tag (repeatable).")
@json_option
def list_recipes(tags: tuple[str, ...], as_json: bool) -> None:
    """List the recipes there are: ./recipes, $TITAN_RECIPES_PATH, and those of the package."""
    listed = [entry for entry in list_bundles() if {*tags} <= {*entry.tags}]
    if as_json:
        print_json(
            [
                {
                    "name": entry.bundle.name,
                    "version": entry.version,
                    "summary": entry.summary,
                    "tags": list(entry.tags),
                    "plans": entry.bundle.plans(),
                    "deprecated": entry.deprecated,
                    "broken": entry.broken,
                    "path": str(entry.bundle.path.resolve()),
                }
                for entry in listed
            ]
        )
        return
    rows: list[tuple[str, str, str, str]] = []
    for entry in listed:
        text = entry.summary
        if entry.broken or entry.deprecated:
            text = f"broken: {entry.broken}" if entry.broken else f"deprecated: {entry.deprecated}"
        rows.append((entry.bundle.name, entry.version, " ".join(entry.bundle.plans()), text))
    print_table(("RECIPE", "VERSION", "PLANS", "SUMMARY"), rows)


@click.command(
    epilog="""\b
Examples:
  titan-recipes show llama3_8b
  titan-recipes show llama3_8b --plan h100x8 --resolved
  titan-recipes show llama3_debug --resolved --set training.steps=20 --json"""
)
@recipe_argument
@click.option("--plan", default="", help="The plan to resolve; default: the recipe's own default.")
@click.option("--resolved", is_flag=True, help="Every value, and which file set it.")
@set_option
@json_option
def show(recipe: str, plan: str, resolved: bool, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show a recipe: what it is, its plans, and with --resolved every value."""
    bundle = find_bundle(recipe)
    chosen = plan or bundle.default_plan
    resolution = bundle.resolve(chosen, overrides=overrides)
    if resolved:
        _show_resolved(resolution, as_json)
        return
    plans = [chosen] if plan else bundle.plans()
    jobs = {name: bundle.resolve(name, overrides=overrides).job for name in plans}
    if as_json:
        print_json(_summary(bundle, resolution.job) | {"plans": {n: _plan(jobs[n]) for n in jobs}})
        return
    for key, value in _summary(bundle, resolution.job).items():
        click.echo(f"{key:<12}{value:,}" if isinstance(value, int) else f"{key:<12}{value}")
    click.echo()
    rows = [_plan_row(name, job, name == bundle.default_plan) for name, job in jobs.items()]
    print_table(("PLAN", "HARDWARE", "BATCH", "TOKENS/STEP", "EXPECTED", "SUMMARY"), rows)


def _summary(bundle: Bundle, job: "Job") -> dict[str, Any]:
    facts: dict[str, Any] = {
        "recipe": job.recipe_id,
        "summary": job.recipe.summary,
        "deprecated": job.recipe.deprecated,
        "tags": " ".join(job.recipe.tags),
        "parameters": job.derived.num_params,
        "tokenizer": job.assets.tokenizer,
        "hf_repo": job.assets.hf_repo,
        "path": bundle.where(),
        "digest": job.origin.digest,
    }
    return {key: value for key, value in facts.items() if value}


def _plan(job: "Job") -> dict[str, Any]:
    return {
        **asdict(job.plan),
        "expect": asdict(job.expect),
        "derived": asdict(job.derived),
    }


def _plan_row(name: str, job: "Job", is_default: bool) -> tuple[str, ...]:
    plan, derived, expect = job.plan, job.derived, job.expect
    batch = f"{job.training.local_batch_size} x {derived.gradient_accumulation_steps} x "
    expected = f"{expect.tokens_per_second_per_gpu:,.0f} tokens/s/GPU, "
    expected += f"{expect.peak_memory_gib:.1f} GiB, {expect.source}"
    return (
        f"{name} (default)" if is_default else name,
        f"{plan.nodes} x {plan.gpus_per_node} {plan.gpu}",
        f"{batch}{job.dp_degree}",
        f"{derived.tokens_per_step:,}",
        expected if expect.source else "",
        plan.summary,
    )


def _show_resolved(resolution: "Resolution", as_json: bool) -> None:
    from titan_recipes.config.load import all_keys, show
    from titan_recipes.config.schema import Config
    from titan_recipes.config.support import value_at

    job, provenance = resolution.job, resolution.provenance
    values = {key: value_at(job, key) for key in all_keys(Config)}
    values = {key: value for key, value in values.items() if value is not None}
    values |= {f"derived.{k}": v for k, v in asdict(job.derived).items()}
    sources = {key: provenance.get(key, "default") for key in values}
    sources |= {key: "derived" for key in values if key.startswith("derived.")}
    if as_json:
        print_json({key: {"value": values[key], "from": sources[key]} for key in values})
        return
    rows = [(key, show(_as_toml(value)), sources[key]) for key, value in values.items()]
    print_table(("KEY", "VALUE", "FROM"), rows)


def _as_toml(value: Any) -> Any:
    return list(cast(tuple[Any, ...], value)) if isinstance(value, tuple) else value


@click.command(
    epilog="""\b
Examples:
  titan-recipes validate llama3_8b
  titan-recipes validate ./my_recipe --plan h100x8
  titan-recipes validate llama3_debug --set training.global_batch_size=7"""
)
@recipe_argument
@click.option("--plan", default="all", show_default=True, help='One plan, or "all".')
@set_option
@json_option
def validate(recipe: str, plan: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check a recipe, by name or directory: all problems of all its plans, and what follows."""
    bundle = find_bundle(recipe)
    plans = (bundle.plans() or [""]) if plan == "all" else [plan]
    # The same problem of a shared file shows up in every plan; dicts keep the first of each.
    problems: dict[Problem, None] = {}
    checked: dict[str, Resolution] = {}
    for name in plans:
        try:
            checked[name] = bundle.resolve(name, overrides=overrides)
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        raise ConfigError(problems)
    if as_json:
        notes = {name: [*r.notes, *r.dormant] for name, r in checked.items()}
        print_json({name: _plan(r.job) | {"notes": notes[name]} for name, r in checked.items()})
        return
    for name, resolution in checked.items():
        click.echo(f"{bundle.name} {name}: valid")
        said = (*resolution.notes, *resolution.dormant)
        for line in (*_arithmetic(resolution.job), *(f"note: {note}" for note in said)):
            click.echo(f"  {line}")


def _arithmetic(job: "Job") -> list[str]:
    d, training = job.derived, job.training
    return [
        f"world size = {job.plan.nodes} nodes x {job.plan.gpus_per_node} {job.plan.gpu} = "
        f"{d.world_size}",
        f"mesh: dp_replicate {d.dp_replicate}, dp_shard {d.dp_shard}, cp {d.cp}, tp {d.tp}, "
        f"pp {d.pp}, ep {d.ep}",
        f"global batch = {training.local_batch_size} sequences x {d.gradient_accumulation_steps} "
        f"accumulation steps x {job.dp_degree} ranks = {d.global_batch_size}",
        f"tokens per step = {d.global_batch_size} x {training.seq_len:,} = {d.tokens_per_step:,}",
        f"schedule = {d.warmup_steps:,} warmup + {d.decay_steps:,} decay of {d.schedule_steps:,} "
        f"steps; {training.steps:,} steps x {d.tokens_per_step:,} = "
        f"{training.steps * d.tokens_per_step:,} tokens",
        f"parameters = {d.num_params:,}; FLOPs per token = {d.flops_per_token:,}",
    ]
