"""`image build` and `image inspect`: the container image, with Docker or Podman."""

from dataclasses import asdict
from pathlib import Path

import click

from titan_recipes.cli.tables import json_option, print_json

engine_option = click.option(
    "--engine", type=click.Choice(["docker", "podman"]), help="Default: docker, else podman."
)


@click.group()
def image() -> None:
    """Build the container image, or say what one is."""


@image.command(
    epilog="""\b
Examples:
  titan-recipes image build
  titan-recipes image build --tag registry.example.com/me/titan-recipes:0.1 --push
  titan-recipes image build --base-image ubuntu:24.04
  titan-recipes image build --secret id=pip.conf,src=$HOME/.config/pip/pip.conf"""
)
@click.option("--tag", help="Name and tag; default: titan-recipes:<version>.")
@click.option("--base-image", default="", help="What it builds on; default: a CUDA base image.")
@click.option("--push", is_flag=True, help="Push it, and keep its digest for later launches.")
@engine_option
@click.option(
    "--secret",
    "secrets",
    multiple=True,
    metavar="id=ID,src=FILE",
    help="For the build only: pip.conf (pip's settings) or ca.crt (certificates). May be repeated.",
)
@click.option(
    "--build-arg",
    "build_args",
    multiple=True,
    metavar="NAME=VALUE",
    help="A build argument for the engine. May be repeated.",
)
@click.option("--network", default="", help="Network of the build's commands, as host.")
@click.option(
    "--context",
    type=click.Path(path_type=Path),
    help="Checkout to build from; default: the one this titan-recipes runs from.",
)
def build(
    tag: str | None,
    base_image: str,
    push: bool,
    engine: str | None,
    secrets: tuple[str, ...],
    build_args: tuple[str, ...],
    network: str,
    context: Path | None,
) -> None:
    """Build the image from this checkout and tag it with the version.

    Jobs that are launched afterwards name it by its digest, once it was pushed.
    """
    from titan_recipes.launch.image import DEFAULT_IMAGE, build_image

    tag = tag or DEFAULT_IMAGE
    built = build_image(
        tag,
        engine=engine or "",
        context=context,
        base_image=base_image,
        build_args=build_args,
        secrets=secrets,
        network=network,
        push=push,
    )
    click.echo(f"built {tag}: {built.digest or built.id}")


@image.command(
    epilog="""\b
Examples:
  titan-recipes image inspect
  titan-recipes image inspect registry.example.com/me/titan-recipes:0.1 --json"""
)
@click.argument("name", required=False, metavar="[IMAGE]")
@engine_option
@json_option
def inspect(name: str | None, engine: str | None, as_json: bool) -> None:
    """Say what an image is.

    IMAGE: one that was built or pulled here; default: titan-recipes:<version>.
    """
    from titan_recipes.launch.image import DEFAULT_IMAGE, inspect_image
    from titan_recipes.launch.text import gib

    facts = inspect_image(name or DEFAULT_IMAGE, engine=engine or "")
    if as_json:
        print_json(asdict(facts))
        return
    lines = {
        "image": facts.image,
        "version": facts.version,
        "revision": facts.revision,
        "created": facts.created,
        "source": facts.source,
        "size": gib(facts.size_bytes / 2**30),
        "id": facts.id,
        "digest": facts.digest or "none: not pushed",
        "user": facts.user,
        "entrypoint": " ".join(facts.entrypoint),
    }
    for what, value in lines.items():
        click.echo(f"{what:<11} {value or 'unknown'}")
