# shellcheck shell=bash
# What scripts/e2e checks of clusters that have joined. Sourced after e2e_world.sh.

# pods CLUSTER: a line `NAME NODE IPV4 IPV6` for each web server.
pods() {
    k "$1" get pods -l app=web -o jsonpath='{range .items[*]}{.metadata.name} {.spec.nodeName} {.status.podIPs[0].ip} {.status.podIPs[1].ip}{"\n"}{end}'
}

# in_pod CLUSTER POD COMMAND...
in_pod() {
    k "$1" exec "$2" -- "${@:3}"
}

# url ADDRESS
url() {
    local host=$1
    [[ $host != *:* ]] || host="[$host]"
    echo "http://$host/cgi-bin/who"
}

# ask CLUSTER POD SOURCE TARGET NAME: the page from TARGET must be from a pod NAME (a pattern), and must say that SOURCE asked.
ask() {
    local said
    said=$(in_pod "$1" "$2" timeout 10 wget -q -O - "$(url "$4")") || die "no page for $1/$2 from $4"
    # shellcheck disable=SC2053 # a pattern
    [[ $said == $5" saw $3" ]] || die "$1/$2 ($3) asked $4 and got: $said"
    said_last=$said
}

reach_everything() {
    local from to pod node v4 v6 other there a4 a6 rtt ips
    step "From every pod to every pod and Service of the other cluster, in both families: what each server says about who asked"
    for from in east west; do
        to=$([[ $from == east ]] && echo west || echo east)
        read -r -a ips < <(k "$to" get service web -o jsonpath='{.spec.clusterIPs[*]}{"\n"}')
        while read -r pod node v4 v6; do
            while read -r other there a4 a6; do
                rtt=$(in_pod "$from" "$pod" ping -c 3 -i 0.2 -W 2 "$a4" | awk -F/ '/^round-trip/ { print $4 }') || die "no ping from $pod to $a4"
                in_pod "$from" "$pod" ping -c 1 -W 2 "$a6" >/dev/null || die "no ping from $pod to $a6"
                ask "$from" "$pod" "$v6" "$a6" "$other"
                ask "$from" "$pod" "$v4" "$a4" "$other"
                printf '%-6s -> %-6s %-12s -> %-12s  ping %7s ms   %s\n' "$node" "$there" "$v4" "$a4" "$rtt" "$said_last"
            done < <(pods "$to")
            for address in "${ips[@]}"; do
                if [[ $address == *:* ]]; then
                    ask "$from" "$pod" "$v6" "$address" "web-*"
                else
                    ask "$from" "$pod" "$v4" "$address" "web-*"
                fi
                printf '%-6s -> Service of %-5s %-18s  %s\n' "$node" "$to" "$address" "$said_last"
            done
        done < <(pods "$from")
    done
    no_clear_text
}

# Between the clusters, nobody has seen an address of a pod or a Service.
no_clear_text() {
    local seen
    seen=$(within internet nft list counter inet internet clear_text | awk '/packets/ { print $2 }')
    [[ $seen -eq 0 ]] || die "$seen packets of pods went between the clusters outside of a tunnel"
    echo "between the clusters: 0 packets with an address of a pod or Service outside of a tunnel"
}

# replace APP CLUSTER MOST: its pods of subsea-APP go one after the other, as in an upgrade, while a pod of east pings one of west; at
# most so many pings may be lost. Of a gateway, kubelet runs the preStop hook, which drains it.
replace() {
    local app=$1 cluster=$2 most=$3 pod target gone node sent lost replaced=0
    step "The pods of subsea-$app in $cluster are deleted while a pod of east pings, 20 times a second"
    read -r pod _ < <(pods east | grep ' east-2 ')
    read -r _ _ target _ < <(pods west | grep ' west-2 ')
    in_pod east "$pod" ping -c 600 -i 0.05 -W 1 "$target" >"$WORK/pings" &
    local pings=$!
    sleep 2
    for node in ${NODES[$cluster]}; do
        gone=$(k "$cluster" -n subsea get pods -l "app.kubernetes.io/name=subsea-$app" --field-selector "spec.nodeName=$node" -o name)
        [[ -n $gone ]] || continue
        operator kubectl --context "$cluster" -n subsea delete "$gone"
        k "$cluster" -n subsea rollout status "daemonset/subsea-$app" --timeout=60s
        replaced=$((replaced + 1))
    done
    wait "$pings" || true
    [[ $replaced -gt 0 ]] || die "no node of $cluster has a pod of subsea-$app that could be replaced: look at its labels"
    read -r sent lost < <(awk '/packets transmitted/ { print $1, $1 - $4 }' "$WORK/pings")
    echo "$sent pings, $lost lost"
    [[ $sent -eq 600 && $lost -le $most ]] || die "$lost of $sent pings were lost"
}

# A gateway's node dies without a word, and comes back with an empty disk: it has to make itself a new key, and enrol again.
lose_a_node() {
    local pod target sent lost
    step "The node west-1, a gateway, dies while a pod of east pings west-2, 20 times a second"
    read -r pod _ < <(pods east | grep ' east-2 ')
    read -r _ _ target _ < <(pods west | grep ' west-2 ')
    in_pod east "$pod" ping -c 400 -i 0.05 -W 1 "$target" >"$WORK/pings" &
    local pings=$!
    sleep 2
    stop_node west-1
    wait "$pings" || true
    read -r sent lost < <(awk '/packets transmitted/ { print $1, $1 - $4 }' "$WORK/pings")
    echo "$sent pings, $lost lost: $((lost * 50)) ms"
    grep -q 'seq=399 ' "$WORK/pings" || die "the last ping was not answered either"
    operator kubectl --context east get connections
    step "It comes back as another machine of the same name"
    make_node west west-1
    start_node west-1
    connect_pods west-1
    k west wait --for=condition=Ready node/west-1 --timeout=120s >/dev/null
    k west -n subsea rollout status daemonset/subsea-gateway --timeout=120s
    k west rollout status daemonset/web --timeout=120s >/dev/null
    operator kubectl --context west wait --for=condition=Ready connection --all --timeout=60s
    operator kubectl --context east wait --for=condition=Ready connection --all --timeout=60s
    eventually 30 in_pod east "$pod" ping -c 1 -W 1 "$(pods west | awk '$2 == "west-1" { print $3 }')" || die "its new pod does not answer"
}

leave_both() {
    local cluster node left
    step "West and east leave"
    for cluster in west east; do
        operator subsea leave --context "$cluster"
        # In two steps: an API server that does not answer has not said that nothing is left.
        left=$(k "$cluster" get namespaces,clusterroles,customresourcedefinitions -o name) || die "cannot list what $cluster still has"
        left=$(grep subsea <<<"$left" || true)
        [[ -z $left ]] || die "$cluster still has: $left"
        for node in ${NODES[$cluster]}; do
            left=$(in_node "$node" sh -c 'ip link; ip rule; ip route show table all; nft list tables; find /var/lib/subsea -type f' 2>/dev/null |
                grep -E 'subsea|lookup 583|table 583' || true)
            [[ -z $left ]] || die "node $node still has: $left"
        done
        echo "$cluster: nothing is left, nor on its nodes"
    done
}
