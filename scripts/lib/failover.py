#!/usr/bin/env python3
"""Runs the cases of scripts/failover in the network that failover_world.sh has made, and reports. Not run by hand."""

import argparse
import collections
import pathlib
import signal
import statistics
import sys
import time

import failover_report as report
from failover_cases import CASES, NOISE
from failover_flows import Traffic, now, plan
from failover_lab import Lab, LabError, Machine, machine

# Seconds of traffic before the fault, and those in which the gateways' sets are filled.
LEAD, SETTLED, COUNTED = 2.5, 1.0, 0.5
# Seconds within which a packet has arrived, or is lost.
FLIGHT = 0.1
# A repeat counts when the victim carried so many UDP flows.
ENOUGH = 3
CALM, CALM_AFTER = 90, 60


class Repeat:
    """What one repeat showed: calm from `began` to `broken`, when the break began; `fault` is its moment for the plot."""

    def __init__(self, case, victim, ways, carried, began, broken, fault, end):
        self.case, self.victim = case, victim
        # Also what was under way then can be lost.
        broken -= FLIGHT
        reachable = [way for way in ways if not case.beyond(way.flow, victim)]
        udp = [way for way in reachable if way.flow.kind == "udp"]
        tcp = [way for way in reachable if way.flow.kind == "tcp" and (bool(way.flow.size > 1000) == bool(case.bulk))]
        self.hit = [way for way in udp if way.key() in carried]
        spared = [way for way in udp if way.key() not in carried]
        # Of a connection also the way of the acknowledgements counts.
        self.tcp_hit = [way for way in tcp if way.key() in carried or way.key()[2:] + way.key()[:2] in carried]
        self.flows = len({way.flow.number for way in self.hit})
        self.outages = sorted(way.gap(broken, end) for way in self.hit)
        self.stalls = sorted(way.gap(broken, end) for way in self.tcp_hit)
        self.resets = [f"{way.source.address} to {way.target.address}: {way.ended}" for way in tcp if way.ended]
        self.sent, self.lost_at = 0, []
        for way in udp:
            sent, lost = way.losses(broken, end)
            self.sent += sent
            self.lost_at += [when - fault for when in lost]
        self.lost = len(self.lost_at)
        self.others_lost = sum(len(way.losses(broken, end)[1]) for way in spared)
        self.others_worst = max((way.gap(broken, end) for way in spared), default=0.0)
        self.early = sum(len(way.losses(began, broken)[1]) for way in udp)
        disorder = [way.disorder() for way in udp]
        self.reordered, self.duplicates = (sum(part) for part in zip(*disorder))
        self.deaf = sum(not way.arrivals for way in udp + tcp)

    def refusal(self):
        """Why it does not count, or None."""
        if self.deaf:
            return f"{self.deaf} flows never arrived"
        if self.early:
            return f"{self.early} packets were lost before the fault"
        if not self.case.bulk and self.flows < ENOUGH:
            return f"the victim carried {self.flows} flows, fewer than {ENOUGH}"
        if self.case.bulk and not self.tcp_hit:
            return "no bulk connection was under way"
        return None


