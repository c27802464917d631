"""The results as a table, a chart, and the sections of docs/performance.md and README.md."""

import statistics
from html import escape

BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
REFERENCE = "overlayfs"


def median(cell):
    values = [value for value in (cell or {}).get("values", []) if value is not None]
    return statistics.median(values) if values else None


def ratio(row, driver):
    """To the kernel's overlayfs; none where either was not measured."""
    value, reference = median(row["drivers"].get(driver)), median(row["drivers"].get(REFERENCE))
    return value / reference if value is not None and reference else None


def absolute(value, unit):
    if value is None:
        return "–"
    return f"{value:.0f} MB" if unit == "MB" and value >= 10 else f"{value:.1f} MB" if unit == "MB" else f"{value:.3f}"


def show(row, driver):
    cell = row["drivers"].get(driver)
    if cell is None:
        return ""
    if cell.get("failed"):
        return "fails"
    if median(cell) is None:
        return "–"
    if row["unit"] == "MB" or driver == REFERENCE:
        return absolute(median(cell), row["unit"])
    compared = ratio(row, driver)
    return f"{median(cell):.3f} s" if compared is None else f"{compared:.2f}"


def table(results):
    """Markdown: seconds of overlayfs, the others as ratios to it (below 1 is faster); memory in MB."""
    drivers = results["drivers"]
    head = ["work"] + [f"{title} s" if name == REFERENCE else f"{title} ×" for name, title in drivers.items()]
    lines = [head, ["---"] + ["---:"] * len(drivers)]
    lines += [[row["title"]] + [show(row, name) for name in drivers] for row in results["rows"].values()]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    lines[1] = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    rendered = []
    for number, line in enumerate(lines):
        cells = [line[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(line[1:], widths[1:])]
        rendered.append("| " + " | ".join(cells) + " |")
    return "\n".join(rendered)


def failures(results):
    return [
        f"{results['drivers'][name]}, {row['title']}: {cell['failed']}"
        for row in results["rows"].values()
        for name, cell in row["drivers"].items()
        if cell.get("failed")
    ]


def misses(results):
    """Where stratafs is slower than was aimed at, or than another FUSE file system."""
    found = []
    for row in results["rows"].values():
        own = median(row["drivers"].get("stratafs"))
        if own is None:
            continue
        compared = ratio(row, "stratafs")
        if row["target"] and compared and compared > row["target"] * 1.005:
            found.append(f"{row['title']}: {compared:.2f}, the aim is {row['target']}")
        for name in row["drivers"]:
            other = median(row["drivers"][name])
            if name != REFERENCE and not name.startswith("stratafs") and other is not None and other * 1.03 < own:
                title = f"{row['title']}: {results['drivers'][name]}"
                if row["unit"] == "s":
                    found.append(f"{title} is {own / other:.2f} times as fast")
                else:
                    found.append(f"{title} takes {other:.0f} MB, we {own:.0f} MB")
    return found


def requests(results):
    """What stratafs was asked in each row, by kind."""
    lines = []
    for row in results["rows"].values():
        for name, cell in row["drivers"].items():
            if "requests" in cell:
                kinds = sorted(cell["requests"].items(), key=lambda item: -item[1])
                total = sum(number for _, number in kinds)
                lines.append(f"{row['title']} ({name}): {total}: " + " ".join(f"{kind}={number}" for kind, number in kinds))
    return "\n".join(lines)


def peak(results):
    """The most that each driver's process took in any row."""
    found = {}
    for row in results["rows"].values():
        for name, cell in row["drivers"].items():
            kb = max([k for k in cell.get("peak_kb", []) if k] or [0])
            if kb > found.get(name, (0, ""))[0]:
                found[name] = (kb, row["title"])
    return [f"{results['drivers'][name]}: {kb * 1024 / 1e6:.0f} MB ({title})" for name, (kb, title) in found.items()]


def circumstances(results):
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    counts = {len(c["values"]) for row in results["rows"].values() for c in row["drivers"].values() if c.get("values")}
    rounds = "1" if not counts else f"{min(counts)} to {max(counts)}" if len(counts) > 1 else str(max(counts))
    return f"{results['machine']}; {rounds} {'round' if rounds == '1' else 'rounds, medians'}; {results['date']}; {versions}."


def inventories(results):
    """What the layers' inventories cost."""
    made = results.get("inventories")
    if not made:
        return "No layer had an inventory."
    seconds, size = (sum(stack[key] for stack in made.values()) for key in ("seconds", "bytes"))
    layers = sum(stack["layers"] for stack in made.values())
    most, largest = max((stack["seconds"], name) for name, stack in made.items())
    return (
        f"The layers have inventories, made once by `strata inventory`: {layers} in {seconds:.1f} s, {size / 1e6:.0f} MB "
        f"(the longest: `{largest}`, {most:.1f} s). `inventory=off` is stratafs without them."
    )


TITLE = "Time relative to the kernel's overlayfs, by kind of work"


def section(results, chart, title=TITLE):
    lines = []
    if chart:
        lines += [f"![{title}]({chart})", ""]
    lines += ["Seconds for the kernel's overlayfs; for the others the ratio to it, below 1 is faster. Memory in MB.",
              "Measured by `scripts/bench/fs`: " + circumstances(results), inventories(results), "", table(results), ""]
    return "\n".join(lines)


# The rows and columns of README.md, which links to the whole table.
SUMMARY_ROWS = ["walk-cold", "walk-100", "read-cold", "read-warm", "write-4k-random", "untar", "remove", "rename", "git", "sqlite"]
SUMMARY_DRIVERS = [REFERENCE, "stratafs", "fo1", "fo2"]


def summary(results):
    """The ten rows of README.md. Rows and drivers that were not measured are left out."""
    drivers = {name: results["drivers"][name] for name in SUMMARY_DRIVERS if name in results["drivers"]}
    rows = {key: results["rows"][key] for key in SUMMARY_ROWS if key in results["rows"]}
    return table({"drivers": drivers, "rows": rows}) + "\n"


def rewrite(path, section, begin=BEGIN, end=END):
    """Puts `section` between the lines `begin` and `end` of a document."""
    with open(path) as file:
        text = file.read()
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise ValueError(f"{path} has no {begin} … {end}")
    with open(path, "w") as file:
        file.write(f"{before}{begin}\n{section}{end}{after}")


# ------------------------------------------------------------------------------------------------------------ chart

COLOURS = {"stratafs": "#d1495b", "stratafs+inventory=off": "#e9a3ad", "fo1": "#3d7ea6", "fo2": "#66a5ad", "unionfs": "#9a7fb8", "mergerfs": "#a89f68"}
EXTRA_COLOURS = ["#e08e45", "#5b8c5a", "#777777"]
LEFT, WIDTH, BAR, GAP, TOP = 330, 520, 6, 9, 64
SMALLEST, LARGEST = 0.1, 40.0

STYLE = """
  svg { font: 12px system-ui, sans-serif }
  .page { fill: #ffffff } text { fill: #24292f } .axis { stroke: #c8ccd0 } .one { stroke: #24292f }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117 } text { fill: #d6dce3 } .axis { stroke: #363c44 } .one { stroke: #d6dce3 }
  }
"""


def chart(results):
    """SVG: one group of bars a row, to the left of the line where faster than overlayfs, to the right where slower."""
    import math

    names = [name for name in results["drivers"] if name != REFERENCE]
    spare = iter(EXTRA_COLOURS * 3)
    colours = {name: COLOURS.get(name) or next(spare) for name in names}

    def across(value):
        value = min(max(value, SMALLEST), LARGEST)
        return LEFT + WIDTH * math.log(value / SMALLEST) / math.log(LARGEST / SMALLEST)

    rows = [row for row in results["rows"].values() if row["unit"] == "s" and any(ratio(row, name) for name in names)]
    height = TOP + sum(BAR * len(names) + GAP for _ in rows) + 30
    parts = []
    for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 40):
        x = across(tick)
        kind = "one" if tick == 1 else "axis"
        parts.append(f'<line class="{kind}" x1="{x:.1f}" y1="{TOP - 6}" x2="{x:.1f}" y2="{height - 26}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 10}" text-anchor="middle">{tick:g}</text>')
    y = TOP
    for row in rows:
        middle = y + BAR * len(names) / 2 + 4
        parts.append(f'<text x="{LEFT - 10}" y="{middle:.1f}" text-anchor="end">{escape(row["title"])}</text>')
        for name in names:
            compared = ratio(row, name)
            if compared:
                start, stop = sorted((across(1), across(compared)))
                tip = f"{results['drivers'][name]}, {row['title']}: {compared:.2f}"
                parts.append(
                    f'<rect x="{start:.1f}" y="{y}" width="{max(stop - start, 1):.1f}" height="{BAR - 1}" '
                    f'fill="{colours[name]}"><title>{escape(tip)}</title></rect>'
                )
            y += BAR
        y += GAP
    x = 20
    for name in names:
        title = results["drivers"][name]
        parts.append(f'<rect x="{x}" y="34" width="12" height="12" fill="{colours[name]}"/>')
        parts.append(f'<text x="{x + 17}" y="44">{escape(title)}</text>')
        x += 40 + 7 * len(title)
    title = "Time relative to the kernel's overlayfs (1); to the left is faster"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 30} {height}" role="img">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n"
        f'<rect class="page" width="100%" height="100%"/>\n<text x="20" y="22" font-weight="600">{title}</text>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )
