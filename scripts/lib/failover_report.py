"""The tables, the JSON and the plot of scripts/failover."""

import json

from bench_report import between_markers, table
from failover_cases import CASES

HEAD = ["case", "repeats", "flows hit", "p50, ms", "worst, ms", "bound, ms", "TCP worst, ms", "bound, ms", "lost / sent", "others lost", "met"]


def figure(value):
    return "-" if value is None else f"{value:,.0f}"


def row(found):
    bound = "0 lost" if found["case"] == "drain" else "see below" if found["case"] == "flap" else figure(found["bound_ms"])
    bulk = found["case"] == "mtu-drop"
    return [
        found["case"],
        str(found["repeats"]),
        figure(found["connections_hit"] if bulk else found["flows_hit"]),
        figure(found["p50_ms"]),
        figure(found["worst_ms"]),
        bound,
        figure(found["tcp_worst_ms"]),
        figure(found["tcp_bound_ms"]),
        f"{found['lost']:,} / {found['sent']:,}",
        figure(found["others_lost"]),
        "no" if found["faults"] else "yes",
    ]


def notes(results):
    """What the table has no room for: faults, what was seen, repeats that did not count."""
    lines = []
    for found in results:
        about = [f"MISSED: {fault}" for fault in found["faults"]]
        if found["findings"]:
            about.append("; ".join(", ".join(f"{name} {value}" for name, value in seen.items()) for seen in found["findings"]))
        if found["refused"]:
            about.append(f"{len(found['refused'])} repeats did not count and were repeated, the first because {found['refused'][0]}")
        if found["reordered"] or found["duplicates"]:
            about.append(f"{found['reordered']} packets arrived out of order, {found['duplicates']} twice")
        lines += [f"- `{found['case']}`: {text}." for text in about]
    return "\n".join(lines)


def probes(results):
    """One sentence about what the probes cost."""
    found = next((found["probes"] for found in results if found["probes"]), None)
    if not found:
        return ""
    text = f"Just after traffic, while paths are still probed as those that carry it, {found['path_packets_s']:.1f} packets/s and {found['path_bit_s'] / 1000:.1f} kbit/s cross each path between gateways, both directions and the tunnel's own headers counted"
    if "road_bit_s" in found:
        text += f"; {found['road_packets_s']:.1f} packets/s and {found['road_bit_s'] / 1000:.1f} kbit/s between a node and a gateway of its cluster"
    return text + "."


def text(results, facts):
    idle = [found["idle_percent"] for found in results if found["idle_percent"] is not None]
    stolen = [found["stolen_percent"] for found in results if found["stolen_percent"] is not None]
    busy = f"; idle {min(idle):.0f} to {max(idle):.0f} % (medians of the cases), steal time at most {max(stolen):.1f} %" if idle else ""
    parts = [
        f"Probes every {facts['interval']} ms; {facts['flows']} UDP flows between each two clusters, each 100 packets/s there and back, "
        f"and {facts['connections']} TCP connections. {facts['machine']}{busy}.",
        table(HEAD, [row(found) for found in results]),
        notes(results),
        probes(results),
    ]
    return "\n\n".join(part for part in parts if part)


def merged(results, others):
    """These results, and of earlier runs those of cases that were not run now; in the order of the cases."""
    found = {}
    for path in others:
        found |= {case["case"]: case for case in json.loads(path.read_text())["cases"]}
    found |= {case["case"]: case for case in results}
    return [found[name] for name in CASES if name in found]


# One panel a case, two in a row.
PANEL, HIGH, LEFT, MARGIN = 460, 130, 46, 16


def panel(found, left, top):
    over = found["lost_over_time"]
    bars, repeats = over["bars"], max(found["repeats"], 1)
    width, height = PANEL - LEFT - MARGIN, HIGH - 46
    begin, span = over["from_s"], len(bars) * over["bar_s"]
    base = top + 22 + height
    most = max([count / repeats for count in bars], default=0)
    scale = height / most if most else 0

    def x(seconds):
        return left + LEFT + width * (seconds - begin) / span

    out = [f'<text x="{left}" y="{top + 12}" font-weight="bold" fill="#1f2328">{found["case"]}</text>']
    out.append(f'<line x1="{x(0):.1f}" y1="{top + 18}" x2="{x(0):.1f}" y2="{base}" stroke="#cf222e" stroke-dasharray="3 3"/>')
    for i, count in enumerate(bars):
        if count:
            tall = max(1.0, count / repeats * scale)
            out.append(
                f'<rect x="{x(begin + i * over["bar_s"]):.1f}" y="{base - tall:.1f}" width="{max(1.0, width / len(bars)):.2f}" height="{tall:.1f}" fill="#0969da"/>'
            )
    out.append(f'<line x1="{left + LEFT}" y1="{base}" x2="{left + LEFT + width}" y2="{base}" stroke="#1f2328"/>')
    step = next(step for step in (1, 2, 5, 10, 20, 50) if span / step <= 12)
    for seconds in range(0, int(begin + span) + 1, step):
        out.append(f'<text x="{x(seconds):.1f}" y="{base + 14}" text-anchor="middle" fill="#59636e">{seconds} s</text>')
    if most:
        out.append(f'<text x="{left + LEFT - 4}" y="{top + 30}" text-anchor="end" fill="#59636e">{most:.1f}</text>')
    else:
        why = "none lost" if found["repeats"] else "not measured"
        out.append(f'<text x="{left + LEFT + width / 2}" y="{base - height / 2}" text-anchor="middle" fill="#59636e">{why}</text>')
    return out


def plot(results):
    """An SVG: for each case the packets lost in a repeat, by the time since the fault at which they were sent."""
    rows = (len(results) + 1) // 2
    width, height = 2 * PANEL + MARGIN, rows * HIGH + MARGIN + 20
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{MARGIN}" y="{MARGIN + 6}" fill="#59636e">Packets lost in a repeat (mean), by when they were sent; a bar is 50 ms, of flap 500 ms; the fault is at 0 s</text>',
    ]
    for i, found in enumerate(results):
        out += panel(found, MARGIN + i % 2 * PANEL, MARGIN + 20 + i // 2 * HIGH)
    return "\n".join([*out, "</svg>"]) + "\n"


def report(results, facts, options):
    """Prints and writes everything; the exit code."""
    results = merged(results, options.merge)
    print("\n" + text(results, facts))
    if options.json:
        options.json.write_text(json.dumps({"cases": results}, indent=1) + "\n")
    if options.docs:
        name = "failover" if facts["interval"] == 250 else f"failover-{facts['interval']}"
        page = options.docs / "benchmarks.md"
        page.write_text(between_markers(page.read_text(), name, text(results, facts)))
        (options.docs / f"{name}.svg").write_text(plot(results))
    return 1 if any(found["faults"] for found in results) else 0