class Result:
    """All repeats of a case."""

    def __init__(self, case, wanted):
        self.case, self.wanted = case, wanted
        self.repeats, self.refused, self.faults = [], [], []
        self.idle, self.stolen = [], []
        self.findings = []
        self.probes = {}
        self.bars = collections.Counter()

    def add(self, repeat, findings, faults, idle, stolen):
        self.repeats.append(repeat)
        self.findings.append(findings)
        self.faults += [fault for fault in faults if fault not in self.faults]
        self.idle.append(idle)
        self.stolen.append(stolen)
        low, high = self.case.span
        for when in repeat.lost_at:
            if low <= when < high:
                self.bars[int((when - low) / self.case.bar)] += 1
        # Only these figures are needed of it from here on.
        repeat.hit = repeat.tcp_hit = None

    def as_json(self):
        case, worst = self.case, [1000 * max(r.outages, default=0.0) for r in self.repeats]
        stalls = [1000 * max(r.stalls) for r in self.repeats if r.stalls]
        # What stands for the case: the stall of TCP where only that is held to a bound.
        main = stalls if case.bulk else worst
        found = {
            "case": case.name,
            "repeats": len(self.repeats),
            "p50_ms": rounded(statistics.median(main)) if main else None,
            "worst_ms": rounded(max(main)) if main else None,
            "lost": sum(r.lost for r in self.repeats),
            "sent": sum(r.sent for r in self.repeats),
            "bound_ms": 1000 * bound if (bound := case.tcp_bound if case.bulk else case.bound) is not None else None,
            "tcp_p50_ms": rounded(statistics.median(stalls)) if stalls else None,
            "tcp_worst_ms": rounded(max(stalls)) if stalls else None,
            "tcp_bound_ms": 1000 * case.tcp_bound if case.tcp_bound is not None else None,
            "flows_hit": statistics.median(r.flows for r in self.repeats) if self.repeats else 0,
            "connections_hit": statistics.median(len(r.stalls) for r in self.repeats) if self.repeats else 0,
            "others_lost": sum(r.others_lost for r in self.repeats),
            "others_worst_ms": rounded(1000 * max((r.others_worst for r in self.repeats), default=0.0)),
            "reordered": sum(r.reordered for r in self.repeats),
            "duplicates": sum(r.duplicates for r in self.repeats),
            "refused": self.refused,
            "idle_percent": rounded(statistics.median(self.idle)) if self.idle else None,
            "stolen_percent": rounded(max(self.stolen)) if self.stolen else None,
            "probes": {name: rounded(value) for name, value in self.probes.items()},
            "findings": self.findings if any(self.findings) else [],
            "samples_ms": [rounded(value) for value in main],
            "lost_over_time": {
                "from_s": case.span[0],
                "bar_s": case.bar,
                "bars": [self.bars[i] for i in range(round((case.span[1] - case.span[0]) / case.bar))],
            },
        }
        found["faults"] = self.judge(found)
        return found

    def judge(self, found):
        """What it misses; empty when it passed."""
        faults = list(self.faults)
        if len(self.repeats) < self.wanted:
            faults.insert(0, f"only {len(self.repeats)} of {self.wanted} repeats could be measured")
        for name, value, bound in (
            ("outage" if not self.case.bulk else "TCP stall", found["worst_ms"], found["bound_ms"]),
            ("TCP stall", found["tcp_worst_ms"], found["tcp_bound_ms"] if not self.case.bulk else None),
        ):
            if bound is not None and value is not None and value > bound:
                faults.append(f"{name} of {value:.0f} ms, more than {bound:.0f} ms")
        if found["tcp_bound_ms"] is not None and self.repeats and found["tcp_worst_ms"] is None:
            faults.append("no TCP connection was hit")
        if self.case.lossless and found["lost"]:
            faults.append(f"{found['lost']} packets lost")
        if self.case.name == "flap" and (found["others_lost"] or found["others_worst_ms"] > 1000 * NOISE):
            faults.append(f"other paths lost {found['others_lost']} packets, and stood still for up to {found['others_worst_ms']:.0f} ms")
        resets = [reset for r in self.repeats for reset in r.resets]
        if resets:
            faults.append(f"{len(resets)} TCP connections ended, such as {resets[0]}")
        return faults


def rounded(value):
    return round(value, 1)


