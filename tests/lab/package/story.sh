#!/bin/sh
# On a booted host: starts, kills and stops each unit, and removes the package. Each finding is a
# line of JSON.
tell() { printf '{"%s": "%s"}\n' "$1" "$2"; }
pid() { systemctl show -p MainPID --value "$1"; }
snapshot() {
    {
        ls /sys/class/net
        ip rule
        ip -6 rule
        ip route show table all
        ip -6 route show table all
        nft list ruleset
        grep . /proc/sys/net/ipv4/conf/*/forwarding /proc/sys/net/ipv6/conf/*/forwarding
    } | grep -v fe80
}
# Waits for what becomes true at last.
until_true() {
    for _ in $(seq 100); do
        if "$@" >/dev/null 2>&1; then return 0; fi
        sleep 0.1
    done
    return 1
}

chmod 666 /dev/net/tun # as udev has it
for name in lan0 pub; do
    ip link add $name type veth peer name far-$name
    ip link set $name up
    ip link set far-$name up
done
ip address add 203.0.113.10/24 dev pub
ip address add 192.168.77.1/24 dev lan0
ip route add default via 203.0.113.1

for unit in mptcp-gateway mptcp-proxy; do
    snapshot >/root/before
    systemctl start $unit
    tell "$unit started" "$(systemctl is-active $unit)"
    first=$(pid $unit)
    tell "$unit user" "$(ps -o user:20= -p "$first" | tr -d ' ')"
    tell "$unit capabilities" "$(sed -n 's/^CapEff:[[:space:]]*//p' "/proc/$first/status")"
    tell "$unit device" "$(test -e /sys/class/net/$unit && echo yes)"
    mptcp-proxy status
    systemctl kill -s KILL $unit
    again() { [ "$(pid $unit)" != "$first" ] && [ "$(pid $unit)" != 0 ] && systemctl -q is-active $unit; }
    until_true again
    tell "$unit after kill" "$(systemctl is-active $unit)"
    tell "$unit new process" "$(test "$(pid $unit)" != "$first" && echo yes)"
    systemctl stop $unit
    snapshot >/root/after
    tell "$unit left behind" "$(diff /root/before /root/after | tr '\n"' ' .')"
    journalctl -u $unit --no-pager
done

dpkg -P mptcp-proxy
tell "files after purge" "$(find / -xdev -name 'mptcp*' -not -path '/root/*' -not -path '/sys/*' \
    -not -path '/var/log/*' -not -path '/etc/systemd/*' -not -path '/usr/share/bash-completion/*' \
    -not -path '/proc/*' | tr '\n' ' ')"
