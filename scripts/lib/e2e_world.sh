# shellcheck shell=bash
# Clusters of Kubernetes for scripts/e2e. Sourced after common.sh and world.sh; WORK and PROGRAMS are set.
#
# `internet` routes between the clusters' networks, and drops what a cloud's firewall would: it lets through WireGuard, node ports, and
# nothing from or to a pod or Service. Cluster number N has the nodes' network 10.20N.0.0/24, with the API server at .100.

declare -A NUMBER=([hub]=0 [east]=1 [west]=2)
declare -A NODES=([hub]="hub-1" [east]="east-1 east-2" [west]="west-1 west-2")
CLUSTERS=(hub east west)

# Of a node's name, such as east-2.
cluster_of() {
    echo "${1%-*}"
}

node4() {
    echo "10.20${NUMBER[$(cluster_of "$1")]}.0.${1##*-}"
}

node6() {
    echo "fd00:20${NUMBER[$(cluster_of "$1")]}::${1##*-}"
}

# k CLUSTER ARGUMENT...: kubectl, as its administrator.
k() {
    local cluster=$1
    shift
    within internet env KUBECONFIG="$WORK/$cluster/admin.kubeconfig" HOME="$WORK" "$PROGRAMS/kubectl" "$@"
}

# in_node NODE COMMAND...: as somebody who has logged in there.
in_node() {
    local pid
    pid=$(<"$WORK/$1/pid")
    shift
    nsenter --target "$pid" --mount --pid --net -- "$@"
}

make_world() {
    local cluster n node
    make_space internet
    # What stays within a cluster's network does not meet the firewall.
    within internet sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 \
        net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0
    for cluster in "${CLUSTERS[@]}"; do
        n=${NUMBER[$cluster]}
        within internet ip link add "$cluster" type bridge
        within internet ip address add "10.20$n.0.254/24" dev "$cluster"
        within internet ip address add "fd00:20$n::fe/64" dev "$cluster"
        within internet ip link set "$cluster" up
        attach "$cluster-cp" "$cluster" "10.20$n.0.100" "fd00:20$n::100"
        for node in ${NODES[$cluster]}; do
            make_node "$cluster" "$node"
        done
    done
    within internet nft -f - <<'RULES'
table inet internet {
    counter clear_text {}
    chain forward {
        type filter hook forward priority 0; policy drop;
        ip saddr { 10.10.0.0/15, 10.12.0.0/16, 10.90.0.0/15, 10.92.0.0/16 } counter name clear_text drop
        ip daddr { 10.10.0.0/15, 10.12.0.0/16, 10.90.0.0/15, 10.92.0.0/16 } counter name clear_text drop
        ip6 saddr { fd00:10::/31, fd00:12::/32, fd00:90::/31, fd00:92::/32 } counter name clear_text drop
        ip6 daddr { fd00:10::/31, fd00:12::/32, fd00:90::/31, fd00:92::/32 } counter name clear_text drop
        ct state established,related accept
        udp dport 51820 accept
        tcp dport 30000-32767 accept
        meta l4proto { icmp, ipv6-icmp } accept
    }
}
RULES
}

# make_node CLUSTER NODE: a machine, on which nothing runs yet.
make_node() {
    attach "$2" "$1" "$(node4 "$2")" "$(node6 "$2")"
    within "$2" sysctl -q -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 \
        net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1
}

# stop_node NODE: as by its power switch; its disk and its kernel are gone too.
stop_node() {
    kill -KILL "$(<"$WORK/$1/pid")"
    ip netns del "$(space "$1")"
    rm -r "$WORK/$1"/{pid,images,disk}
}

# attach NAME CLUSTER IPV4 IPV6: makes a namespace in the network of a cluster.
attach() {
    local name=$1 cluster=$2 v4=$3 v6=$4
    make_space "$name"
    ip link add "$name" netns "$(space internet)" type veth peer name eth0 netns "$(space "$name")"
    within internet ip link set "$name" master "$cluster" up
    within "$name" ip address add "$v4/24" dev eth0
    within "$name" ip address add "$v6/64" dev eth0
    within "$name" ip link set eth0 up
    within "$name" ip route add default via "${v4%.*}.254"
    within "$name" ip -6 route add default via "${v6%::*}::fe"
}