class Runner:
    def __init__(self, options):
        self.options = options
        self.lab = Lab(options)
        self.turn = 0
        self.traffic = None

    def one(self, case):
        """One repeat: what it showed, and findings, faults, idle and stolen percent."""
        lab, victim = self.lab, case.victim(self.turn)
        lab.calm(CALM)
        self.turn += 1
        self.traffic = Traffic(lab, plan(lab.nodes, self.options.flows, self.options.connections, case.bulk, self.turn))
        watch = Machine()
        began = now() + SETTLED
        self.traffic.start()
        time.sleep(LEAD)
        lab.forget_carried(case.watched(victim))
        time.sleep(COUNTED)
        carried = case.carried(victim)
        broken = now()
        fault = case.breaks(victim)
        time.sleep(case.observe)
        case.mends(victim)
        lab.calm(CALM_AFTER)
        time.sleep(1)
        end = now() - FLIGHT
        idle, stolen = watch.since()
        ways = self.traffic.stop()
        self.traffic = None
        repeat = Repeat(case, victim, ways, carried, began, broken, fault, end)
        findings, faults = case.findings(victim)
        case.at_rest(victim)
        if leaked := lab.leaked():
            raise LabError(f"packets of pods went by a road that must not carry them: {leaked}")
        return repeat, findings, faults, idle, stolen

    def case(self, kind):
        case = kind(self.lab)
        wanted = self.options.repeats or (5 if self.options.quick else case.repeats)
        result = Result(case, wanted)
        print(f"\n==> {case.name}: {wanted} repeats", flush=True)
        if reason := case.impossible():
            print(f"error: {reason}", file=sys.stderr, flush=True)
            result.faults.append(reason)
            return result, True
        try:
            while len(result.repeats) < wanted:
                repeat, *seen = self.one(case)
                refusal = repeat.refusal()
                print(line(case, len(result.repeats) + (refusal is None), wanted, repeat, seen, refusal), flush=True)
                if refusal is None:
                    result.add(repeat, *seen)
                    continue
                result.refused.append(refusal)
                if len(result.refused) > wanted + 3:
                    raise LabError(f"{len(result.refused)} repeats did not count; the last: {refusal}")
            result.probes = self.lab.probes(3)
        except LabError as error:
            if self.traffic:
                self.traffic.kill()
                self.traffic = None
            print(f"error: {error}", file=sys.stderr, flush=True)
            result.faults.append(str(error).splitlines()[0].rstrip(": "))
            return result, False
        return result, True

    def run(self, names):
        print("==> Starting a broker, gateways" + (" and agents" if self.lab.agents else ""), flush=True)
        self.lab.prove_leaks_are_seen()
        self.lab.set_up()
        self.lab.calm(CALM)
        print(f"all are connected; {self.options.flows} UDP flows between each two clusters, {self.options.connections} TCP connections", flush=True)
        results, sound = [], True
        for name in names:
            # After a case that could not be measured the lab is in an unknown state.
            if not sound:
                print("==> Starting all of it anew", flush=True)
                self.lab.tear_down()
                self.lab.set_up()
                self.lab.calm(CALM)
                # Daemons that knew nothing yet took away what kept connections of the last case in.
                self.lab.forget_leaks()
            result, sound = self.case(CASES[name])
            results.append(result.as_json())
        return results


def line(case, number, wanted, repeat, seen, refusal):
    ends = [repeat.victim] if isinstance(repeat.victim[0], str) else repeat.victim
    text = f"{number:3}/{wanted} {' to '.join('-'.join(end) for end in ends)}: carried {repeat.flows} flows"
    if repeat.outages:
        text += f", outage {1000 * repeat.outages[-1]:.0f} ms"
    if repeat.stalls:
        text += f"; {len(repeat.stalls)} connections, stall {1000 * repeat.stalls[-1]:.0f} ms"
    text += f"; lost {repeat.lost} of {repeat.sent}; others lost {repeat.others_lost}, longest gap {1000 * repeat.others_worst:.0f} ms"
    findings, faults, idle, stolen = seen
    text += f"; idle {idle:.0f} %" + (f", stolen {stolen:.0f} %" if stolen >= 1 else "")
    text += "".join(f"; {name} {value}" for name, value in findings.items())
    text += "".join(f"\n        fault: {fault}" for fault in faults)
    return text + (f"\n        does not count: {refusal}" if refusal else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("owner", "case"):
        parser.add_argument(f"--{name}")
    for name in ("work", "bin", "traffic", "json", "docs"):
        parser.add_argument(f"--{name}", type=pathlib.Path)
    for name in ("repeats", "interval", "flows", "connections"):
        parser.add_argument(f"--{name}", type=int, default=0)
    for name in ("quick", "gateways-only"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--merge", type=pathlib.Path, action="append", default=[])
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    names = options.case.split(",") if options.case else ["kill-gateway", "drain"] if options.quick else list(CASES)
    try:
        results = Runner(options).run(names)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    facts = {"machine": machine(), "interval": options.interval, "flows": options.flows, "connections": options.connections}
    return report.report(results, facts, options)


if __name__ == "__main__":
    sys.exit(main())
