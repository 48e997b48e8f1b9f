"""What a daemon serves by HTTP: its metrics."""
