"""Pairs the two sides of a proxied TCP conversation, for either role."""
