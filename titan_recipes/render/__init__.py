"""Render: a Job as text for torchx and for schedulers. Pure functions, no torch."""

from titan_recipes.render.component import COMPONENT, render
from titan_recipes.render.kubernetes import (
    JOB_YAML,
    PVC_YAML,
    RESOURCES,
    SESSION_KUBERNETES,
    PodSubmission,
    object_name,
    render_claims,
    render_kubernetes,
)
from titan_recipes.render.sbatch import SBATCH, SESSION, Submission, render_sbatch

__all__ = [
    "COMPONENT",
    "JOB_YAML",
    "PVC_YAML",
    "RESOURCES",
    "SBATCH",
    "SESSION",
    "SESSION_KUBERNETES",
    "PodSubmission",
    "Submission",
    "object_name",
    "render",
    "render_claims",
    "render_kubernetes",
    "render_sbatch",
]
