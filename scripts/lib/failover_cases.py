"""The cases of scripts/failover: how each breaks something, how it mends it, and what it is held to."""

import threading
import time

from failover_flows import CLUSTER_NUMBER, PAIRS, now
from failover_lab import GATEWAYS, LabError

# Seconds of link up and link down, and how often.
FLAP, FLAPS = 2.0, 30
# An interruption on a road that nothing was done to, in seconds: less is the machine's own.
NOISE = 0.2
# The largest packet of the underlay in `mtu-drop`.
UNDERLAY = 1300
# The shortest time for which a path that failed is held down, in seconds.
HOLD_DOWN = 2.0
# How far off the noted moment of a change may be: gateways are asked one after the other.
ASKED = 0.4


class Case:
    """One case. A repeat is: traffic, `breaks`, `observe` seconds, `mends`, calm, the end of the traffic."""

    name = ""
    repeats = 30
    # The longest outage of a UDP flow, and stall of a TCP flow, in seconds; None where there is no such bound.
    bound = None
    tcp_bound = None
    # Whether no packet of any flow may be lost.
    lossless = False
    observe = 5.0
    bulk = 0
    # Of the plot: seconds before and after the fault, and the width of a bar.
    span, bar = (-1.0, 6.0), 0.05

    def __init__(self, lab):
        self.lab = lab

    def victim(self, turn):
        """(cluster, gateway); all in turn, so that none is held down for failing often."""
        return self.lab.gateways[turn % len(self.lab.gateways)]

    def watched(self, victim):
        """The gateways whose sets of carried flows count."""
        return [victim]

    def carried(self, victim):
        """The ways that the fault hits."""
        ways = self.lab.carried(*victim, "from_tunnel") | self.lab.carried(*victim, "into_tunnel")
        return {key for key in ways if not self.lost_end(key, victim)}

    def lost_end(self, key, victim):
        """Whether one end is beyond help: behind nothing but the victim. With agents, a dead daemon takes no pod along."""
        return not self.lab.agents and any(self.behind(address, victim) for address in (key[0], key[2]))

    def behind(self, address, victim):
        return address.startswith(self.lab.pod_cidr(*victim).removesuffix("0/24"))

    def beyond(self, flow, victim):
        """Whether a flow has such an end."""
        return self.lost_end((flow.a.address, 0, flow.b.address, 0), victim)

    def impossible(self):
        """Why this build cannot be measured at all, or None."""

    def breaks(self, victim):
        """Makes the fault and returns its moment."""
        raise NotImplementedError

    def mends(self, victim):
        raise NotImplementedError

    def at_rest(self, victim):
        """After the traffic of a repeat: whatever must be as before for the next."""

    def findings(self, victim):
        """What else was seen in a repeat, and the faults found in it."""
        return {}, []


class KillGateway(Case):
    name = "kill-gateway"
    bound, tcp_bound = 1.0, 2.5

    def breaks(self, victim):
        return self.lab.kill(f"gateway-{victim[0]}-{victim[1]}")

    def mends(self, victim):
        self.lab.start_gateway(*victim)


class BrokerThenGateway(KillGateway):
    name = "broker-then-gateway"

    def breaks(self, victim):
        self.lab.kill("broker")
        # The gateways notice it.
        time.sleep(1)
        return super().breaks(victim)

    def mends(self, victim):
        self.lab.start_broker()
        super().mends(victim)


class CutLink(Case):
    name = "cut-link"
    bound, tcp_bound = 1.0, 2.5

    def lost_end(self, key, victim):
        return any(self.behind(address, victim) for address in (key[0], key[2]))

    def breaks(self, victim):
        moment = now()
        self.links(victim, "down")
        return moment

    def mends(self, victim):
        self.links(victim, "up")

    def links(self, victim, state):
        """Both of its links, at the bridges' side: it can say nothing any more."""
        cluster, node = victim
        self.lab.within("internet", "ip", "link", "set", f"{cluster}-{node}", state)
        self.lab.within(f"{cluster}-lan", "ip", "link", "set", node, state)


