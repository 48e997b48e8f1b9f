#!/bin/sh
# An uplink: forwards between home and the Internet, at RATE (as tc writes it) each way.
#   router.sh HOME-ADDRESS INTERNET-ADDRESS RATE
set -eu
. /demo/lib.sh
home=$(interface_of "$1")
internet=$(interface_of "$2")
for device in "$home" "$internet"; do
    tc qdisc replace dev "$device" root tbf rate "$3" burst 32kb latency 60ms
done
# As an Internet provider's box does: one address outwards.
nft -f - <<END
table ip demo {
    chain outwards {
        type nat hook postrouting priority srcnat
        oifname "$internet" masquerade
    }
}
END
echo "router: $3 between $home and $internet"
trap 'exit 0' TERM
while :; do sleep 3600 & wait $!; done
