"""The user's home, which may be missing: a container's uid without a passwd entry, HOME unset.

`~` that stands for no folder is left as it is, and so names a folder that is not there.
"""

import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """The path with `~` or `~user` replaced, as it is where there is no such home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def user_folder(variable: str, fallback: str) -> Path | None:
    """The folder that an XDG variable names, else `fallback` in the home; None without a home."""
    folder = expanded(os.environ.get(variable) or f"~/{fallback}")
    return None if str(folder).startswith("~") else folder