# kubeconfig CLUSTER TOKEN
kubeconfig() {
    cat <<JSON
{"apiVersion": "v1", "kind": "Config", "current-context": "$1",
 "contexts": [{"name": "$1", "context": {"cluster": "$1", "user": "$1"}}],
 "clusters": [{"name": "$1", "cluster": {"server": "https://10.20${NUMBER[$1]}.0.100:6443", "certificate-authority": "$WORK/$1/tls/apiserver.crt"}}],
 "users": [{"name": "$1", "user": {"token": "$2"}}]}
JSON
}

secret() {
    openssl rand -hex 16
}

# start_plane CLUSTER: etcd, kube-apiserver, kube-controller-manager and kube-scheduler.
start_plane() {
    local cluster=$1 n=${NUMBER[$1]} dir=$WORK/$1 user name groups token
    mkdir "$dir"
    openssl genrsa -out "$dir/accounts.key" 2048 2>/dev/null
    while read -r name user groups; do
        token=$(secret)
        echo "$token,$user,$user${groups:+,$groups}" >>"$dir/tokens.csv"
        kubeconfig "$cluster" "$token" >"$dir/$name.kubeconfig"
    done < <(
        echo admin admin system:masters
        echo controllers system:kube-controller-manager
        echo scheduler system:kube-scheduler
        echo proxy system:kube-proxy
        for name in ${NODES[$cluster]}; do
            echo "$name system:node:$name system:nodes"
        done
    )
    start "$cluster-cp" "$dir/etcd.log" "$PROGRAMS/etcd" --data-dir="$dir/etcd" --unsafe-no-fsync --log-level=warn \
        --listen-client-urls=http://127.0.0.1:2379 --advertise-client-urls=http://127.0.0.1:2379 --listen-peer-urls=http://127.0.0.1:2380
    start "$cluster-cp" "$dir/apiserver.log" "$PROGRAMS/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 \
        --advertise-address="10.20$n.0.100" --cert-dir="$dir/tls" --token-auth-file="$dir/tokens.csv" \
        --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true \
        --kubelet-preferred-address-types=InternalIP \
        --service-cluster-ip-range="10.9$n.0.0/20,fd00:9$n::/108" \
        --service-account-issuer=https://kubernetes.default.svc.cluster.local \
        --service-account-key-file="$dir/accounts.key" --service-account-signing-key-file="$dir/accounts.key"
    eventually 120 k "$cluster" get --raw /readyz || die "the API server of $cluster does not answer" "$dir/apiserver.log"
    start "$cluster-cp" "$dir/controllers.log" "$PROGRAMS/kube-controller-manager" --kubeconfig="$dir/controllers.kubeconfig" \
        --use-service-account-credentials --service-account-private-key-file="$dir/accounts.key" \
        --root-ca-file="$dir/tls/apiserver.crt" --leader-elect=false --secure-port=0 \
        --allocate-node-cidrs --cluster-cidr="10.1$n.0.0/16,fd00:1$n::/48" --node-cidr-mask-size-ipv4=24 --node-cidr-mask-size-ipv6=64 \
        --service-cluster-ip-range="10.9$n.0.0/20,fd00:9$n::/108"
    start "$cluster-cp" "$dir/scheduler.log" "$PROGRAMS/kube-scheduler" --kubeconfig="$dir/scheduler.kubeconfig" \
        --leader-elect=false --secure-port=0
    # Where kubeadm writes down what it was told.
    k "$cluster" apply -f - >/dev/null <<YAML
apiVersion: v1
kind: ConfigMap
metadata: {name: kubeadm-config, namespace: kube-system}
data:
  ClusterConfiguration: |
    apiVersion: kubeadm.k8s.io/v1beta4
    kind: ClusterConfiguration
    networking: {podSubnet: "10.1$n.0.0/16,fd00:1$n::/48", serviceSubnet: "10.9$n.0.0/20,fd00:9$n::/108"}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: kube-proxy, namespace: kube-system}
data:
  config.conf: |
$(kube_proxy "$cluster" "" | sed 's/^/    /')
YAML
}

# kube_proxy CLUSTER KUBECONFIG: its configuration.
kube_proxy() {
    cat <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: "$2"}
mode: $PROXY
clusterCIDR: 10.1${NUMBER[$1]}.0.0/16,fd00:1${NUMBER[$1]}::/48
# These are the host's, and not to be written from a namespace.
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
YAML
}

