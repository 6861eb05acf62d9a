"""Where the packaged recipes and templates are: in the wheel's _data, or at the checkout's top."""

from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


@cache
def data_root() -> Path:
    """The directory that holds recipes/, docker/, slurm/ and k8s/."""
    installed = _PACKAGE / "_data"
    return installed if installed.is_dir() else _PACKAGE.parent
