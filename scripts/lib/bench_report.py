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
FLOOR = "the floor"

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
    Metric("jumbo", "TCP, underlay of 9,000 bytes, Gbit/s", 2, False),
    Metric("off", "TCP, no offloads, Gbit/s", 2, False),
    Metric("ipv4", "TCP, IPv4 beside the next, Gbit/s", 2, False),
    Metric("ipv6", "TCP, IPv6 inside and outside, Gbit/s", 2, False),
    Metric("flood-aside", "TCP, packets to another socket, Gbit/s", 2, False),
    Metric("kept-wrong", "kept in a flood, wrong mac1", 3, False),
    Metric("kept-right", "kept in a flood, right mac1", 3, False),
    Metric("peak-1", "memory, 1 peer, peak, MiB", 1, True),
    Metric("rss-1", "memory, 1 peer, MiB", 1, True),
    Metric("peak-500", "memory, 500 peers, peak, MiB", 1, True),
    Metric("rss-500", "memory, 500 peers, MiB", 1, True),
    Metric("floor", "CPU that cannot be saved, s/GB", 2, True),
]
BARS = [
    Bar("tcp", "wireguard-go", "tcp", 1.8, 2.5),
    Bar("tcp", "boringtun-cli", "tcp", 3.3, 4.5),
    Bar("tcp", "gotatun", "tcp", 4.0, 5.0),
    Bar("reverse", "wireguard-go", "reverse", 1.5, 2.0),
    Bar("four", "wireguard-go", "four", 1.5, 2.0),
    Bar("cpu", "wireguard-go", "cpu", 0.55, 0.40),
    Bar("cpu", FLOOR, "floor", 1.5, 1.15),
    Bar("udp", BEST, "udp", 1.2, 2.0),
    Bar("p99", "wireguard-go", "p99", 0.7, 0.3),
    Bar("idle", "boringtun-cli", "idle", 1.1, 1.0),
    Bar("jumbo", "wireguard-go", "jumbo", 1.4, 1.8),
    Bar("off", "boringtun-cli", "off", 1.0, 1.3),
    Bar("ipv6", OURS, "ipv4", 0.9, 1.0),
    Bar("kept-wrong", None, None, 0.90, 0.97),
    Bar("kept-right", None, None, 0.90, 0.97),
    Bar("peak-1", None, None, 16, 8),
    Bar("rss-1", None, None, 16, 8),
    Bar("peak-500", None, None, 64, 32),
    Bar("rss-500", None, None, 64, 32),
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
    if implementation == FLOOR:
        implementation = OURS
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


def number(value):
    """Three significant digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


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
            row.append(cell if compared is None else f"{cell} ({number(compared)})")
        rows.append(row)
    return table(["median (ours / theirs)", *present], rows)


def bars(samples):
    """The bars whose both sides were to be measured."""
    rows = []
    for bar in BARS:
        value, met = judge(samples, bar)
        metric = BY_NAME[bar.metric]
        if value is None and (bar.other != FLOOR or not samples[bar.metric][OURS]):
            continue
        # A ratio has no unit, so the metric's goes with what it stood beside.
        title = metric.title if bar.base is None else metric.title.rsplit(",", 1)[0]
        sign = "<=" if metric.lower else ">="
        rows.append([
            title if bar.base is None else f"{title}, against {bar.other if bar.other != OURS else 'our IPv4'}",
            "-" if value is None else number(value),
            f"{sign} {bar.must:g}",
            f"{sign} {bar.aim:g}",
            met,
        ])
    return table(["ours", "measured", "must", "aim", "met"], rows) if rows else None


def floor(samples):
    """One sentence about the CPU time that no data plane can save."""
    middle = {name: median(samples[name].get(OURS, {}).values()) for name in ("seal", "open", "cipher", "loop", "floor")}
    parts = []
    if middle["cipher"] is not None:
        parts.append(
            f"The cipher alone takes {middle['seal']:.0f} ns to seal and {middle['open']:.0f} ns to open 1,420 bytes, "
            f"which is {middle['cipher']:.2f} s/GB"
        )
    if middle["loop"] is not None:
        parts.append(f"the loop without it {middle['loop']:.2f} s/GB")
    if middle["floor"] is not None:
        parts.append(f"together {middle['floor']:.2f} s/GB")
    return "; ".join(parts) + "." if parts else None


def text(samples, facts):
    def about(word):
        return [(name.removeprefix(word + " "), value) for name, value in facts.items() if name.startswith(word + " ")]

    versions = [name if value == name else f"{name} is {value}" for name, value in about("version")]
    missing = [f"{name} is left out: it {value}." for name, value in about("missing")]
    notes = [value for _, value in about("note")]
    parts = [
        f"Medians of {facts['rounds']} interleaved rounds of {facts['seconds']} s; in brackets the median of each round's ours / theirs. "
        f"{facts['machine']}; steal time {facts['steal']} %, busy without us before a metric {facts['busy']} % (median).",
        figures(samples),
        bars(samples),
        floor(samples),
        " ".join(["; ".join(versions) + ".", *missing, *notes]),
    ]
    return "\n\n".join(part for part in parts if part)


def as_json(samples, facts):
    return {
        "facts": facts,
        "samples": {m: {i: [r[n] for n in sorted(r)] for i, r in of.items()} for m, of in samples.items() if of},
        "medians": {m: {i: median(r.values()) for i, r in of.items()} for m, of in samples.items() if of},
        "bars": [
            dict(zip(("measured", "met"), judge(samples, bar))) | bar._asdict()
            for bar in BARS
            if samples[bar.metric][OURS]
        ],
    }


def between_markers(page, name, report):
    """The page with the report between its markers `<!-- NAME:begin -->` and `<!-- NAME:end -->`."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if page.count(begin) != 1 or page.count(end) != 1:
        sys.exit(f"error: the page needs one {begin} and one {end}")
    before, rest = page.split(begin)
    return f"{before}{begin}\n{report}\n{end}{rest.split(end)[1]}"


# One panel a metric, two in a row; in each a bar for every implementation.
PLOTTED = ["tcp", "reverse", "four", "cpu", "udp", "p99", "idle", "rss-1"]
COLOURS = {OURS: "#0969da", "wireguard-go": "#8250df", "boringtun-cli": "#bf8700", "gotatun": "#1a7f37"}
PANEL, LABEL, LINE, MARGIN = 440, 100, 20, 20


def plot(samples):
    """An SVG of the medians; plain routing is left out, since beside it nothing else could be seen."""
    shown = [BY_NAME[name] for name in PLOTTED if samples[name]]
    present = [name for name in COLOURS if any(name in samples[m.name] for m in shown)]
    height = LINE * (len(present) + 2)
    rows = (len(shown) + 1) // 2
    width = 2 * PANEL + MARGIN
    total = rows * height + MARGIN
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" width="{width}" height="{total}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="{width}" height="{total}" fill="#ffffff"/>',
    ]
    for i, metric in enumerate(shown):
        left, top = MARGIN + i % 2 * PANEL, MARGIN + i // 2 * height
        better = "less" if metric.lower else "more"
        out.append(f'<text x="{left}" y="{top + 12}" font-weight="bold" fill="#1f2328">{metric.title} ({better} is better)</text>')
        medians = {name: median(rounds_of(samples, metric.name, name).values()) for name in present}
        most = max((value for value in medians.values() if value), default=1)
        for n, (name, value) in enumerate(medians.items()):
            y = top + LINE * (n + 1)
            out.append(f'<text x="{left}" y="{y + 14}" fill="#1f2328">{name}</text>')
            if value is None:
                out.append(f'<text x="{left + LABEL}" y="{y + 14}" fill="#59636e">not measured</text>')
                continue
            length = (PANEL - LABEL - 90) * value / most
            out.append(f'<rect x="{left + LABEL}" y="{y + 3}" width="{length:.1f}" height="{LINE - 6}" fill="{COLOURS[name]}"/>')
            out.append(f'<text x="{left + LABEL + length + 6:.1f}" y="{y + 14}" fill="#1f2328">{value:,.{metric.digits}f}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


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
    if options.docs:
        page = options.docs / "benchmarks.md"
        page.write_text(between_markers(page.read_text(), "bench-tunnel", text(samples, facts)))
        (options.docs / "bench-tunnel.svg").write_text(plot(samples))
    return 0


if __name__ == "__main__":
    sys.exit(main())
