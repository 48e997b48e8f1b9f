# What the demo's containers share: where the networks of docker-compose.yml are.

# interface_of ADDRESS: the interface that has it. Docker numbers interfaces as it likes.
interface_of() {
    ip -o -4 address show | awk -v address="$1" '$4 ~ "^" address "/" { print $2; exit }'
}

# default_via ADDRESS: the one and only default route.
default_via() {
    ip route replace default via "$1"
}
