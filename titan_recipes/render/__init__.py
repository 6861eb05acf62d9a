"""Render: a Job as text for torchx and for schedulers. Pure functions, no torch."""

from titan_recipes.render.component import COMPONENT, render
from titan_recipes.render.sbatch import SBATCH, SESSION, Submission, render_sbatch

__all__ = ["COMPONENT", "SBATCH", "SESSION", "Submission", "render", "render_sbatch"]
