"""Heavy operators: deterministic sums over edges, contracts, their reference in plain PyTorch, and the choice."""
