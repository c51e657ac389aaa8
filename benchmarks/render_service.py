"""Tables of the service: load and batches."""

import statistics
from typing import Any

from benchmarks.render_fewshot import grid

_ARMS = {
    "alone": "one worker, one job at a time",
    "one worker": "one worker, jobs beside each other",
    "workers, alone": "a worker a core, one job at a time each",
    "together": "a worker a core, jobs beside each other (`loomweight up`)",
}


def load(content: dict[str, Any]) -> str:
    """Whole trips and bare POSTs, beside what somebody would build instead; a range over the rounds."""
    names = {"loomweight": "Loomweight", "plain": "FastAPI + Celery + Redis results", "bentoml": "BentoML task"}

    def span(values: list[float]) -> str:
        return f"{statistics.mean(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"

    def row(label: str, rounds: list[dict[str, Any]], kind: str) -> list[str]:
        trips = [r[kind] for r in rounds]
        bare = kind == "trips"
        return [
            label,
            span([t["per_second"] for t in trips]),
            span([t["trip"]["p99_ms"] for t in trips]),
            span([r["flood"]["per_second"] for r in rounds]) if bare else "",
            span([r["half_rate"]["p99_ms"] for r in rounds]) if bare else "",
        ]

    rows = []
    for name, label in names.items():
        if rounds := content["rows"].get(name):
            rows.append(row(label, rounds, "trips"))
            if "held_trips" in rounds[0]:
                rows.append(row(f"{label}, answer held (`Prefer: wait`)", rounds, "held_trips"))
    head = ["", "jobs a second, to their end", "p99, ms", "POSTs accepted a second", "p99 at half that rate, ms"]
    s, looks, streams = content["settings"], content["rows"]["get_job"], content["rows"]["streams"]
    note = (
        f"\n{s['clients']} clients, a worker with nothing to do, {s['cores']} cores for all of it, {s['rounds']} "
        f"rounds in turns. With {s['queued']:,} jobs waiting `GET /jobs/{{id}}` takes "
        f"{looks['queued']['p50_ms']:.1f} ms, with none {looks['queue_empty']['p50_ms']:.1f}; of "
        f"{streams['asked']:,} event streams {streams['opened'] - streams['ended_early']:,} held.\n"
    )
    return grid(head, rows) + note


def batching(content: dict[str, Any]) -> str:
    """Workers that take jobs along, beside workers that do not."""
    r = content["rows"]
    waits, rates = r["client_waits_s"], r["jobs_per_second"]
    rows = [
        [label, f"{rates[arm]['mean']:.1f}", f"{waits[arm]['p50']:.1f}", f"{waits[arm]['p95']:.1f}"]
        for arm, label in _ARMS.items()
    ]
    ratio, s = r["ratio"], content["settings"]
    note = (
        f"\nThe last to the first: {ratio['mean']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f}), "
        f"{s['clients']} clients, {s['images']} images a job; "
        f"weights differ by {r['largest_difference_of_weights']:.0e} at most.\n"
    )
    return grid(["two cores, `cnn-l`", "jobs a second", "a client waits, s", "95 %"], rows) + note
