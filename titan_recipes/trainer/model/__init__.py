"""Models: plain PyTorch modules that know nothing of ranks, and how their weights begin."""
