"""Congestion controls: a base class, a registry, and one file per algorithm."""
