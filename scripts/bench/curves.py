"""The curves: microseconds for each entry of a cold walk, by the number of layers and by the number of entries."""

import math
from html import escape

import report
import rows

TITLE = "Time for each entry of a cold walk with stat, by the number of layers and of entries"
WIDTH, HEIGHT, LEFT, TOP, GAP = 380, 300, 60, 80, 70
COLOURS = {report.REFERENCE: "#24292f", **report.COLOURS}
STYLE = report.STYLE + "  .line { fill: none; stroke-width: 2 } .kernel { stroke: #24292f; fill: #24292f }\n" \
    "  @media (prefers-color-scheme: dark) { .kernel { stroke: #d6dce3; fill: #d6dce3 } }\n"


def number_of(key):
    return int(key.rpartition("-")[2])


def entries_of(row):
    return int(row.expect.split()[0])


def points(results, kind):
    """For each driver, (number on the axis, microseconds for an entry)."""
    found = {}
    for row in rows.CURVES[kind]:
        cells = results["rows"].get(row.key, {}).get("drivers", {})
        for name in results["drivers"]:
            seconds = report.median(cells.get(name))
            if seconds:
                found.setdefault(name, []).append((number_of(row.key), seconds * 1e6 / entries_of(row)))
    return found


def ticks(low, high):
    """1, 2 and 5 times the powers of ten from `low` to `high`, so that there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(powers) < 5 else (1,)
    return [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]


def panel(results, kind, left, low, high):
    curves = points(results, kind)
    axis = [number_of(row.key) for row in rows.CURVES[kind]]

    def across(value):
        return left + WIDTH * math.log(value / axis[0]) / math.log(axis[-1] / axis[0])

    def up(value):
        return TOP + HEIGHT * (1 - math.log(value / low) / math.log(high / low))

    parts = [f'<text x="{left}" y="{TOP - 12}">µs an entry, by the number of {kind}</text>']
    for value in ticks(low, high):
        parts.append(f'<line class="axis" x1="{left}" y1="{up(value):.1f}" x2="{left + WIDTH}" y2="{up(value):.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{up(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in axis:
        parts.append(f'<line class="axis" x1="{across(value):.1f}" y1="{TOP}" x2="{across(value):.1f}" y2="{TOP + HEIGHT}"/>')
        parts.append(f'<text x="{across(value):.1f}" y="{TOP + HEIGHT + 16}" text-anchor="middle">{value:,}</text>')
    for name, curve in curves.items():
        kernel = ' class="line kernel"' if name == report.REFERENCE else f' class="line" stroke="{COLOURS.get(name, "#777777")}"'
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in curve)
        parts.append(f'<polyline{kernel} style="fill: none" points="{path}"/>')
        for x, y in curve:
            tip = f"{results['drivers'][name]}, {x:,} {kind}: {y:.1f} µs an entry"
            fill = ' class="kernel"' if name == report.REFERENCE else f' fill="{COLOURS.get(name, "#777777")}"'
            parts.append(f'<circle{fill} cx="{across(x):.1f}" cy="{up(y):.1f}" r="3"><title>{escape(tip)}</title></circle>')
    return parts


def chart(results):
    """SVG: two panels with logarithmic axes."""
    values = [y for kind in rows.CURVES for curve in points(results, kind).values() for _, y in curve]
    low, high = min(values) * 0.8, max(values) * 1.25
    parts, x = [], LEFT
    for name, title in results["drivers"].items():
        colour = ' class="kernel"' if name == report.REFERENCE else f' fill="{COLOURS.get(name, "#777777")}"'
        parts.append(f'<rect{colour} x="{x}" y="36" width="12" height="12"/><text x="{x + 17}" y="46">{escape(title)}</text>')
        x += 40 + 7 * len(title)
    for number, kind in enumerate(rows.CURVES):
        parts += panel(results, kind, LEFT + number * (WIDTH + GAP), low, high)
    width = LEFT + len(rows.CURVES) * (WIDTH + GAP)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {TOP + HEIGHT + 40}" role="img">\n'
        f"<title>{TITLE}</title>\n<style>{STYLE}</style>\n"
        f'<rect class="page" width="100%" height="100%"/>\n<text x="20" y="22" font-weight="600">{TITLE}</text>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )
