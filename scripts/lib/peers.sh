# shellcheck shell=bash
# The data planes that scripts/bench-tunnel compares. Sourced after common.sh and world.sh.
#
# Third-party programs are pinned here and built into a cache outside of the tree, so that a fresh clone does not build them again.

CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/subsea/bench
WIREGUARD_GO_VERSION=v0.0.0-20260522210424-ecfc5a8d5446
BORINGTUN_VERSION=0.7.1
GOTATUN_VERSION=0.10.2
WIREGUARD_GO=$CACHE/wireguard-go-$WIREGUARD_GO_VERSION/wireguard
BORINGTUN=$CACHE/boringtun-cli-$BORINGTUN_VERSION/bin/boringtun-cli
GOTATUN=$CACHE/gotatun-cli-$GOTATUN_VERSION/bin/gotatun

# Short, since the names of bridge ports are at most 15 bytes.
declare -A LETTER=([subsea]=s [wireguard-go]=w [boringtun-cli]=b [gotatun]=g [plain]=p)
# Further flags for the gateways of subsea, and those that switch its offloads off.
GATEWAY_FLAGS=()
OFFLOADS_OFF=''
# What was measured, for the report.
# shellcheck disable=SC2034 # used by those who source this
declare -A VERSION=(
    [wireguard-go]="golang.zx2c4.com/wireguard@$WIREGUARD_GO_VERSION"
    [boringtun-cli]="boringtun-cli $BORINGTUN_VERSION, --threads 1"
    [gotatun]="gotatun-cli $GOTATUN_VERSION"
    [plain]="plain routing, no tunnel"
)

# build_peer NAME: builds its program unless it is there; fails if it does not build.
build_peer() {
    case $1 in
    subsea | plain) ;;
    wireguard-go)
        [[ ! -x $WIREGUARD_GO ]] || return 0
        install_missing go:golang-go
        step "Building $1 $WIREGUARD_GO_VERSION (once)"
        # It needs a newer Go than some distributions have; `go` itself says which.
        GOBIN=$(dirname "$WIREGUARD_GO") GOFLAGS=-mod=mod CGO_ENABLED=0 \
            go install -trimpath "golang.zx2c4.com/wireguard@$WIREGUARD_GO_VERSION"
        ;;
    boringtun-cli) build_crate "$BORINGTUN" boringtun-cli "$BORINGTUN_VERSION" ;;
    gotatun) build_crate "$GOTATUN" gotatun-cli "$GOTATUN_VERSION" ;;
    *) die "there is no implementation called $1" "one of: ${!LETTER[*]}" ;;
    esac
}

# build_crate PROGRAM CRATE VERSION
build_crate() {
    [[ ! -x $1 ]] || return 0
    step "Building $2 $3 (once)"
    local status=0
    # Outside of the tree, where the tree's own settings do not reach.
    (cd "$CACHE" && cargo install "$2" --version "$3" --locked --root "$CACHE/$2-$3" --target-dir "$CACHE/target") || status=$?
    rm -rf "$CACHE/target"
    return "$status"
}

# make_world KIND NAME VARIANT: the five namespaces NAME-{net,a-gw,a-pod,b-gw,b-pod} with running daemons.
#
# VARIANT is empty, or one of `jumbo` (underlay of 9,000 bytes), `off` (without offloads), `six` (IPv6 inside and outside),
# `many` (499 more peers, which do not answer), `floor` (a build without the cipher).
make_world() {
    local kind=$1 name=$2 variant=$3 family=''
    [[ $variant != six ]] || family=dual
    make_internet "$name-net"
    make_cluster "$name-a" 1 "$name-net" "$family"
    make_cluster "$name-b" 2 "$name-net" "$family"
    [[ $variant != jumbo ]] || grow "$name"
    start "$name-b-pod" "$WORK/iperf-$name.log" iperf3 -s
    case $kind in
    plain) connect_plain "$name" ;;
    subsea) connect_subsea "$name" "$variant" ;;
    *) connect_stock "$kind" "$name" "$variant" ;;
    esac
    eventually 20 within "$name-a-pod" ping -c 1 -W 1 10.12.0.10 || die "no ping through the tunnel of $kind" "$(tail -n 20 "$WORK"/*"-$name"*.log)"
}

# grow NAME: every link of a world to jumbo frames.
grow() {
    local part link
    for part in net a-gw a-pod b-gw b-pod; do
        for link in $(within "$1-$part" ls /sys/class/net); do
            [[ $link == lo ]] || within "$1-$part" ip link set "$link" mtu 9000
        done
    done
}

connect_plain() {
    local side n other
    for side in a:1:2 b:2:1; do
        IFS=: read -r side n other <<<"$side"
        within "$1-$side-gw" sysctl -q -w net.ipv4.ip_forward=1
        within "$1-$side-gw" ip route add "10.1$other.0.0/16" via "192.0.2.10$other"
    done
}

