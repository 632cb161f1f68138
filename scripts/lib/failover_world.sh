# shellcheck shell=bash
# The network of scripts/failover: three clusters of four nodes. Sourced after world.sh.
#
#   internet                      a bridge, 192.0.2.0/24; `broker` is on it
#   CLUSTER-lan                   a bridge, 172.20.I.0/24, and the router between it and the internet: the nodes' way to the broker
#   CLUSTER-gw-1, CLUSTER-gw-2    eth0 in the LAN, u0 on the internet
#   CLUSTER-n-1, CLUSTER-n-2      eth0 in the LAN only
#   CLUSTER-NODE-pod              two pods, 10.I.K.10 and 10.I.K.11, behind each node
#
# Nothing but the gateways carries what is for pods from cluster to cluster: routers and the internet count and drop it.

CLUSTERS=(east west north)
NODES=(gw-1 gw-2 n-1 n-2)
# The I and the K of the addresses.
declare -A CLUSTER_NUMBER=([east]=1 [west]=2 [north]=3)
declare -A NODE_NUMBER=([gw-1]=1 [gw-2]=2 [n-1]=11 [n-2]=12)

# cable PORT SPACE DEVICE BRIDGE-SPACE BRIDGE: a link from a device to a port of a bridge.
cable() {
    ip link add "$1" netns "$(space "$4")" type veth peer name "$3" netns "$(space "$2")"
    within "$4" ip link set "$1" master "$5" up
    within "$2" ip link set "$3" up
}

make_failover_world() {
    local cluster
    make_internet internet
    bridge_only internet
    within internet nft -f - <<'NFT'
table bridge lab {
    counter leaked { }
    counter tunnels { }
    chain watch {
        type filter hook prerouting priority -300; policy accept;
        ip saddr 10.0.0.0/8 counter name leaked drop
        ip daddr 10.0.0.0/8 counter name leaked drop
        udp dport 51820-51835 counter name tunnels
    }
    chain fault {
        type filter hook forward priority 0; policy accept;
    }
}
NFT
    make_space broker
    cable broker broker eth0 internet br0
    within broker ip address add 192.0.2.10/24 dev eth0
    for cluster in "${CLUSTERS[@]}"; do
        make_failover_cluster "$cluster" "${CLUSTER_NUMBER[$cluster]}"
    done
}

# bridge_only NAME: what a bridge carries is not shown to the IP layer's filters there.
bridge_only() {
    within "$1" sysctl -q -w net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0 \
        net.bridge.bridge-nf-call-arptables=0
}

# make_failover_cluster NAME I
make_failover_cluster() {
    local name=$1 i=$2 node
    make_space "$name-lan"
    bridge_only "$name-lan"
    within "$name-lan" ip link add lan0 type bridge
    within "$name-lan" ip address add "172.20.$i.254/24" dev lan0
    within "$name-lan" ip link set lan0 up
    cable "$name" "$name-lan" u0 internet br0
    within "$name-lan" ip address add "192.0.2.20$i/24" dev u0
    within "$name-lan" sysctl -q -w net.ipv4.ip_forward=1
    within broker ip route add "172.20.$i.0/24" via "192.0.2.20$i"
    within "$name-lan" nft -f - <<'NFT'
table inet lab {
    counter leaked { }
    chain watch {
        type filter hook prerouting priority -300; policy accept;
        ip saddr 10.0.0.0/8 counter name leaked drop
        ip daddr 10.0.0.0/8 counter name leaked drop
    }
}
table bridge lab {
    counter encapsulated { }
    chain watch {
        type filter hook prerouting priority -300; policy accept;
        udp dport 4851 counter name encapsulated
    }
}
NFT
    for node in "${NODES[@]}"; do
        make_failover_node "$name" "$i" "$node" "${NODE_NUMBER[$node]}"
    done
}

# make_failover_node CLUSTER I NODE K
make_failover_node() {
    local cluster=$1 i=$2 node=$1-$3 k=$4 other
    make_space "$node"
    cable "$3" "$node" eth0 "$cluster-lan" lan0
    within "$node" ip address add "172.20.$i.$k/24" dev eth0
    within "$node" sysctl -q -w net.ipv4.ip_forward=1
    if [[ $3 == gw-* ]]; then
        cable "$node" "$node" u0 internet br0
        within "$node" ip address add "192.0.2.$i$k/24" dev u0
        within "$node" ip route add default via 192.0.2.254
        # Packets cross the internet as a network card puts them on the wire, and not as one large piece.
        within "$node" ethtool -K u0 tso off gso off tx-udp-segmentation off >/dev/null
        # Which flows go by this gateway: from the tunnel and into it.
        within "$node" nft -f - <<'NFT'
define TUNNELS = { "subsea0", "subsea1", "subsea2", "subsea3" }
table inet lab {
    set from_tunnel { type ipv4_addr . inet_service . ipv4_addr . inet_service; size 65536; flags dynamic; }
    set into_tunnel { type ipv4_addr . inet_service . ipv4_addr . inet_service; size 65536; flags dynamic; }
    chain forward {
        type filter hook forward priority -300; policy accept;
        meta l4proto { tcp, udp } iifname $TUNNELS add @from_tunnel { ip saddr . th sport . ip daddr . th dport }
        meta l4proto { tcp, udp } oifname $TUNNELS add @into_tunnel { ip saddr . th sport . ip daddr . th dport }
    }
}
NFT
    else
        within "$node" ip route add default via "172.20.$i.254"
    fi
    make_space "$node-pod"
    ip link add cni0 netns "$(space "$node")" type veth peer name eth0 netns "$(space "$node-pod")"
    within "$node" ip address add "10.$i.$k.1/24" dev cni0
    within "$node" ip link set cni0 up
    within "$node-pod" ip address add "10.$i.$k.10/24" dev eth0
    within "$node-pod" ip address add "10.$i.$k.11/24" dev eth0
    within "$node-pod" ip link set eth0 up
    within "$node-pod" ip route add default via "10.$i.$k.1"
    # Pods of the same cluster reach each other by routes between the nodes, as with a CNI that does without an overlay.
    for other in "${NODES[@]}"; do
        [[ $other == "$3" ]] || within "$node" ip route add "10.$i.${NODE_NUMBER[$other]}.0/24" via "172.20.$i.${NODE_NUMBER[$other]}"
    done
}
