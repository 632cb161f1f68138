# shellcheck shell=bash
# What scripts/bench-tunnel measures: one function for each metric. Sourced after peers.sh.
#
# They take the name of an implementation, make its world unless it is there, and write samples of $round into $SAMPLES.

# How long each takes; the number of the round.
seconds=4
round=1
# Bogus handshakes a second.
FLOOD_RATE=20000
# The payload of a full packet: 1,420 bytes less the headers of IPv4 and TCP, and its timestamps.
PAYLOAD=1368

FLOOD=$CACHE/flood

# build_flood: unless a newer one is there.
build_flood() {
    [[ ! $FLOOD -nt $ROOT/scripts/lib/flood.c ]] || return 0
    cc -O2 -Wall -Wextra -o "$FLOOD.$$" "$ROOT/scripts/lib/flood.c"
    mv "$FLOOD.$$" "$FLOOD"
}

# sample METRIC IMPLEMENTATION VALUE
sample() {
    printf '%s\t%s\t%s\t%s\n' "$round" "$1" "$2" "$3" >>"$SAMPLES"
    printf '  %-10s %-14s %s\n' "$1" "$2" "$3"
}

# world IMPLEMENTATION [VARIANT]: puts the name of that world into $REPLY, and makes it before its first use.
#
# One that has been idle may need a new handshake, which is no part of the next measurement. One that does not answer any
# more is made anew, and the report says so.
declare -A MADE=()
world() {
    local kind=$1 variant=${2:-} name
    name=${LETTER[$kind]}${variant:0:1}
    if [[ -n ${MADE[$name]:-} ]] && ! eventually 15 within "$name-a-pod" ping -c 1 -W 1 10.12.0.10; then
        echo "$kind does not answer any more; what runs of its gateways: $(gateway "$name" a) $(gateway "$name" b)"
        tail -n 5 "$WORK/gateway-$name"-*.log || true
        fact "note $name $round" "In round $round $kind did not answer any more for 15 s, and was started again."
        end_world "$name"
        MADE[$name]=''
    fi
    if [[ -z ${MADE[$name]:-} ]]; then
        make_world "$kind" "$name" "$variant"
        MADE[$name]=1
    fi
    REPLY=$name
}

# The address of pod b.
POD=10.12.0.10

# iperf WORLD ARGUMENT...: a run from pod a to $POD, as JSON.
iperf() {
    local name=$1 try json
    shift
    for try in 1 2 3; do
        if json=$(within "$name-a-pod" timeout $((seconds + 20)) iperf3 -J -t "$seconds" -c "$POD" "$@") &&
            jq -e 'has("error") | not' <<<"$json" >/dev/null; then
            echo "$json"
            return
        fi
        # The server may still be at the end of the run before.
        sleep "$try"
    done
    die "iperf3 fails in $name: $(jq -r .error <<<"$json")"
}

gbits() {
    jq '.end.sum_received.bits_per_second / 1e9'
}

# gateway WORLD SIDE: the process id of a gateway.
gateway() {
    ip netns pids "$(space "$1-$2-gw")" | head -n 1
}

# cpu WORLD: the clock ticks that both gateways have used, in user and kernel.
cpu() {
    local a b
    a=$(gateway "$1" a)
    b=$(gateway "$1" b)
    cat "/proc/$a/stat" "/proc/$b/stat" | awk '{ total += $14 + $15 } END { print total }'
}

# --- One function for each metric: measure_METRIC IMPLEMENTATION.

# With plain routing there is no daemon whose CPU time could be read.
measure_tcp() {
    world "$1"
    if [[ $1 == plain ]]; then
        sample tcp "$1" "$(iperf "$REPLY" | gbits)"
        return
    fi
    cpu_seconds "$REPLY"
    sample tcp "$1" "$(gbits <<<"$JSON")"
    sample cpu "$1" "$REPLY"
}

# cpu_seconds WORLD: puts the CPU seconds of both gateways for each GB of one stream into $REPLY, iperf's result into $JSON.
cpu_seconds() {
    local before after
    before=$(cpu "$1")
    JSON=$(iperf "$1")
    after=$(cpu "$1")
    REPLY=$(jq --argjson ticks $((after - before)) --argjson hz "$(getconf CLK_TCK)" \
        '($ticks / $hz) / (.end.sum_received.bytes / 1e9)' <<<"$JSON")
}

measure_reverse() {
    world "$1"
    sample reverse "$1" "$(iperf "$REPLY" -R | gbits)"
}

measure_four() {
    world "$1"
    sample four "$1" "$(iperf "$REPLY" -P 4 | gbits)"
}

# Small datagrams as fast as they go: those that arrive, in thousands a second.
measure_udp() {
    world "$1"
    sample udp "$1" "$(iperf "$REPLY" -u -b 0 -l 64 | jq '.end.sum | (.packets - .lost_packets) / .seconds / 1e3')"
}

# Round trips in microseconds beside one TCP stream at full speed; at least 500, which 3 seconds give.
measure_p99() {
    local count=$((seconds * 200))
    [[ $count -ge 500 ]] || count=500
    world "$1"
    # It goes on until it is ended, since pings on a busy machine take longer than their intervals.
    # Not `within`: $! would be a shell around it.
    ip netns exec "$(space "$REPLY-a-pod")" iperf3 -t 600 -c "$POD" >"$WORK/stream" 2>&1 &
    local stream=$!
    sleep 1
    pings "$REPLY" 0.005 "$count" >"$WORK/pings"
    kill -TERM "$stream" || die "the stream beside the pings ended: $(tail -n 3 "$WORK/stream")"
    wait "$stream" || true
    sample p99 "$1" "$(percentile 99 <"$WORK/pings")"
    sample lost "$1" "$(awk '$1 == 1000000 { lost++ } END { print lost + 0 }' "$WORK/pings")"
}

