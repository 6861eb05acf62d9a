"""Optimizers of our own, each for one rank's shards; `trainer.optimizer` chooses among them."""
