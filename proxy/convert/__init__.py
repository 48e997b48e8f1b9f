"""What proxy and gateway say to each other: TCP Convert (RFC 8803) and who may say it."""
