"""The trainer: `python -m titan_recipes.trainer job.toml`, one process of it on each rank.

It knows the schema and the errors, and nothing of bundles, schedulers or the command line.
"""
