"""What a slot remembers: keys and values of recent frames, and keyframes with geometry."""
