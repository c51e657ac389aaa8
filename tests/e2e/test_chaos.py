"""The chaos run in small; `python -m tests.e2e.chaos` is the whole of it."""

from pathlib import Path

from tests.e2e.chaos import Plan, run


def test_every_accepted_job_ends_once_while_parts_die(tmp_path: Path) -> None:
    plan = Plan(jobs=30, workers=2, kills=4, restarts=1, away_s=3, seconds=15, seed=1)
    outcome = run(tmp_path, plan, patience_s=120)
    assert outcome.broken == []
    assert outcome.rows["jobs"] == 30
    assert outcome.rows["killed"]["parents"] + outcome.rows["killed"]["children"] == 4
