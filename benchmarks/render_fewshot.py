"""Tables 2 and 3 as Markdown: the leads in short, accuracies, and all leads and wall times of docs/results/fewshot.md.

Arms stand in rows and a set's images a class in columns: there are many arms, and what is compared stands in a column.
"""

from collections.abc import Callable
from typing import Any

from benchmarks.leads import ALONE, ANSWER

Row = dict[str, Any]


def grid(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(r) + " |" for r in rows]) + "\n"


def percent(cell: dict[str, Any]) -> str:
    """A mean and half the width of its interval, in percent."""
    return f"{100 * cell['mean']:.1f} ± {50 * (cell['high'] - cell['low']):.1f}"


def lead(cell: dict[str, Any] | None) -> str:
    """A lead in points with half its interval's width; bold where the interval lies above zero, as it is elsewhere."""
    if cell is None:
        return "–"
    points = f"{100 * cell['mean']:+z.1f}"  # z: no minus before a zero
    text = f"{points} ± {50 * (cell['high'] - cell['low']):.1f}"
    return f"**{text}**" if cell["low"] > 0 else text


def _targets(content: dict[str, Any]) -> dict[str, list[Row]]:
    return {
        t: [r for r in content["rows"] if r["target"] == t] for t in dict.fromkeys(r["target"] for r in content["rows"])
    }


def _place(r: Row) -> str:
    return f"{r['set']}, {r['ways']}-way, {r['shots']}"


def _tasks(cell: dict[str, Any], row: Row) -> str:
    """The number of tasks, where an arm ran on fewer than the row has."""
    return f" ({cell['n']})" if cell["n"] < max(c["n"] for c in row["arms"].values()) else ""


def leads(content: dict[str, Any]) -> str:
    """The smallest lead over any rival, row by row, and what generating takes beside 100 steps of fine-tuning."""
    parts = []
    for target, rows in _targets(content).items():
        timed = "times_fine_tune_100" in rows[0]["arms"][ANSWER]
        narrow = timed  # a whole network has rivals of its own kind and rivals that keep the encoder
        group = "same architecture" if narrow else "any"
        head = ["set, ways, images a class", "best rival", "generated alone", "service's answer", "tasks"]
        if narrow:
            head[1] = "best rival of its architecture"
            head += ["generated alone over any rival", "seconds ÷ fine-tune 100"]
        lines = []
        for r in rows:
            alone, answer = r["leads"][ALONE], r["leads"][ANSWER]
            best = alone[group]
            named = f"{best['over']}: {100 * r['arms'][best['over']]['mean']:.1f} %" if best else "none"
            line = [_place(r), named, lead(best), lead(answer[group]), str(best["n"]) if best else "–"]
            if narrow:
                line.append(f"{lead(alone['any'])} ({alone['any']['over']})" if alone["any"] else "–")
                line.append(f"{r['arms'][ANSWER]['times_fine_tune_100']:.2f}")
            lines.append(line)
        parts.append(f"**{target}**\n\n" + grid(head, lines))
    note = (
        "\nPoints of accuracy ahead of the rival that is hardest to beat, paired by task, with 95 % intervals; bold "
        "where the interval lies above zero. Each of our two answers has its own hardest rival; the one named is that "
        "of `generated alone`.\n"
    )
    return "\n".join(parts) + note


def accuracies(content: dict[str, Any]) -> str:
    """One table a target: arms in rows, sets and images a class in columns."""

    def cell(r: Row, arm: str) -> str:
        return f"{100 * r['arms'][arm]['mean']:.1f}{_tasks(r['arms'][arm], r)}"

    return "\n".join(_by_arm(target, rows, cell) for target, rows in _targets(content).items())


def _by_arm(target: str, rows: list[Row], show: Callable[[Row, str], str]) -> str:
    arms = list(dict.fromkeys(a for r in rows for a in r["arms"]))
    lines = [[a, *(show(r, a) if a in r["arms"] else "–" for r in rows)] for a in arms]
    return f"**{target}**\n\n" + grid(["arm", *(_place(r) for r in rows)], lines)


def document(content: dict[str, Any]) -> str:
    """docs/results/fewshot.md: everything that the result file has."""
    parts = {
        "Accuracy, %": lambda r, a: percent(r["arms"][a]) + _tasks(r["arms"][a], r),
        "`generated alone` ahead by, points": lambda r, a: lead(r["arms"][a]["generated_alone_ahead_by"]),
        "`service's answer` ahead by, points": lambda r, a: lead(r["arms"][a]["answer_ahead_by"]),
        "Seconds (median), and as a share of 100-step fine-tuning's": _wall,
    }
    text = (
        "# Tables 2 and 3: classes and data sets never seen\n\n"
        f"Made by `{content['command']}` on bundle `{content['bundle']}` ({content['cpu']}); written by "
        "`python -m benchmarks.render` from [fewshot.json](fewshot.json). Intervals are 95 % bootstrap intervals over "
        "tasks, leads are paired by task and bold where the interval lies above zero; a number in brackets is that of "
        "the tasks of an arm that ran on fewer than its row has. `--only SET/TARGET/SHOTS` makes a row alone.\n\n"
        "## The smallest leads\n\n" + leads(content)
    )
    for title, show in parts.items():
        tables = "\n".join(_by_arm(target, rows, show) for target, rows in _targets(content).items())
        text += f"\n## {title}\n\n{tables}"
    return text


def _wall(r: Row, arm: str) -> str:
    cell = r["arms"][arm]
    share = f" ({cell['times_fine_tune_100']:.2f})" if "times_fine_tune_100" in cell else ""
    return f"{cell['seconds']:.3f}{share}"
