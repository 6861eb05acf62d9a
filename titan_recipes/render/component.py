"""component.py: the torchx component of one job, self-contained.

The job travels in it as one argument, so a pod that sees no file of the laptop can run it. The text
holds no path of the machine it was made on, unless the caller gives one.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from jinja2 import TemplateError

from titan_recipes.config.hardware import ANY_GPU, NO_GPU
from titan_recipes.config.job import Job, encode
from titan_recipes.errors import BundleError
from titan_recipes.render.environment import environment

COMPONENT = "component.py"
LINE_WIDTH = 92


def render(
    job: Job,
    *,
    name: str = "",
    outputs: str = "outputs",
    image: str = "",
    search_path: Sequence[Path] = (),
) -> dict[str, str]:
    """The files that launch this job: path -> text.

    name, outputs: the defaults of the run's name ("" = the recipe's with the time) and folder;
    image: container image, "" = the Python that launches; search_path: directories whose templates
    win over the packaged ones. Raises BundleError where one can't be rendered, or not to Python.
    """
    gpus = 0 if job.plan.gpu in (NO_GPU, ANY_GPU) else job.plan.gpus_per_node
    values = {
        "title": f"{job.recipe_id}, plan {job.origin.plan}",
        "digest": job.origin.digest,
        "recipe": job.recipe.name,
        "name": name,
        "outputs": outputs,
        "image": image,
        "python": job.site.container.python,
        "nodes": job.plan.nodes,
        "gpus": gpus,
        "env": job.env,
        "job_lines": textwrap.wrap(encode(job), LINE_WIDTH, break_on_hyphens=False),
    }
    template = f"{COMPONENT}.j2"
    places = ", ".join(str(path) for path in search_path) or "the package"
    try:
        text = environment(search_path).get_template(template).render(values)
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise BundleError(f"{template}, from {places}: {error}") from error
    try:
        compile(text, COMPONENT, "exec")
    except (SyntaxError, ValueError) as error:
        got = f"what it renders is not Python: {error}"
        raise BundleError(f"{template}, from {places}: {got}") from error
    return {COMPONENT: text}