# connect_subsea NAME VARIANT: a broker, two joins, two gateways.
connect_subsea() {
    local name=$1 dir=$WORK/$1 admin=$WORK/$1/broker/admin.yaml side n blocks program=$SUBSEA
    [[ $2 != floor ]] || program=$SUBSEA_FLOOR_BIN
    mkdir "$dir"
    start "$name-net" "$WORK/broker-$name.log" "$SUBSEA_BROKER" serve --data-dir "$dir/broker" --listen 192.0.2.254:7443
    eventually 20 within "$name-net" "$SUBSEA_BROKER" --admin "$admin" status || die "the broker does not answer: $(cat "$WORK/broker-$name.log")"
    if [[ $2 == many ]]; then
        # Four at a time: each is a process and a TLS connection.
        # shellcheck disable=SC2016 # that shell expands them
        strangers | nl -w 1 -s ' ' | xargs -P 4 -L 1 bash -euc \
            'ip netns exec "$0" "$1" --admin "$2" gateway add --cluster "stranger-$3" --public-key "$4" --pod-cidr "$5" --endpoint "$6" >/dev/null' \
            "$(space "$name-net")" "$SUBSEA_BROKER" "$admin"
    fi
    for side in a:1 b:2; do
        IFS=: read -r side n <<<"$side"
        local flags=()
        blocks=(--pod-cidr "10.1$n.0.0/16" --service-cidr "10.9$n.0.0/20")
        case $2 in
        jumbo) flags=(--mtu 8920) ;;
        off) read -r -a flags <<<"$OFFLOADS_OFF" ;;
        six)
            blocks+=(--pod-cidr "fd00:1:$n::/48" --service-cidr "fd00:2:$n::/108")
            flags=(--endpoint "[2001:db8::10$n]:51820")
            ;;
        esac
        within "$name-net" "$SUBSEA_BROKER" --admin "$admin" token create --cluster "$side" -o "$dir/$side.join"
        within "$name-$side-gw" "$SUBSEA" join "$dir/$side.join" --cluster "$side" "${blocks[@]}" --state-dir "$dir/$side" >/dev/null
        start "$name-$side-gw" "$WORK/gateway-$name-$side.log" "$program" gateway --driver userspace --state-dir "$dir/$side" "${flags[@]}" "${GATEWAY_FLAGS[@]}"
    done
    if [[ $2 == many ]]; then
        # They do not answer, so nobody waits until all are connected.
        eventually 20 knows_many "$name" a || die "gateway a does not know 500 clusters" "$(tail -n 5 "$WORK/gateway-$name-a.log")"
        eventually 20 knows_many "$name" b || die "gateway b does not know 500 clusters" "$(tail -n 5 "$WORK/gateway-$name-b.log")"
        return
    fi
    within "$name-a-gw" "$SUBSEA" status --state-dir "$dir/a" --wait 30s >/dev/null || die "no tunnel: $(cat "$WORK/gateway-$name-a.log")"
}

# knows_many WORLD SIDE: whether a gateway has its 500 peers.
knows_many() {
    within "$1-$2-gw" "$SUBSEA" status --state-dir "$WORK/$1/$2" -o json | jq -e '.members | length == 500'
}

# strangers: 499 peers as `KEY BLOCK ENDPOINT`, one a line; no gateway has their addresses.
strangers() {
    local i
    for ((i = 0; i < 499; i++)); do
        echo "$(head -c 32 /dev/urandom | base64) 10.$((100 + i / 250)).$((i % 250)).0/24 192.0.2.$((1 + i % 90)):$((20000 + i))"
    done
}

# connect_stock KIND NAME VARIANT: two daemons that `wg` configures.
connect_stock() {
    local kind=$1 name=$2 side n other device command keys=()
    for n in 1 2; do
        (umask 077 && wg genkey >"$WORK/$name-$n.key")
        keys[n]=$(wg pubkey <"$WORK/$name-$n.key")
    done
    for side in a:1:2 b:2:1; do
        IFS=: read -r side n other <<<"$side"
        # Its control socket is named after the device, in a place that all namespaces share.
        device=$(device "$name" "$n")
        case $kind in
        wireguard-go) command=("$WIREGUARD_GO" --foreground "$device") ;;
        # One thread is its best setting here: its threads share one lock for a peer.
        boringtun-cli) command=("$BORINGTUN" --foreground --threads 1 --disable-drop-privileges "$device") ;;
        gotatun) command=("$GOTATUN" --foreground --verbosity error --disable-drop-privileges "$device") ;;
        esac
        start "$name-$side-gw" "$WORK/gateway-$name-$side.log" "${command[@]}"
        eventually 10 within "$name-$side-gw" wg show "$device" || die "$kind does not start: $(cat "$WORK/gateway-$name-$side.log")"
        within "$name-$side-gw" wg set "$device" private-key "$WORK/$name-$n.key" listen-port 51820 \
            peer "${keys[$other]}" endpoint "192.0.2.10$other:51820" allowed-ips "10.1$other.0.0/16"
        if [[ $3 == many ]]; then
            # They speak to each of them by themselves, as ours does.
            strangers | awk '{ printf "[Peer]\nPublicKey = %s\nAllowedIPs = %s\nEndpoint = %s\nPersistentKeepalive = 15\n", $1, $2, $3 }' >"$WORK/strangers"
            within "$name-$side-gw" wg addconf "$device" "$WORK/strangers"
        fi
        within "$name-$side-gw" ip link set "$device" mtu "$([[ $3 == jumbo ]] && echo 8920 || echo 1420)" up
        within "$name-$side-gw" ip route add "10.1$other.0.0/16" dev "$device"
        within "$name-$side-gw" sysctl -q -w net.ipv4.ip_forward=1
    done
}

# device NAME NUMBER: unique on this machine, also beside another run.
device() {
    echo "bt$OWNER$1$2"
}

# end_world NAME: a world that is not needed any more.
end_world() {
    clean_netns "$OWNER-$1"
    rm -rf "${WORK:?}/$1"
}
