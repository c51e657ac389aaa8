"""Small result files in the shapes that the benchmarks write."""

from typing import Any

from benchmarks import leads
from benchmarks.similarity_tables import SHORT


def cell(mean: float, half: float = 0.02) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": 5}


def content(table: str, rows: Any, **settings: Any) -> dict[str, Any]:
    return {
        "table": table,
        "command": f"python -m benchmarks.{table}",
        "bundle": "b-1",
        "settings": settings,
        "rows": rows,
    }


def better_start() -> dict[str, Any]:
    points = {m: cell(v) for m, v in {"0 epochs": 0.2, "1 epoch": 0.4, "10 steps": 0.3}.items()}
    rows = [{"set": "digits", "images": 1200, "start": s, "points": points} for s in ("generated", "random")]
    how = {"optimizer": "AdamW", "lr": 0.001, "lr_chosen_on": "mnist", "batch": 128, "seeds": 3, "shots": 20}
    return content("better_start", rows, **how)


def fewshot() -> dict[str, Any]:
    """Two rows of a whole network and one of a head, in which one rival is ahead and one ran on fewer tasks."""
    means = {leads.ALONE: 0.6, leads.ANSWER: 0.61, "trunk probe": 0.5, "fine-tune 100": 0.55, "nearest class mean": 0.7}
    rows = []
    for target, shots in (("cnn-l", 1), ("cnn-l", 5), ("head", 1)):
        own = {n: m for n, m in means.items() if target == "cnn-l" or n not in ("trunk probe", "fine-tune 100")}
        accuracy = {n: [m] * (2 if n == "fine-tune 100" else 3) for n, m in own.items()}
        cells = leads.cells(accuracy, {n: [0.1] * len(v) for n, v in accuracy.items()})
        other = ["nearest class mean"] if target == "cnn-l" else []
        named = {"set": "digits", "target": target, "ways": 10, "shots": shots}
        rows.append({**named, "arms": cells, "leads": leads.of_row(cells, [leads.ALONE, leads.ANSWER], other)})
    return {**content("fewshot", rows), "cpu": "made x 2"}


def seen_tasks() -> dict[str, Any]:
    lists = {"generated_to_nearest_zoo": [1.0, 2.0], "zoo_nearest_neighbour": [1.5, 2.5]}
    summary = {"zoo model": {**cell(0.7), "share_of_zoo_mean": 1.0}}
    medians = {"zoo_nearest_neighbour_median": 2.0, "closed_form_to_nearest_zoo_median": 3.0}
    return content("seen_tasks", [{}], shots=50, summary=summary, distances={"ratio": 0.75, **medians, **lists})


def novelty() -> dict[str, Any]:
    tasks = [{"set": f"{s}, trained on", "lead": 0.1, "scores": {"served: share": 0.2}} for s in ("a", "b")]
    tasks.append({"set": "c", "lead": -0.1, "scores": {"served: share": 0.9}})
    value = {"value": -0.5, "low": -0.8, "high": -0.1, "sets": 3, "n": 3}
    score = {
        "score": "served: share",
        "spearman_with_lead": value,
        "spearman_with_accuracy": value,
        "auc_for_negative_lead": None,
    }
    rows = [{"target": "cnn-l", "scores": [score]}]
    return content("novelty", rows, tasks=1, ways=5, shots=5, tasks_measured={"cnn-l": tasks})


def cost() -> dict[str, Any]:
    row = {
        "what": "fine-tune 100",
        "core_seconds_beforehand": 1234.5,
        "core_seconds_a_request": cell(0.5),
        "times_the_cost_of_generating": 2.0,
        "verdict": "51",
    }
    more = {"stages_core_seconds": {"encoder": 2000.0}, "core_hours_in_all": 0.56, "gpu_minutes": 0}
    return content("cost", [row], target="cnn-l", images=50, classes=10, threads=2, **more)


def latency() -> dict[str, Any]:
    measures = [f"{t}: request to stored weights" for t in ("cnn-l", "head")] + ["cnn-l: gateway's answer to the POST"]
    rows = [{"measure": m, "p50": 12.3, "p95": 45.6, "n": 3} for m in measures]
    return content("latency", rows, resident_mb={"gateway": 90.0, "worker": 400.0})


def similarity_latency() -> dict[str, Any]:
    row = {"measure": "two", "p50": 12.3, "p95": 45.6, "n": 3, "workers_peak_mb": 300.0}
    return content("similarity_latency", [row])


