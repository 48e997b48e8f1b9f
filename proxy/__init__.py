"""A TUN-based transparent TCP-to-MPTCP proxy with its own userspace MPTCP engine."""
