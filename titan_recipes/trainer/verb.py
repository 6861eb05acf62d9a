"""What the verbs, `python -m titan_recipes.trainer.<verb>`, have in common: how they fail."""

import sys

from titan_recipes.errors import ConfigError, TitanRecipesError


def tell(error: TitanRecipesError) -> int:
    """Print it on stderr, a line for each problem; returns the exit code that it ends with."""
    lines = error.problems if isinstance(error, ConfigError) else (error,)
    for line in lines:
        print(f"error: {line}", file=sys.stderr)
    return error.exit_code
