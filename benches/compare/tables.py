"""What was measured: every value, as it goes into the JSON file, and the markdown that is made of it."""

import json
import statistics
import sys


def column(key, head, decimals=1, ratio=False, spread=False):
    """One column: the key of its series, its head, and whether lowest and highest, and multiples of keelblock's, follow."""
    return {"key": key, "head": head, "decimals": decimals, "ratio": ratio, "spread": spread}


def aim(what, key, limit, against, ours="keelblock", slowest=False):
    """`ours` is to take at most `limit` times what the best of `against` takes, or the worst."""
    return {"what": what, "key": key, "limit": limit, "against": against, "ours": ours, "slowest": slowest}


def ceiling(what, key, limit, unit, ours="keelblock"):
    """`ours` is to take at most this, whatever others take."""
    return {"what": what, "key": key, "limit": limit, "unit": unit, "ours": ours}


class Results:
    """All of a run. The file is written anew after every table: a run that breaks has lost only what it was at."""

    def __init__(self, environment, file):
        self.kept = {"environment": environment, "tables": []}
        self.file, self.failed = file, []

    def begin(self, images):
        self.kept["images"] = images
        print_environment(self.kept)

    def show(self, title, columns, rows, aims=(), notes=()):
        """`rows`: tool -> key of a column -> values. A row without values failed; one that lacks a column leaves it
        empty."""
        self.failed += [f"{tool} ({title})" for tool, row in rows.items() if not row]
        table = {"title": title, "columns": columns, "rows": rows, "aims": list(aims), "notes": list(notes)}
        self.kept["tables"].append(table)
        if self.file:
            self.file.write_text(json.dumps(self.kept, indent=1) + "\n")
        print_table(table)

    def end(self):
        print_aims(self.kept["tables"])


# ---- markdown -------------------------------------------------------------------------------------------------


def print_kept(kept):
    print_environment(kept)
    for table in kept["tables"]:
        print_table(table)
    print_aims(kept["tables"])


def print_environment(kept):
    print("```")
    for key, text in kept["environment"].items():
        print(f"{key}: {text}")
    for name, text in kept["images"].items():
        print(f"image {name}: {text}")
    print("```", flush=True)


def print_table(table):
    rows = table["rows"]
    columns = [c for c in table["columns"] if any(c["key"] in row for row in rows.values())]
    heads = ["tool"]
    for c in columns:
        heads += [c["head"], *(["lowest..highest"] if c["spread"] else []), *(["x keelblock"] if c["ratio"] else [])]
    lines = []
    for name, row in rows.items():
        line = [name]
        for c in columns:
            values, ours = row.get(c["key"]), rows.get("keelblock", {}).get(c["key"])
            decimals = c["decimals"]
            line.append(f"{statistics.median(values):.{decimals}f}" if values else "" if row else "failed")
            if c["spread"]:
                line.append(f"{min(values):.{decimals}f}..{max(values):.{decimals}f}" if values else "")
            if c["ratio"]:
                base = statistics.median(ours) if ours else 0
                line.append(f"{statistics.median(values) / base:.2f}" if values and base else "")
        lines.append([*line, str(max((len(values) for values in row.values()), default=0))])
    print(f"\n### {table['title']}\n")
    print_lines([*heads, "n"], lines)
    found = [text for wanted in table["aims"] if (text := verdict(wanted, rows))]
    if found or table["notes"]:
        print()
    for text in [": ".join(text) for text in found] + table["notes"]:
        print(f"- {text}")
    sys.stdout.flush()


def verdict(wanted, rows):
    """An aim in words, and what came of it; nothing where one of the two sides was not measured."""

    def median(name):
        values = rows.get(name, {}).get(wanted["key"])
        return statistics.median(values) if values else None

    ours = median(wanted["ours"])
    if ours is None:
        return None
    if "unit" in wanted:
        return (f"{wanted['what']} at most {wanted['limit']} {wanted['unit']}",
                f"{ours:.1f} {wanted['unit']}{'' if ours <= wanted['limit'] else ', **missed**'}")
    theirs = {name: value for name in wanted["against"] if (value := median(name))}
    if not theirs:
        return None
    best = (max if wanted.get("slowest") else min)(theirs, key=theirs.get)
    ratio = ours / theirs[best]
    return (f"{wanted['what']} at most {wanted['limit']:.2f} of {best}'s",
            f"{ratio:.2f}{'' if ratio <= wanted['limit'] else ', **missed**'}")


def print_aims(tables):
    lines = [[table["title"], *text] for table in tables for wanted in table["aims"]
             if (text := verdict(wanted, table["rows"]))]
    if lines:
        print("\n## Against the aims\n")
        print_lines(["table", "aim", "here"], lines)


def print_lines(heads, lines):
    widths = [max(len(line[i]) for line in [heads, *lines]) for i in range(len(heads))]
    for line in [heads, ["-" * width for width in widths], *lines]:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |")
