"""Writes the tables of README, docs/deployment.md and docs/results/*.md from docs/results/*.json: none by hand.

python -m benchmarks.render            rewrites them
python -m benchmarks.render --check    fails where they differ from the result files
"""

import argparse
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import ablations_table, literature_tables, render_fewshot, render_service, similarity_tables
from benchmarks.render_fewshot import grid, percent

MARKED = (Path("README.md"), Path("docs/deployment.md"))
RESULTS = Path("docs/results")
MARK = re.compile(r"(<!-- results:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _source(content: dict[str, Any], name: str, beside: Path) -> str:
    file = f"docs/results/{name}.json"
    link = os.path.relpath(file, beside)
    own = [r["command"] for r in content["rows"] if isinstance(r, dict) and "command" in r]
    commands = "`, then `".join(dict.fromkeys(own or [content["command"]]))
    bundle = f", bundle `{content['bundle']}`" if content["bundle"] else ""
    return f"\n<sub>`{commands}` → [{file}]({link}){bundle}</sub>\n"


def digits(content: dict[str, Any]) -> str:
    """Accuracy by arm and images a class."""
    shots = sorted({r["shots"] for r in content["rows"]})
    arms = list(dict.fromkeys(r["arm"] for r in content["rows"]))
    cell = {(r["arm"], r["shots"]): r for r in content["rows"]}
    rows = [[a, *(percent(cell[a, n]) for n in shots), f"{cell[a, shots[-1]]['seconds']['mean']:.2f}"] for a in arms]
    return grid(["accuracy, %", *(f"{n} a class" for n in shots), f"seconds at {shots[-1]}"], rows)


def seen_tasks(content: dict[str, Any]) -> str:
    """Accuracy on the zoo's own tasks, and distances."""
    settings = content["settings"]
    rows = [[n, percent(c), f"{100 * c['share_of_zoo_mean']:.1f}"] for n, c in settings["summary"].items()]
    d = settings["distances"]
    closed = d["closed_form_to_nearest_zoo_median"] / d["zoo_nearest_neighbour_median"]
    note = (
        f"\n{len(content['rows'])} tasks, {settings['shots']} images a class. Median distance from a generated network "
        f"to its nearest zoo model: {d['ratio']:.2f} times the zoo's own median nearest-neighbour distance "
        f"(the closed form, which copies nothing: {closed:.2f}).\n"
    )
    return grid(["network", "test accuracy, %", "share of the zoo's mean, %"], rows) + note


def latency(content: dict[str, Any]) -> str:
    """Milliseconds by measure."""
    rows = [[r["measure"], f"{r['p50']:.0f}", f"{r['p95']:.0f}"] for r in content["rows"]]
    memory = content["settings"]["resident_mb"]
    note = "\nResident memory: " + ", ".join(f"{k} {v:.0f} MB" for k, v in memory.items()) + ".\n"
    return grid(["milliseconds", "p50", "p95"], rows) + note


def sizing(content: dict[str, Any]) -> str:
    """What one process does and holds."""
    by = {r["measure"]: r for r in content["rows"]}
    memory = content["settings"]["resident_mb"]

    def worker(target: str, holds: str) -> list[str]:
        r = by[f"{target}: request to stored weights"]
        each = f"{1000 / r['p50']:.1f} jobs a second ({r['p50']:.0f} ms each, {r['p95']:.0f} ms at the 95th percentile)"
        return [f"worker, `{target}`", each, holds]

    post = by["cnn-l: gateway's answer to the POST"]
    answers = f"answers a `POST /generate` in {post['p50']:.0f} ms ({post['p95']:.0f} ms)"
    uploads = f"{memory['gateway']:.0f} MB, and up to `LOOMWEIGHT_MAX_INFLIGHT_BYTES` of uploads"
    rows = [worker("cnn-l", f"{memory['worker']:.0f} MB"), worker("head", "the same"), ["gateway", answers, uploads]]
    return grid(["one …", "does", "holds"], rows)


def restore_drill(content: dict[str, Any]) -> str:
    """What a job takes, and how long it was until everything was back."""
    [r] = content["rows"]
    rows = [
        ["of Redis, for `LOOMWEIGHT_JOB_TTL_S` (a day)", f"{r['redis_bytes_a_job'] / 1e3:.1f} kB"],
        ["of the store, until its model is deleted", f"{r['store_bytes_a_job'] / 1e3:.0f} kB"],
    ]
    found = f"{len(r['problems'])} problems" if r["problems"] else "nothing was missing"
    note = (
        f"\nBacked up, lost and restored: {r['jobs_that_had_ended']} jobs that had ended, {r['models']} models and "
        f"{r['jobs_that_waited']} job that waited were served again after {r['seconds_from_nothing_to_ready']:.0f} s; "
        f"{found}.\n"
    )
    return grid([f"a job (`{content['settings']['target']}`) takes", ""], rows) + note


def images(content: dict[str, Any]) -> str:
    """Their sizes, and what each was seen to do."""

    def seen(r: dict[str, Any]) -> str:
        does = ["took jobs from who had a key, and refused who had none"] if "served_with_a_key_alone" in r else []
        does += [f"made {r['weights_bytes']:,} bytes of weights, on the {r['ran_on'].upper()}"] if "ran_on" in r else []
        does += [f"trained the recipe tiny (`{r['trained']}`)"] if "trained" in r else []
        left = r.get("libraries_left_to_the_host", ())
        does += [f"all its CUDA libraries are found but {', '.join(f'`{name}`' for name in left)}"] if left else []
        return "; ".join(does) or "–"

    rows = [[r["image"], f"{r['mb']:,.0f}", f"{r['mb_without_base']:,.0f}", seen(r)] for r in content["rows"]]
    return grid(["image", "MB", "without the base", "seen"], rows)


def compose(content: dict[str, Any]) -> str:
    """What the whole stack was seen to do."""

    def text(value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{name} {text(one)}" for name, one in value.items())
        if isinstance(value, bool):
            return "yes" if value else "no"
        return (", ".join(value) or "none") if isinstance(value, list) else f"{value}"

    rows = []
    for r in content["rows"]:
        facts = [f"{n.replace('_', ' ')}: {text(v)}" for n, v in r.items() if n not in ("check", "passed")]
        rows.append([r["check"], text(r["passed"]), "; ".join(facts)])
    return grid(["check", "passed", "seen"], rows)


def similarity_latency(content: dict[str, Any]) -> str:
    """Milliseconds of a comparison, and the worker's memory."""
    rows = [
        [r["measure"], f"{r['p50']:.0f}", f"{r['p95']:.0f}", f"{r['workers_peak_mb']:.0f}"] for r in content["rows"]
    ]
    return grid(["milliseconds from request to answer", "p50", "p95", "worker's peak, MB"], rows)


def better_start(content: dict[str, Any]) -> str:
    """One table a set: starting points in rows, what was read in columns."""
    settings, parts = content["settings"], []
    for name in dict.fromkeys(r["set"] for r in content["rows"]):
        own = [r for r in content["rows"] if r["set"] == name]
        marks = list(own[0]["points"])
        rows = [[r["start"], *(percent(r["points"][m]) for m in marks)] for r in own]
        parts.append(f"**{name}**, {own[0]['images']:,} training images\n\n" + grid(["start", *marks], rows))
    where = f" (chosen on {settings['lr_chosen_on']})" if settings["lr_chosen_on"] else ""
    note = (
        f"\nTest accuracy, %. {settings['optimizer']}, learning rate {settings['lr']:g}{where}, batches of "
        f"{settings['batch']}, {settings['seeds']} seeds; `generated` read {settings['shots']} images a class.\n"
    )
    return "\n".join(parts) + note


def cost(content: dict[str, Any]) -> str:
    """Core-seconds beforehand and a request, and when generating has paid for itself."""
    s = content["settings"]
    rows = [
        [
            r["what"],
            f"{r['core_seconds_beforehand']:,.0f}",
            f"{r['core_seconds_a_request']['mean']:.3g}",
            f"{r['times_the_cost_of_generating']:.2f}",
            r["verdict"],
        ]
        for r in content["rows"]
    ]
    head = [
        "core-seconds",
        "beforehand",
        "a request",
        "times generating",
        "generating is cheaper from request",
    ]
    stages = ", ".join(f"{name} {seconds:,.0f}" for name, seconds in s["stages_core_seconds"].items())
    note = (
        f"\n`{s['target']}`, {s['images']} images of {s['classes']} classes, threads: {s['threads']}. Beforehand, by "
        f"stage: {stages}; {s['core_hours_in_all']:.2f} core-hours and {s['gpu_minutes']} GPU-minutes in all.\n"
    )
    return grid(head, rows) + note


def novelty(content: dict[str, Any]) -> str:
    """One table a target: how well each score goes with what generating is worth."""

    def cell(c: dict[str, Any] | None) -> str:
        return f"{c['value']:.2f} ({c['low']:.2f} to {c['high']:.2f})" if c else "undefined"

    columns = ("spearman_with_lead", "spearman_with_accuracy", "auc_for_negative_lead")
    head = ["novelty score", "Spearman with the lead", "Spearman with accuracy", "AUC for a negative lead"]
    parts = []
    for r in content["rows"]:
        rows = [[s["score"], *(cell(s[c]) for c in columns)] for s in r["scores"]]
        parts.append(f"**{r['target']}**\n\n" + grid(head, rows))
    s = content["settings"]
    sets = len({t["set"] for tasks in s["tasks_measured"].values() for t in tasks})
    note = f"\n{sets} sets, {s['tasks']} tasks each, {s['ways']} classes, {s['shots']} images a class.\n"
    return "\n".join(parts) + note


Table = Callable[[dict[str, Any]], str]
TABLES: dict[str, tuple[str, Table]] = {
    "digits": ("digits", digits),
    "leads": ("fewshot", render_fewshot.leads),
    "fewshot": ("fewshot", render_fewshot.accuracies),
    "seen_tasks": ("seen_tasks", seen_tasks),
    "latency": ("latency", latency),
    "sizing": ("latency", sizing),
    "load": ("load", render_service.load),
    "batching": ("batching", render_service.batching),
    "restore_drill": ("restore_drill", restore_drill),
    "images": ("images", images),
    "compose": ("compose", compose),
    "similarity_latency": ("similarity_latency", similarity_latency),
    "better_start": ("better_start", better_start),
    "cost": ("cost", cost),
    "novelty": ("novelty", novelty),
    "similarity": ("similarity", similarity_tables.short),
}
"""The result file that a marked table is made from, and how."""


def _page(title: str, name: str, table: Table) -> Table:
    return lambda content: f"# {title}\n\n{table(content)}{_source(content, name, RESULTS)}"


DOCUMENTS: dict[str, Table] = {
    "fewshot": render_fewshot.document,
    "table4": _page("The literature's generation table (recipe table4)", "table4", literature_tables.table4),
    "literature_fewshot": _page(
        "The literature's few-shot heads (recipe fewshot)", "literature_fewshot", literature_tables.fewshot
    ),
    "ablations": _page("What each part earns (table 6)", "ablations", ablations_table.table),
    "similarity": _page("Which tasks were these networks trained for?", "similarity", similarity_tables.table),
    "novelty": _page("Does the novelty score say when generating stops helping?", "novelty", novelty),
}
"""What stands beside its result file in full."""


def _content(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return content


def render(text: str, beside: Path = Path()) -> str:
    """A text of this folder with every marked table made anew."""

    def fill(match: re.Match[str]) -> str:
        name, table = TABLES[match[2]]
        content = _content(name)
        return match[1] + table(content) + _source(content, name, beside) + match[3]

    return MARK.sub(fill, text)


def written() -> dict[Path, str]:
    """Every file that is written, as it should be."""
    found = {path: render(path.read_text(), path.parent) for path in MARKED}
    for name, document in DOCUMENTS.items():
        if (RESULTS / f"{name}.json").exists():
            found[RESULTS / f"{name}.md"] = document(_content(name))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    stale = [path for path, text in written().items() if not path.exists() or path.read_text() != text]
    if options.check:
        for path in stale:
            print(f"{path} differs from docs/results: run python -m benchmarks.render")
        return int(bool(stale))
    for path, text in written().items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
