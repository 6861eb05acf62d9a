"""Launch: run records, the node entry point, our torchx schedulers, following a run. No torch."""
