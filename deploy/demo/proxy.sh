#!/bin/sh
# The box at home: the configuration with this container's interface names, then the daemon.
set -eu
. /demo/lib.sh
ip route del default 2>/dev/null || true
sed -e "s/@LAN@/$(interface_of 172.28.1.3)/" \
    -e "s/@FIBRE@/$(interface_of 172.28.2.3)/" \
    -e "s/@LTE@/$(interface_of 172.28.3.3)/" /demo/proxy.toml >/run/mptcp-proxy/proxy.toml
exec mptcp-proxy run -c /run/mptcp-proxy/proxy.toml
