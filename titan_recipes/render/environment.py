"""The one jinja environment: sandboxed, nothing undefined, a filter for each language.

`| sh` quotes for a POSIX shell, `| tojson` writes JSON, `| yaml` YAML, `| repr` Python.
Templates do no arithmetic: what they show is computed before.
"""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from jinja2 import FileSystemLoader, StrictUndefined
from jinja2.sandbox import SandboxedEnvironment

from titan_recipes.config.data_root import data_root
from titan_recipes.render.yaml_text import to_yaml

PACKAGED = Path(__file__).parent / "templates"


def environment(search_path: Sequence[Path] = ()) -> SandboxedEnvironment:
    """The environment; a template in `search_path` wins over the packaged one of its name."""
    jinja = SandboxedEnvironment(
        loader=FileSystemLoader(
            [*search_path, PACKAGED, data_root() / "slurm", data_root() / "k8s"]
        ),
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    jinja.filters.update(sh=quote, tojson=json.dumps, yaml=to_yaml, repr=repr)
    return jinja


def quote(value: object) -> str:
    """One word of a POSIX shell."""
    return shlex.quote(str(value))
