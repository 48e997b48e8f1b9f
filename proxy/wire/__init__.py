"""What is on the wire: sequence arithmetic, addresses, options, ICMP, the virtio header."""
