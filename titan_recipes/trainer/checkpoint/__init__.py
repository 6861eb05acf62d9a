"""Checkpoints: the form on disk (`commit`), how ranks write it (`writer`), load, save (`store`).

`commit` and the verbs `python -m titan_recipes.trainer.checkpoint list|verify` need no torch, so
nothing is imported here: take `Checkpointer` from `titan_recipes.trainer.checkpoint.store`.
"""
