"""WorldScape: a causal diffusion world model that is learned from recorded episodes and stepped like a simulator."""
