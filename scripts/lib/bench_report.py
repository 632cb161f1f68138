#!/usr/bin/env python3
"""Turns the samples of scripts/bench-tunnel into tables, JSON and a plot.

Samples are lines of `round TAB metric TAB implementation TAB value`, facts are lines of `name TAB value`.
Ratios are ours divided by theirs in the same round, and of those the median: both then saw the same mood of the machine.
"""

import argparse
import collections
import json
import pathlib
import statistics
import sys

OURS = "subsea"
PEERS = ["wireguard-go", "boringtun-cli", "gotatun"]
IMPLEMENTATIONS = [OURS, *PEERS, "plain"]
BEST = "the best peer"

Metric = collections.namedtuple("Metric", "name title digits lower")
# A bar compares our samples of `metric` with samples of `base`, which are `other`'s. Without a base it is the value itself.
Bar = collections.namedtuple("Bar", "metric other base must aim")

METRICS = [
    Metric("tcp", "TCP, 1 stream, Gbit/s", 2, False),
    Metric("reverse", "TCP, 1 stream, reverse, Gbit/s", 2, False),
    Metric("four", "TCP, 4 streams, Gbit/s", 2, False),
    Metric("cpu", "CPU of both gateways, s/GB", 2, True),
    Metric("udp", "UDP, 64 bytes, thousands/s", 1, False),
    Metric("p99", "round trip under load, p99, us", 0, True),
    Metric("idle", "round trip, idle, median, us", 0, True),
]
BARS = [
    Bar("tcp", "wireguard-go", "tcp", 1.8, 2.5),
    Bar("tcp", "boringtun-cli", "tcp", 3.3, 4.5),
    Bar("tcp", "gotatun", "tcp", 4.0, 5.0),
    Bar("reverse", "wireguard-go", "reverse", 1.5, 2.0),
    Bar("four", "wireguard-go", "four", 1.5, 2.0),
    Bar("cpu", "wireguard-go", "cpu", 0.55, 0.40),
    Bar("udp", BEST, "udp", 1.2, 2.0),
    Bar("p99", "wireguard-go", "p99", 0.7, 0.3),
    Bar("idle", "boringtun-cli", "idle", 1.1, 1.0),
]
BY_NAME = {metric.name: metric for metric in METRICS}


def read_samples(path):
    """metric -> implementation -> round -> value"""
    samples = collections.defaultdict(lambda: collections.defaultdict(dict))
    for line in path.read_text().splitlines():
        number, metric, implementation, value = line.split("\t")
        samples[metric][implementation][int(number)] = float(value)
    return samples


def rounds_of(samples, metric, implementation):
    """The samples of one implementation by round; of the best peer in each round."""
    if implementation != BEST:
        return samples[metric].get(implementation, {})
    pick = min if BY_NAME[metric].lower else max
    found = collections.defaultdict(list)
    for peer in PEERS:
        for number, value in samples[metric].get(peer, {}).items():
            found[number].append(value)
    return {number: pick(values) for number, values in found.items()}


def median(values):
    values = list(values)
    return statistics.median(values) if values else None


def ratio(samples, metric, other, base):
    """The median of the ratios of the rounds that have both, or None."""
    ours, theirs = rounds_of(samples, metric, OURS), rounds_of(samples, base, other)
    return median(ours[n] / theirs[n] for n in ours if theirs.get(n))


def judge(samples, bar):
    """What was measured for a bar and whether it is met: "aim", "must" or "no"."""
    if bar.base is None:
        value = median(rounds_of(samples, bar.metric, OURS).values())
    else:
        value = ratio(samples, bar.metric, bar.other, bar.base)
    if value is None:
        return None, "not measured"
    sign = -1 if BY_NAME[bar.metric].lower else 1
    for name, limit in (("aim", bar.aim), ("must", bar.must)):
        if sign * value >= sign * limit:
            return value, name
    return value, "no"


def table(head, rows):
    """Aligned Markdown; the first column is text, the others are figures."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = []
    for row in [head, *rows]:
        cells = [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        lines.append("| " + " | ".join(cells) + " |")
    rule = ["-" * (widths[0] + 2)] + ["-" * (width + 1) + ":" for width in widths[1:]]
    lines.insert(1, "|" + "|".join(rule) + "|")
    return "\n".join(lines)


def figures(samples):
    """Medians, and in brackets our ratio to each."""
    present = [name for name in IMPLEMENTATIONS if any(name in samples[m.name] for m in METRICS)]
    rows = []
    for metric in METRICS:
        if not samples[metric.name]:
            continue
        row = [metric.title]
        for name in present:
            value = median(rounds_of(samples, metric.name, name).values())
            if value is None:
                row.append("-")
                continue
            cell = f"{value:.{metric.digits}f}"
            compared = None if name == OURS else ratio(samples, metric.name, name, metric.name)
            row.append(cell if compared is None else f"{cell} ({compared:.2f})")
        rows.append(row)
    return table(["median (ours / theirs)", *present], rows)


def bars(samples):
    rows = []
    for bar in BARS:
        if not samples[bar.metric]:
            continue
        value, met = judge(samples, bar)
        metric = BY_NAME[bar.metric]
        sign = "<=" if metric.lower else ">="
        rows.append([
            metric.title.rsplit(",", 1)[0],
            bar.other or "-",
            "-" if value is None else f"{value:.2f}",
            f"{sign} {bar.must:g}",
            f"{sign} {bar.aim:g}",
            met,
        ])
    return table(["ours against", "whom", "ratio", "must", "aim", "met"], rows)


def text(samples, facts):
    versions = [f"{name.removeprefix('version ')}: {value}" for name, value in facts.items() if name.startswith("version ")]
    missing = [f"{name.removeprefix('missing ')} is left out: it {value}" for name, value in facts.items() if name.startswith("missing ")]
    command = f"Medians of {facts['rounds']} interleaved rounds of {facts['seconds']} s; in brackets the median of the rounds' ratios."
    machine = f"{facts['machine']}; steal time {facts['steal']} %, busy without us before a round {facts['busy']} % (median)."
    parts = [command, machine, "", figures(samples), "", bars(samples), "", "; ".join(versions + missing) + "."]
    return "\n".join(parts)


def as_json(samples, facts):
    return {
        "facts": facts,
        "samples": {m: {i: [r[n] for n in sorted(r)] for i, r in of.items()} for m, of in samples.items() if of},
        "medians": {m: {i: median(r.values()) for i, r in of.items()} for m, of in samples.items() if of},
        "bars": [
            dict(zip(("ratio", "met"), judge(samples, bar))) | bar._asdict()
            for bar in BARS
            if samples[bar.metric]
        ],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("samples", type=pathlib.Path)
    parser.add_argument("facts", type=pathlib.Path)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--docs", type=pathlib.Path)
    options = parser.parse_args()
    samples = read_samples(options.samples)
    facts = dict(line.split("\t", 1) for line in options.facts.read_text().splitlines())
    print(text(samples, facts))
    if options.json:
        options.json.write_text(json.dumps(as_json(samples, facts), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
