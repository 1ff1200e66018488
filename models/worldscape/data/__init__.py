"""Episodes: recording, storing, reading; simulators to record from."""
