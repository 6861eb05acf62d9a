"""`generate`: a checkpoint continues a text; run as `python -m titan_recipes.trainer.generate`."""

import click

from titan_recipes.bundle.find import find_bundle
from titan_recipes.cli.recipes import set_option
from titan_recipes.cli.trainer_verbs import place_of, run_trainer
from titan_recipes.errors import LaunchError


@click.command(
    epilog="""\b
Examples:
  titan-recipes generate my_run --prompt 'def main('
  titan-recipes generate my_run --chat --prompt 'Why is the sky blue?' --temperature 0
  titan-recipes generate outputs/my_run/checkpoints/step-00000060 --prompt 'import '"""
)
@click.argument("where", metavar="RUN_OR_DIRECTORY")
@click.option("--prompt", required=True, help="The text to continue; with --chat the question.")
@click.option("--chat", is_flag=True, help="Ask as data.chat_template says, and print the answer.")
@click.option(
    "--max-new-tokens", type=click.IntRange(1), default=200, show_default=True, help="The most."
)
@click.option(
    "--temperature",
    type=click.FloatRange(0),
    default=0.8,
    show_default=True,
    help="Below 1 likely tokens become likelier; 0 always takes the likeliest.",
)
@click.option(
    "--top-k", type=click.IntRange(0), default=0, help="Draw out of the K likeliest; 0 = of all."
)
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Draw out of the likeliest that make up this probability.",
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, help="Of the draws.")
@click.option("--device", default="", help="cpu, cuda or cuda:N; default: a GPU if there is one.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, at the end.")
@click.option("--recipe", default="", help="The model's recipe, where no run says it.")
@set_option
def generate(
    where: str,
    prompt: str,
    chat: bool,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    device: str,
    as_json: bool,
    recipe: str,
    overrides: tuple[str, ...],
) -> None:
    """Have a run's newest checkpoint, or the one in a directory, continue a text."""
    arguments = [place_of(where), f"--prompt={prompt}", "--max-new-tokens", str(max_new_tokens)]
    arguments += ["--temperature", str(temperature), "--top-k", str(top_k), "--top-p", str(top_p)]
    arguments += ["--seed", str(seed), "--device", device]
    arguments += ["--chat"] * chat + ["--json"] * as_json
    if recipe:
        from titan_recipes.config.job import encode

        job = find_bundle(recipe).resolve("", overrides=overrides).job
        arguments += ["--job", encode(job)]
    elif overrides:
        raise LaunchError("--set says how --recipe is resolved; a run's model is what it is")
    run_trainer("generate", arguments, ("torch", "tiktoken"))