measure_idle() {
    world "$1"
    pings "$REPLY" 0.01 200 >"$WORK/pings"
    sample idle "$1" "$(percentile 50 <"$WORK/pings")"
}

# gigabits METRIC IMPLEMENTATION [VARIANT]: one TCP stream.
gigabits() {
    world "$2" "${3:-}"
    sample "$1" "$2" "$(iperf "$REPLY" | gbits)"
}

measure_jumbo() {
    gigabits jumbo "$1" jumbo
}

measure_off() {
    if [[ $1 == subsea ]]; then
        gigabits off "$1" off
    else
        gigabits off "$1"
    fi
}

measure_ipv6() {
    local family
    for family in $(turn ipv4 ipv6); do
        case $family in
        ipv4) gigabits ipv4 "$1" ;;
        ipv6) POD=fd00:1:2::10 gigabits ipv6 "$1" six ;;
        esac
    done
}

# turn WORD...: the words, beginning with another one each round.
turn() {
    local words=("$@") i
    for ((i = 0; i < $#; i++)); do
        echo "${words[(i + round - 1) % $#]}"
    done
}

# One TCP stream while the receiving gateway gets bogus initiations, beside one while the same packets go to another
# socket in its namespace, which is read: so the cost of making and receiving them is in both.
measure_flood() {
    local name kind port file key result flood drain
    local -A got
    world "$1"
    name=$REPLY
    key=$(public_key "$1" "$name")
    python3 -B "$ROOT/scripts/lib/initiations.py" 4096 >"$WORK/wrong"
    python3 -B "$ROOT/scripts/lib/initiations.py" 4096 "$key" >"$WORK/right"
    ip netns exec "$(space "$name-b-gw")" "$FLOOD" drain 192.0.2.102 9 >/dev/null &
    drain=$!
    for kind in $(turn aside wrong right); do
        port=51820
        file=$WORK/$kind
        [[ $kind != aside ]] || port=9 file=$WORK/right
        ip netns exec "$(space "$name-net")" "$FLOOD" send 192.0.2.102 "$port" "$FLOOD_RATE" 148 "$file" >"$WORK/rate" &
        flood=$!
        result=$(iperf "$name" | gbits)
        kill -TERM "$flood"
        wait "$flood"
        awk -v want="$FLOOD_RATE" '$1 < 0.95 * want { exit 1 }' "$WORK/rate" || echo "only $(cat "$WORK/rate") packets a second were sent"
        got[$kind]=$result
        sample "flood-$kind" "$1" "$result"
    done
    kill -TERM "$drain"
    wait "$drain"
    for kind in wrong right; do
        sample "kept-$kind" "$1" "$(awk -v a="${got[$kind]}" -v b="${got[aside]}" 'BEGIN { print a / b }')"
    done
}

# public_key IMPLEMENTATION WORLD: that of gateway b.
public_key() {
    if [[ $1 == subsea ]]; then
        within "$2-b-gw" "$SUBSEA" status --state-dir "$WORK/$2/b" -o json | jq -r .public_key
    else
        wg pubkey <"$WORK/$2-2.key"
    fi
}

# The cipher alone, and if there is such a build the same tunnel without it.
measure_floor() {
    local seal open loop=''
    if [[ -n $CIPHER ]]; then
        read -r seal open < <("$CIPHER" --bench | awk '/^seal/ { print $2, $5 }')
        sample seal "$1" "$seal"
        sample open "$1" "$open"
        sample cipher "$1" "$(awk -v ns=$((seal + open)) -v payload="$PAYLOAD" 'BEGIN { print ns / payload }')"
    fi
    if [[ -n ${SUBSEA_FLOOR_BIN:-} ]]; then
        world "$1" floor
        cpu_seconds "$REPLY"
        loop=$REPLY
        sample loop "$1" "$loop"
    fi
    if [[ -n $CIPHER && -n $loop ]]; then
        sample floor "$1" "$(awk -v ns=$((seal + open)) -v payload="$PAYLOAD" -v loop="$loop" 'BEGIN { print ns / payload + loop }')"
    fi
}

# Memory is no matter of rounds: once, at the end, with one peer that has carried traffic and then with 500.
measure_rss() {
    local name peers
    for peers in 1 500; do
        if [[ $peers -eq 1 ]]; then
            world "$1"
        else
            world "$1" many
        fi
        name=$REPLY
        iperf "$name" >/dev/null
        iperf "$name" -R >/dev/null
        iperf "$name" -u -b 0 -l 64 >/dev/null
        sample "peak-$peers" "$1" "$(memory "$name" VmHWM)"
        sample "rss-$peers" "$1" "$(memory "$name" VmRSS)"
    done
    end_world "$name"
}

# memory WORLD FIELD: MiB of the larger of the two gateways.
memory() {
    cat "/proc/$(gateway "$1" a)/status" "/proc/$(gateway "$1" b)/status" |
        awk -v field="$2:" '$1 == field && $2 > most { most = $2 } END { printf "%.1f\n", most / 1024 }'
}

# pings WORLD INTERVAL COUNT: round trips in microseconds, one a line. What was lost counts as a whole second.
pings() {
    # It fails when all are lost, which is a result.
    { within "$1-a-pod" ping -n -i "$2" -c "$3" -W 1 "$POD" || true; } |
        awk -v count="$3" '/ time=/ { sub(/.* time=/, ""); print $1 * 1000; got++ } END { for (; got < count; got++) print 1000000 }'
}

percentile() {
    sort -g | awk -v p="$1" '{ v[NR] = $1 } END { i = int(NR * p / 100 + 0.999999); print v[i < 1 ? 1 : i] }'
}
