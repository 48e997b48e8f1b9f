#!/bin/sh
# In a bare Debian: installs the package as an operator would, and a configuration for each role.
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends systemd dbus iproute2 procps /root/package.deb
mptcp-proxy keygen -o /etc/mptcp-proxy/keys/home-1.key
cp /root/package/*.toml /etc/mptcp-proxy
cp /root/package/story.service /etc/systemd/system
systemctl enable -q story
