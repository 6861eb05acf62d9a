"""titan-recipes: versioned LLM training recipes, from a directory to a finished run."""

__version__ = "0.1.0"
