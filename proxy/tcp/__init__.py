"""TCP (RFC 9293) as a sans-IO state machine: packets and ``now`` in, packets and events out."""
