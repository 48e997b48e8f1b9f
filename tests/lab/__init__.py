"""The lab: network namespaces, emulated links, daemons, servers and clients on one machine."""