class OneWay(Case):
    name = "one-way"
    bound = 1.25

    def victim(self, turn):
        """(cluster, gateway) that is not heard any more by the second: all paths in turn, in both directions."""
        pair = PAIRS[turn % len(PAIRS)]
        ends = pair if turn // len(PAIRS) % 2 == 0 else pair[::-1]
        turn //= 2 * len(PAIRS)
        return (ends[0], GATEWAYS[turn % 2]), (ends[1], GATEWAYS[turn // 2 % 2])

    def watched(self, victim):
        return victim

    def carried(self, victim):
        sender, receiver = victim
        return self.lab.carried(*sender, "into_tunnel") & self.lab.carried(*receiver, "from_tunnel")

    def lost_end(self, key, victim):
        return False

    def breaks(self, victim):
        sender, receiver = (f"192.0.2.{CLUSTER_NUMBER[c]}{GATEWAYS.index(g) + 1}" for c, g in victim)
        moment = now()
        self.lab.within("internet", "nft", f"add rule bridge lab fault ip saddr {sender} ip daddr {receiver} drop")
        return moment

    def mends(self, victim):
        self.lab.within("internet", "nft", "flush chain bridge lab fault")


class Restart(KillGateway):
    """Without a drain: killed, and started again at once."""

    name = "restart"

    def breaks(self, victim):
        moment = super().breaks(victim)
        self.lab.start_gateway(*victim)
        return moment

    def mends(self, victim):
        pass


class Drain(Case):
    name = "drain"
    lossless = True
    observe = 0.0
    span = (-1.0, 10.0)

    def impossible(self):
        if not self.lab.supports(self.lab.subsea, "drain", "--state-dir"):
            return "this build has no `subsea drain`"

    def breaks(self, victim):
        moment = now()
        self.lab.drain(*victim)
        return moment

    def mends(self, victim):
        self.lab.start_gateway(*victim)


def seconds(moment):
    return "never" if moment is None else round(moment, 2)


class Flap(Case):
    name = "flap"
    repeats = 3
    observe = 0.0
    span, bar = (-2.0, 2 * FLAP * FLAPS + 2), 0.5

    def breaks(self, victim):
        """The link to the internet, down and up for two minutes; meanwhile all others are asked for the state of their paths."""
        ended = threading.Event()
        self.seen = {}
        self.failed = None
        watcher = threading.Thread(target=self.watch, args=(victim, ended), daemon=True)
        watcher.start()
        moment = now()
        try:
            for turn in range(2 * FLAPS):
                self.lab.within("internet", "ip", "link", "set", f"{victim[0]}-{victim[1]}", "up" if turn % 2 else "down")
                time.sleep(max(0.0, moment + (turn + 1) * FLAP - now()))
        finally:
            ended.set()
            watcher.join(30)
        if self.failed:
            raise LabError(f"the paths could not be watched: {self.failed}")
        return moment

    def watch(self, victim, ended):
        """Notes every change of a path, as those say it who choose between ways, the gateways of other clusters and the agents of
        the victim's: (who, path) -> [(when, whether it is in use)]. The victim has no other way and keeps those that look dead."""
        agents = self.lab.nodes if self.lab.agents else []
        try:
            while not ended.is_set():
                for cluster, node in self.lab.gateways:
                    if (cluster, node) != victim:
                        for name, path in self.lab.paths(self.lab.status(cluster, node)).items():
                            self.note(f"{cluster}-{node}", name, path["in_use"])
                for node in agents:
                    for carried in self.lab.status(victim[0], node, "agent")["clusters"]:
                        self.note(f"agent of {node} for {carried['cluster']}", "-".join(victim), victim[1] in carried["gateways"])
                ended.wait(ASKED / 2)
        except Exception as error:
            self.failed = error

    def note(self, who, path, up):
        changes = self.seen.setdefault((who, path), [])
        if not changes or changes[-1][1] != up:
            changes.append((now(), up))

    def mends(self, victim):
        pass

    def findings(self, victim):
        """Of what was watched: how often paths went down, for how long at least, and how close two switches the same way were."""
        target = "-".join(victim)
        faults, closest, downs, held = [], None, 0, None
        gateways = ["-".join(gateway) for gateway in self.lab.gateways]
        others = [name for name in gateways if not name.startswith(f"{victim[0]}-")]
        for other in others:
            if (other, target) not in self.seen:
                faults.append(f"{other} was never seen to have a path to {target}")
        for (observer, name), changes in self.seen.items():
            # The first is how it was.
            moments = [when for when, _ in changes[1:]]
            if name != target:
                if moments:
                    faults.append(f"the path from {observer} to {name} changed {len(moments)} times, although nothing was done to it")
                continue
            if not moments:
                faults.append(f"{observer} never saw the path to {name} go down")
            downs = max(downs, sum(not up for _, up in changes[1:]))
            for (went, _), (came, up) in zip(changes[1:], changes[2:]):
                if up:
                    held = min(held or came - went, came - went)
            # Twice the same way: down and down again, or up and up again, is one switch there and back.
            for earlier, later in zip(moments, moments[2:]):
                closest = min(closest or later - earlier, later - earlier)
        if closest is not None and closest < HOLD_DOWN - ASKED:
            faults.append(f"a path of {target} switched twice within {closest:.1f} s")
        if held is not None and held < HOLD_DOWN - ASKED:
            faults.append(f"a path of {target} was in use again after {held:.1f} s")
        return {"downs": downs, "shortest_down_s": seconds(held), "closest_switches_s": seconds(closest)}, faults


class MtuDrop(Case):
    name = "mtu-drop"
    repeats = 10
    tcp_bound = 3.0
    observe = 8.0
    bulk = 6
    span = (-1.0, 9.0)

    def watched(self, victim):
        return self.lab.gateways

    def carried(self, victim):
        ways = set()
        for gateway in self.lab.gateways:
            ways |= self.lab.carried(*gateway, "from_tunnel")
        return ways

    def lost_end(self, key, victim):
        return False

    def breaks(self, victim):
        moment = now()
        self.lab.within("internet", "nft", f"add rule bridge lab fault ip length > {UNDERLAY} counter drop")
        self.found = None
        return moment

    def mends(self, victim):
        self.found = {}
        for cluster, node in self.lab.gateways:
            for name, path in self.lab.paths(self.lab.status(cluster, node)).items():
                self.found[f"{cluster}-{node}", name] = path.get("path_mtu")
        self.lab.within("internet", "nft", "flush chain bridge lab fault")

    def at_rest(self, victim):
        # A path that became wider is looked for every ten minutes only: the next repeat wants one that is wide again.
        for gateway in self.lab.gateways:
            self.lab.stop_gateway(*gateway)
        for gateway in self.lab.gateways:
            self.lab.start_gateway(*gateway)

    def findings(self, victim):
        sizes = sorted({mtu for mtu in self.found.values() if mtu is not None})
        wrong = [f"{a} to {b}: {mtu}" for (a, b), mtu in self.found.items() if mtu is None or not UNDERLAY - 120 <= mtu <= UNDERLAY]
        faults = [f"`status` does not show the new path MTU ({len(wrong)} paths, such as {wrong[0]})"] if wrong else []
        return {"path_mtu": sizes}, faults


CASES = {case.name: case for case in (KillGateway, CutLink, OneWay, Drain, Restart, BrokerThenGateway, Flap, MtuDrop)}
