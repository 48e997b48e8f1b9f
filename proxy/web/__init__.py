"""What a daemon serves by HTTP: its metrics, and a status page."""
