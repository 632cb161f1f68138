# shellcheck shell=bash
# Network namespaces for demos and measurements. Sourced after common.sh.
#
# `internet` is a bridge with everybody's default gateway; a cluster is a gateway on it and a pod behind that.

OWNER=$$

# space NAME: how `ip netns` knows it.
space() {
    echo "subsea-$OWNER-$1"
}

# within NAME COMMAND...: runs the command in a namespace.
within() {
    local name
    name=$(space "$1")
    shift
    ip netns exec "$name" "$@"
}

make_space() {
    ip netns add "$(space "$1")"
    # A new namespace takes over some settings of the host: start from the kernel's defaults.
    within "$1" sysctl -q -w net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0 \
        net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
    within "$1" ip link set lo up
}

# make_internet NAME
make_internet() {
    local name=$1
    make_space "$name"
    within "$name" ip link add br0 type bridge
    within "$name" ip address add 192.0.2.254/24 dev br0
    within "$name" ip address add 2001:db8::fe/64 dev br0
    within "$name" ip link set br0 up
}

# put_on_internet NAME PORT IPV4 IPV6 INTERNET: PORT is the name of the bridge's port.
put_on_internet() {
    local name=$1 port=$2 v4=$3 v6=$4 internet=$5
    ip link add "$port" netns "$(space "$internet")" type veth peer name eth0 netns "$(space "$name")"
    within "$internet" ip link set "$port" master br0 up
    within "$name" ip address add "$v4/24" dev eth0
    within "$name" ip address add "$v6/64" dev eth0
    within "$name" ip link set eth0 up
    within "$name" ip route add default via 192.0.2.254
    within "$name" ip -6 route add default via 2001:db8::fe
}

# make_cluster NAME NUMBER INTERNET [dual]: NAME-gw has 192.0.2.10NUMBER, NAME-pod 10.1NUMBER.0.10 and perhaps fd00:1:NUMBER::10.
make_cluster() {
    local name=$1 number=$2 internet=$3 family=${4:-}
    make_space "$name-gw"
    make_space "$name-pod"
    put_on_internet "$name-gw" "$name" "192.0.2.10$number" "2001:db8::10$number" "$internet"
    ip link add cni0 netns "$(space "$name-gw")" type veth peer name eth0 netns "$(space "$name-pod")"
    within "$name-gw" ip address add "10.1$number.0.1/24" dev cni0
    within "$name-gw" ip link set cni0 up
    within "$name-pod" ip address add "10.1$number.0.10/24" dev eth0
    within "$name-pod" ip link set eth0 up
    within "$name-pod" ip route add default via "10.1$number.0.1"
    if [[ $family == dual ]]; then
        within "$name-gw" ip address add "fd00:1:$number::1/64" dev cni0
        within "$name-pod" ip address add "fd00:1:$number::10/64" dev eth0
        within "$name-pod" ip -6 route add default via "fd00:1:$number::1"
    fi
}

# start NAME LOG COMMAND...: a daemon in a namespace, which outlives the terminal; clean_netns ends it.
start() {
    local name=$1 log=$2
    shift 2
    setsid ip netns exec "$(space "$name")" "$@" </dev/null >"$log" 2>&1 &
    # Its end is no news.
    disown
}

# eventually SECONDS COMMAND...: repeats a command until it succeeds.
eventually() {
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [[ $SECONDS -lt $end ]] || return 1
        sleep 0.1
    done
}
