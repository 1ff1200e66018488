"""Training: the visible loop, its optimisers and checkpoints, and one module per stage (codec, world, heads)."""
