"""Where the packaged recipes and templates are: in the wheel's _data, or at the checkout's top.

That is also how the launcher knows which of the two it runs from.
"""

import shlex
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


@cache
def data_root() -> Path:
    """The directory that holds recipes/, docker/, slurm/ and k8s/."""
    installed = _PACKAGE / "_data"
    return installed if installed.is_dir() else _PACKAGE.parent


def install_command(extra: str) -> str:
    """The pip command that adds an extra: of the published package, or of this checkout."""
    root = data_root()
    if root.is_relative_to(_PACKAGE):
        return f"pip install 'titan-recipes[{extra}]'"
    return f"pip install -e {shlex.quote(f'{root}[{extra}]')}"
