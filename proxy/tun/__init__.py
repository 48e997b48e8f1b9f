"""Devices that carry packets: the TUN device, and devices that stand in for it or wrap it."""
