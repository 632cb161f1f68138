"""The flows of scripts/failover: who sends to whom, and what became of every packet.

A flow has two ends, and each end of a UDP flow sends: a `way` is one direction of a flow. TCP flows have one way, from the
end that dials. Times are seconds of CLOCK_MONOTONIC.
"""

import array
import bisect
import collections
import itertools
import os
import signal
import subprocess
import time

PERIOD = 0.010
CLUSTER_NUMBER = {"east": 1, "west": 2, "north": 3}
NODE_NUMBER = {"gw-1": 1, "gw-2": 2, "n-1": 11, "n-2": 12}
PAIRS = list(itertools.combinations(CLUSTER_NUMBER, 2))
# As failover_traffic.c numbers what happens.
SENT, RECEIVED, ARRIVED, ENDED = range(1, 5)
# Bytes that a TCP flow writes every period.
SMALL, BULK = 64, 16384

End = collections.namedtuple("End", "cluster node address port")
Flow = collections.namedtuple("Flow", "number kind a b size")


def pod(cluster, node, which):
    return f"10.{CLUSTER_NUMBER[cluster]}.{NODE_NUMBER[node]}.{10 + which}"


def plan(nodes, udp, tcp, bulk, turn):
    """`udp` flows between each two clusters, and `tcp` and `bulk` connections in all.

    The nodes at both ends go through all combinations. Every turn has ports of its own: a gateway may remember a flow.
    """
    flows = []
    ends = list(itertools.product(range(len(nodes)), repeat=2))

    def add(kind, pair, i, size):
        n = len(flows)
        # The nodes first and then the pods, so that few flows already use every node.
        left, right = ends[i * 5 % len(ends)]
        first = {"udp": 10000, "tcp": 33000}[kind] + (turn * 100 + n) % 22000
        a = End(pair[0], nodes[left], pod(pair[0], nodes[left], i % 2), first)
        b = End(pair[1], nodes[right], pod(pair[1], nodes[right], i // 2 % 2), 5000 + n)
        # Connections are dialled from both sides, whatever the nodes.
        back = kind == "tcp" and i // 4 % 2
        flows.append(Flow(n, kind, b, a, size) if back else Flow(n, kind, a, b, size))

    for pair in PAIRS:
        for i in range(udp):
            add("udp", pair, i, 0)
    for i in range(tcp):
        add("tcp", PAIRS[i % len(PAIRS)], i, SMALL)
    for i in range(bulk):
        add("tcp", PAIRS[i % len(PAIRS)], i, BULK)
    return flows


class Way:
    """One direction of a flow."""

    def __init__(self, flow, source, target):
        self.flow, self.source, self.target = flow, source, target
        self.sent = array.array("q")
        self.numbers, self.arrivals = array.array("q"), array.array("q")
        self.ended = None

    def key(self):
        """As the sets in the gateways have it."""
        return (self.source.address, self.source.port, self.target.address, self.target.port)

    def gap(self, begin, end):
        """The longest time without an arrival from `begin` to `end`, less the period; what has not ended counts to `end`."""
        times, begin, end = self.arrivals, int(begin * 1e9), int(end * 1e9)
        first = bisect.bisect_right(times, begin)
        last = times[first - 1] if first else begin
        longest = 0
        for when in itertools.chain(times[first : bisect.bisect_right(times, end)], [end]):
            longest = max(longest, when - last)
            last = when
        return max(0.0, longest / 1e9 - PERIOD)

    def losses(self, begin, end):
        """How many packets were sent from `begin` to `end`, and when those were sent that never arrived."""
        low = bisect.bisect_left(self.sent, int(begin * 1e9))
        high = bisect.bisect_left(self.sent, int(end * 1e9))
        arrived = set(self.numbers)
        return high - low, [self.sent[n] / 1e9 for n in range(low, high) if n not in arrived]

    def disorder(self):
        """How many arrived after one that was sent later, and how many arrived again."""
        seen, late = set(), 0
        highest = -1
        for number in self.numbers:
            late += number < highest and number not in seen
            highest = max(highest, number)
            seen.add(number)
        return late, len(self.numbers) - len(seen)


class Traffic:
    """Flows under way: one process in the pods of each node."""

    def __init__(self, lab, flows):
        self.lab, self.flows = lab, flows
        self.processes = {}
        self.specs = collections.defaultdict(list)
        for flow in flows:
            names = ("udp", "udp") if flow.kind == "udp" else ("dial", "listen")
            for name, here, there in ((names[0], flow.a, flow.b), (names[1], flow.b, flow.a)):
                self.specs[f"{here.cluster}-{here.node}-pod"].append(
                    f"{name} {flow.number} {here.address} {here.port} {there.address} {there.port} {flow.size}\n"
                )

    def log(self, place):
        return self.lab.work / f"traffic-{place}.log"

    def start(self):
        for i, (place, lines) in enumerate(sorted(self.specs.items())):
            self.log(place).unlink(missing_ok=True)
            process = self.lab.spawn(
                place,
                [self.lab.traffic_program, str(self.log(place)), str(i * 10000 // len(self.specs))],
                self.lab.work / f"traffic-{place}.err",
                stdin=subprocess.PIPE,
            )
            process.stdin.write("".join(lines).encode())
            process.stdin.close()
            self.processes[place] = process

    def stop(self):
        """Ends all and returns the ways."""
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for place, process in self.processes.items():
            if process.wait(30) != 0:
                raise RuntimeError(f"the traffic of {place} failed: {(self.lab.work / f'traffic-{place}.err').read_text()}")
        return self.read()

    def kill(self):
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()

    def read(self):
        ways = {}
        for flow in self.flows:
            ways[flow.number, True] = Way(flow, flow.a, flow.b)
            if flow.kind == "udp":
                ways[flow.number, False] = Way(flow, flow.b, flow.a)
        for place in self.specs:
            data = array.array("Q", self.log(place).read_bytes())
            os.unlink(self.log(place))
            # Whether a flow's first end is here.
            first = {f.number: f"{f.a.cluster}-{f.a.node}-pod" == place for f in self.flows}
            for i in range(0, len(data), 2):
                head, when = data[i], data[i + 1]
                what, flow, number = head & 0xFFFF, head >> 16 & 0xFFFF, head >> 32
                if what == SENT:
                    ways[flow, first[flow]].sent.append(when)
                elif what == RECEIVED:
                    way = ways[flow, not first[flow]]
                    way.numbers.append(number)
                    way.arrivals.append(when)
                elif what == ARRIVED:
                    ways[flow, True].arrivals.append(when)
                elif what == ENDED and number:
                    ways[flow, True].ended = os.strerror(number)
        return list(ways.values())


def now():
    return time.clock_gettime(time.CLOCK_MONOTONIC)
