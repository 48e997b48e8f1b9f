"""Packet schedulers: which subflow carries the next bytes."""
