"""Render: a Job as text for torchx and for schedulers. Pure functions, no torch."""

from titan_recipes.render.component import COMPONENT, render

__all__ = ["COMPONENT", "render"]
