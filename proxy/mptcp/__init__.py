"""Multipath TCP version 1 (RFC 8684) on top of ``proxy.tcp``, without any I/O."""
