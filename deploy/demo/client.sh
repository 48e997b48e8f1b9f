#!/bin/sh
# Any program at home: downloads the file again and again and says how fast, once a second.
set -eu
. /demo/lib.sh
default_via 172.28.1.3
server=http://172.28.10.20
until curl -sf --max-time 5 -o /dev/null $server/file.sha256; do
    echo "client: waiting for the proxy, the gateway and the server"
    sleep 1
done
device=$(interface_of 172.28.1.2)
received() { cat "/sys/class/net/$device/statistics/rx_bytes"; }
while :; do
    curl -sf -o /tmp/file $server/file &
    download=$!
    before=$(received)
    while kill -0 $download 2>/dev/null; do
        sleep 1
        now=$(received)
        echo "client: $(((now - before) * 8 / 1000000)) Mbit/s"
        before=$now
    done
    wait $download || { echo "client: the download FAILED"; exit 1; }
    if [ "$(sha256sum </tmp/file)" = "$(curl -sf $server/file.sha256)" ]; then
        echo "client: 128 MiB arrived whole"
    else
        echo "client: the file ARRIVED CHANGED"
        exit 1
    fi
done