# start_node NODE: see e2e_node.
start_node() {
    local node=$1 cluster dir=$WORK/$1 network parent
    cluster=$(cluster_of "$node")
    network=/run/netns/$(space "$node")
    mkdir -p "$dir/images"
    cp "$WORK/$cluster/$node.kubeconfig" "$dir/kubelet.kubeconfig"
    cp "$WORK/$cluster/proxy.kubeconfig" "$dir/proxy.kubeconfig"
    cp "$WORK/$cluster/tls/apiserver.crt" "$dir/ca.crt"
    sed -i "s|$WORK/$cluster/tls/apiserver.crt|$dir/ca.crt|" "$dir"/*.kubeconfig
    ln "$WORK"/images/* "$dir/images/"
    echo "$node" >"$dir/name"
    echo "$(node4 "$node"),$(node6 "$node")" >"$dir/addresses"
    kube_proxy "$cluster" "$dir/proxy.kubeconfig" >"$dir/kube-proxy.yaml"
    echo "hostnameOverride: $node" >>"$dir/kube-proxy.yaml"
    cat >"$dir/containerd.toml" <<'TOML'
version = 2
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/pause:1"
# A container of this machine may lack CAP_SYS_RESOURCE.
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
TOML
    cat >"$dir/kubelet.yaml" <<'YAML'
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
# Nobody but its API server reaches it.
authorization: {mode: AlwaysAllow}
# The nodes share the host's cgroups, and each kubelet would end the pods of the others in a tree that is its own.
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
localStorageCapacityIsolation: false
# Also as root it may lack CAP_SYS_RESOURCE.
featureGates: {KubeletInUserNamespace: true}
oomScoreAdj: 0
# The host's disk is not the nodes'.
evictionHard: {memory.available: "0%", nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%"}
imageGCHighThresholdPercent: 100
YAML
    # Its end is that of all its processes, and comes with ours.
    setpriv --pdeathsig KILL -- nsenter --net="$network" -- \
        unshare --mount --pid --fork --kill-child --mount-proc \
        "$ROOT/scripts/lib/e2e_node" "$dir" "$PROGRAMS" </dev/null >"$dir/node.log" 2>&1 &
    parent=$!
    # How it ends is no news.
    disown
    eventually 10 grep -q . "/proc/$parent/task/$parent/children" || die "node $node does not start: $(cat "$dir/node.log")"
    tr -d ' \n' <"/proc/$parent/task/$parent/children" >"$dir/pid"
}

# connect_pods NODE: what a CNI plugin's daemon does: settings of the plugin, routes to the other nodes' pods, masquerade of what
# leaves the cluster.
connect_pods() {
    local node=$1 cluster n v4 v6 other
    cluster=$(cluster_of "$node")
    n=${NUMBER[$cluster]}
    read -r v4 v6 < <(pod_blocks "$node")
    in_node "$node" mkdir -p /etc/cni/net.d
    in_node "$node" tee /etc/cni/net.d/10-pods.conflist >/dev/null <<JSON
{"cniVersion": "1.0.0", "name": "pods", "plugins": [{
  "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
  "ipam": {"type": "host-local", "ranges": [[{"subnet": "$v4"}], [{"subnet": "$v6"}]], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}}]}
JSON
    for other in ${NODES[$cluster]}; do
        [[ $other != "$node" ]] || continue
        read -r v4 v6 < <(pod_blocks "$other")
        in_node "$node" ip route add "$v4" via "$(node4 "$other")"
        in_node "$node" ip -6 route add "$v6" via "$(node6 "$other")"
    done
    in_node "$node" iptables -t nat -A POSTROUTING -s "10.1$n.0.0/16" ! -d "10.1$n.0.0/16" -j MASQUERADE
    in_node "$node" ip6tables -t nat -A POSTROUTING -s "fd00:1$n::/48" ! -d "fd00:1$n::/48" -j MASQUERADE
}

pod_blocks() {
    k "$(cluster_of "$1")" get node "$1" -o jsonpath='{.spec.podCIDRs[0]} {.spec.podCIDRs[1]}{"\n"}'
}

has_pod_blocks() {
    [[ $(pod_blocks "$1") == *.*:* ]]
}

# say_logs: the ends of all logs, for a failure.
say_logs() {
    local log
    for log in "$WORK"/*/*.log; do
        [[ -s $log ]] || continue
        printf '\n%s:\n' "$log"
        tail -n 12 "$log" | cut -c 1-300
    done
}