def similarity() -> dict[str, Any]:
    methods = (*SHORT, "logits on probe images")
    ahead = {**cell(0.1), "baseline": "statistics"}
    shared = {"kind": "ours", "ahead_of_best_baseline": ahead}
    ranks = {f"rank{k}": cell(0.9) for k in (1, 5, 10)}
    rows = {
        "a": [{"method": m, "top1": cell(0.5), **shared} for m in methods],
        "b": [{"method": m, "map": cell(0.5), "auc": 0.9, "nmi": 0.8, **ranks, **shared} for m in methods],
        "exactness": [{"models": 3, "least_similarity": 1.0, "largest_error": 1e-7}],
        "calibration": [{"from": 0.1, "mean": 0.15, "same_task": 0.2, "pairs": 4, "weight": 0.1}],
        "curves": [
            {"protocol": "A", "tasks": 3, "models": 2, "top1": cell(0.5)},
            {"protocol": "B", "tasks": 3, "models": 2, "map": cell(0.5)},
        ],
        "matrix": [{"tasks": ["a / b", "c / d"], "scores": [[1.0, 0.2], [0.2, 1.0]]}],
        "controls": [
            {"set": "s", "method": "m", "map": cell(0.1), "chance": 0.1, "above_chance": cell(0.0), "auc": 0.5}
        ],
        "c": [{"network": "n", "accuracy": 0.9, "method": "m", "map": cell(0.5), "auc": 0.9, "chance": 0.1}],
        "d": [
            {
                "method": SHORT[0],
                "superclass": {"value": 0.1, "low": 0.0, "high": 0.2},
                "transfer_gain": {"value": 0.1, "low": 0.0, "high": 0.2},
                "scores": [[1.0, 0.2], [0.2, 1.0]],
            },
            {"method": "measured", "gain": [[0.0, 0.1], [0.1, 0.0]], "tasks": ["a / b", "c / d"]},
        ],
    }
    tasks = {"train": 3, "unseen": 2, "withheld": 1}
    how = {"models": 6, "networks": ["n"], "tasks": tasks, "test_accuracy": cell(0.9), "core_seconds": 60}
    return content("similarity", rows, **how)


def restore_drill() -> dict[str, Any]:
    sizes = {"redis_bytes_a_job": 5_000, "store_bytes_a_job": 90_000, "seconds_from_nothing_to_ready": 7.0}
    row = {"jobs_that_had_ended": 2, "models": 2, "jobs_that_waited": 1, **sizes, "problems": []}
    return content("restore_drill", [row], target="cnn-l")


def images() -> dict[str, Any]:
    size = {"mb": 1530.0, "mb_without_base": 1380.0}
    gpu = {"weights_bytes": 9, "ran_on": "cpu", "libraries_left_to_the_host": ["libcuda.so.1"]}
    return content(
        "images", [{"image": "api", **size, "served_with_a_key_alone": True}, {"image": "worker-gpu", **size, **gpu}]
    )


def load() -> dict[str, Any]:
    trip = {"per_second": 300.0, "trip": {"p99_ms": 200.0}}
    bare = {"flood": {"per_second": 1_000.0}, "half_rate": {"p99_ms": 20.0}, "trips": trip}
    looks = {"queued": {"p50_ms": 1.0}, "queue_empty": {"p50_ms": 0.5}}
    streams = {"asked": 2_000, "opened": 2_000, "ended_early": 1}
    rows = {"loomweight": [bare | {"held_trips": trip}] * 2, "plain": [bare] * 2, "get_job": looks, "streams": streams}
    return content("load", rows, clients=32, cores=2, rounds=2, queued=10_000)


def batching() -> dict[str, Any]:
    arms = ("alone", "one worker", "workers, alone", "together")
    rows = {
        "jobs_per_second": {arm: cell(12.0) for arm in arms},
        "client_waits_s": {arm: {"p50": 1.0, "p95": 2.0} for arm in arms},
        "ratio": cell(1.5),
        "largest_difference_of_weights": 6e-8,
    }
    return content("batching", rows, clients=32, images=50)


def compose() -> dict[str, Any]:
    return content(
        "compose", [{"check": "up", "passed": True, "seconds": 14.0, "targets": {"worker": "up"}, "bad": []}]
    )


def digits() -> dict[str, Any]:
    return content("digits", [{"arm": "trunk probe", "shots": 1, **cell(0.6), "seconds": cell(0.1)}])


ALL = {
    f.__name__: f
    for f in (
        better_start,
        fewshot,
        seen_tasks,
        novelty,
        cost,
        latency,
        similarity_latency,
        similarity,
        restore_drill,
        images,
        compose,
        load,
        batching,
        digits,
    )
}
