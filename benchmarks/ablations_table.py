"""Table 6 as Markdown, from docs/results/ablations.json."""

from typing import Any

from benchmarks.render_fewshot import grid, percent

Row = dict[str, Any]

CHOOSING = "choosing"
"""What rows call the sets together that settings may be chosen on."""


def signed(cell: dict[str, Any]) -> str:
    """A difference in points with half its interval's width; bold where the interval excludes zero."""
    text = f"{100 * cell['mean']:+.1f} ± {50 * (cell['high'] - cell['low']):.1f}"
    return f"**{text}**" if cell["low"] > 0 or cell["high"] < 0 else text


def _columns(settings: dict[str, Any]) -> list[tuple[str, int]]:
    reports = [s["set"] for s in settings["sets"] if s["role"] == "reports"]
    return [(name, n) for name in (CHOOSING, *reports) for n in settings["shots"]]


def _is_reference(r: Row) -> bool:
    return bool(r["way"] == r["compared_with"] and (r["part"] == "swept" or r["name"] == "full"))


def _line(r: Row, columns: list[tuple[str, int]]) -> list[str]:
    """Accuracies of what others are compared with, differences of the others; nothing where a row has no answer."""
    by_place = {(c["set"], c["shots"]): c for c in [*r["pooled"], *r["sets"]]}
    known = [by_place.get(place) for place in columns]
    if _is_reference(r):
        return [percent(c["accuracy"]) if c else "–" for c in known]
    return [signed(c["ahead"]) if c and "ahead" in c else "–" for c in known]


def _head(columns: list[tuple[str, int]]) -> list[str]:
    return [f"{'validation classes' if name == CHOOSING else name}, {n}" for name, n in columns]


def _label(r: Row) -> str:
    if r["way"] == "closed form":
        return "the closed form alone"
    extra = f" (decoded models keep {100 * r['decoded_zoo_keeps']:.0f} %)" if "decoded_zoo_keeps" in r else ""
    return str(r["what"]) + extra


def _described(settings: dict[str, Any]) -> str:
    choosing = "; ".join(f"{x['set']}, {x['ways']}-way" for x in settings["sets"] if x["role"] == "chooses")
    return f"{settings['tasks']} tasks a set; validation classes: {choosing}."


def table(content: dict[str, Any]) -> str:
    """Two tables: parts left out of training, and choices at request time."""
    parts = []
    if trained := [r for r in content["rows"] if r["part"] == "trained"]:
        s = content["settings"]["trained"]
        lines = [[_label(r), *_line(r, _columns(s))] for r in trained]
        title = f"**Left out of training** ({s['target']}, {s['steps']} of the recipe's {s['full_recipe_steps']} steps)"
        parts.append(f"{title}\n\n{grid(['trained with', *_head(_columns(s))], lines)}\n{_described(s)}\n")
    if swept := [r for r in content["rows"] if r["part"] == "swept"]:
        s = content["settings"]["swept"]
        lines = [[r["what"], r["way"], *_line(r, _columns(s))] for r in swept]
        title = f"**Chosen at request time** ({s['target']}, the bundle)"
        parts.append(f"{title}\n\n{grid(['swept', 'value', *_head(_columns(s))], lines)}\n{_described(s)}\n")
    note = (
        "\nAccuracy in percent of the full recipe and of the product's own values; of all others the difference from "
        "it in points, paired by task, bold where the 95 % interval excludes zero. The number in a column's name is "
        "images a class. Intervals are over images, not over classes or training seeds. Only validation classes may "
        "choose; the other sets report.\n"
    )
    return "\n".join(parts) + note
