"""Path managers: which subflows exist and which addresses are announced."""
