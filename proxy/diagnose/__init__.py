"""What an operator asks of his uplinks: is anything wrong with them, and how fast are they."""
