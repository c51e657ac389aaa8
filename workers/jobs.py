"""The state machine of jobs, kept in Redis by us: a result backend answers "pending" for ids that never existed.

The broker is the same Redis, so a job's message goes into its queue in the very step that records the job as queued:
there is no moment in which one is there without the other (docs/decisions/0012).

    queued ──claim──► running ──finish──► succeeded      a terminal status never changes, and is forgotten after `ttl`
      │  ▲               ├──fail────────► failed
      │  └───requeue─────┤                               requeue: the lease ran out; after `max_attempts` claims: failed
      ├──request_cancel──┴──────────────► canceled
      └──expire─────────────────────────► expired        nobody began it in time

A claim gives a lease and a fencing token. Whoever lets the lease run out may find the job with somebody else, and every
call with the old token raises `StaleAttempt`. Errors:

    JobsError
    ├── UnknownJob      never existed, or forgotten
    ├── StaleAttempt    the token is not that of the running attempt (any more)
    ├── QueueFull       the queue takes no more jobs now
    ├── TooManyActive   the owner has as many jobs that wait or run as they may
    ├── KeyReused       an idempotency key came with another payload
    └── KeyInFlight     the first request with this idempotency key is not answered yet

Keys, all below the prefix:

    job:{id}               hash     the record: seq, status, worker, …; request, inputs, progress, result, error (JSON);
                                    message, sent (how often), until it ends
    upload:{id}            string   a small upload, as it came, until the job ends
    {queue}                list     messages, as Celery takes them; the only keys without the prefix
    events:{id}            stream   every transition and progress step: event, data (JSON); capped
    jobs, jobs:{status}    zset     ids by sequence number: the listing
    owned:{owner}          zset     ids by sequence number: what an owner's listing shows
    active:{owner}         set      ids that wait or run
    callbacks              zset     ids of ended jobs whose webhook is to be sent (`service/webhooks`), by when
    queued:{queue}         zset     ids by sequence number: the queue's order as far as we know it
    running:{queue}        zset     ids by the time their lease runs out
    due                    zset     queued ids by the time their message is to be sent again
    ended                  zset     ids by the time they are forgotten
    idempotency:{sha256}   hash     fingerprint of the payload, job once created
    dead                   list     jobs that failed through no fault of the request's, newest first; capped
    unfiled                zset     ended ids by the time they ended, until the store has their record
    forgotten:{id}         string   owner of a job that ended, a week longer than its record by default
    seq                    counter
    endings                channel  ids of jobs as they end
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast

from redis import Redis

from workers import job_scripts as lua
from workers.client import message
from workers.messages import QUEUES, JobError, JobRecord, JobResult, JobStatus, Progress

SEND_AGAIN_S = 60
"""A queued job's message is repeated this often, in case a broker lost it; a second delivery exits quietly."""
RESERVED_S = 30
"""How long an idempotency key may stay without an answer, should whoever reserved it die or lose Redis."""

_JSON_FIELDS = ("request", "inputs", "progress", "result", "error")
_TIME_FIELDS = ("created_at", "started_at", "finished_at")
_PLAIN_FIELDS = ("kind", "queue", "status", "attempt", "owner")


class JobsError(Exception):
    """Base of what the state machine refuses."""


class UnknownJob(JobsError):
    """There is no such job: it never existed, or ended long ago."""


class StaleAttempt(JobsError):
    """The job is no longer this attempt's: ended, or claimed by another worker."""


class QueueFull(JobsError):
    """The queue is at its limit."""


class TooManyActive(JobsError):
    """The owner has as many jobs that wait or run as they may."""


class KeyReused(JobsError):
    """This idempotency key belongs to another payload."""


class KeyInFlight(JobsError):
    """The first request with this idempotency key is still being answered."""


class Event(NamedTuple):
    """One entry of a job's event stream; `data` is JSON."""

    id: str
    name: str
    data: str


class Idempotency(NamedTuple):
    """What a client calls its request, and a hash of everything that the answer depends on."""

    key: str
    fingerprint: str


class Taken(NamedTuple):
    """A job that was claimed without waiting for its message: the fencing token, and what the message's headers say."""

    job_id: str
    token: int
    headers: dict[str, Any]


class JobPage(NamedTuple):
    """Some jobs, newest first, and where the next page starts."""

    jobs: list[JobRecord]
    next_cursor: str | None


class QueueCounts(NamedTuple):
    """How full a queue is."""

    queued: int
    running: int


class Jobs:
    """Jobs in `redis` (made with `decode_responses=True`). Every method may raise `redis.RedisError`."""

    def __init__(
        self,
        redis: Redis,
        *,
        prefix: str = "loomweight:",
        ttl: int = 86_400,
        max_attempts: int = 3,
        max_queued: int = 1_000,
    ) -> None:
        self._redis = redis
        self._prefix = prefix
        self._max_queued = max_queued
        dead = JobError.of(
            "worker-lost",
            "The job was given up",
            503,
            f"{max_attempts} workers in turn stopped answering while they ran this job. Nothing was stored; "
            "send the request again, and if it fails again, report it with the job's id.",
        )
        self._common = (ttl, max_attempts, dead.model_dump_json())
        self._scripts = {
            name: redis.register_script(source)
            for name, source in vars(lua).items()
            if name.isupper() and not name.startswith("_")
        }

    # Creating ---------------------------------------------------------------------------------------------------------

    def reserve(self, request: Idempotency) -> str | None:
        """Reserve an idempotency key for a payload; returns the id of the job that it already led to, if any.

        Raises `KeyReused` and `KeyInFlight`. A reservation ends with `create` or `release`.
        """
        answer = str(self._run("RESERVE", "", self._idempotency(request.key), request.fingerprint, RESERVED_S))
        if answer == "reused":
            raise KeyReused(request.key)
        if answer == "in flight":
            raise KeyInFlight(request.key)
        return answer.removeprefix("job:") if answer.startswith("job:") else None

    def release(self, key: str) -> None:
        """Give up a reservation whose request failed, so that it can be tried again; one that led to a job stays."""
        self._run("RELEASE", "", self._idempotency(key))

    def create(
        self,
        record: JobRecord,
        upload: bytes = b"",
        *,
        idempotency: Idempotency | None = None,
        most_active: int | None = None,
    ) -> JobRecord:
        """Enter a new job as queued and send its message, once however often it is tried; returns the record.

        `upload` is kept until the job ends. Where the idempotency key led to another job meanwhile, its reservation
        having run out, that one is returned. Raises `QueueFull`, `KeyReused`, and `TooManyActive` if `most_active`
        jobs of the record's owner wait or run.
        """
        fields = ["kind", record.kind, "request", record.request.model_dump_json(), "message", message(record)]
        if record.inputs:
            fields += ["inputs", record.inputs.model_dump_json()]
        key, fingerprint = (self._idempotency(idempotency.key), idempotency.fingerprint) if idempotency else ("", "")
        given = (self._max_queued, most_active or 0, key, record.owner or "", upload, fingerprint)
        answer = self._run("CREATE", record.id, record.queue, *given, *fields)
        if answer == "full":
            raise QueueFull(record.queue)
        if answer == "active":
            raise TooManyActive(record.owner)
        if answer == "reused":
            raise KeyReused(record.id)
        if isinstance(answer, str):
            return self.get(answer.removeprefix("job:"))
        created, rank = answer
        created_at = datetime.fromtimestamp(float(created), UTC)
        return record.model_copy(update={"created_at": created_at, "queue_position": rank + 1})

    def send(self, job_id: str) -> None:
        """Send the message of a job that waits once more; a second delivery exits quietly."""
        self._run("SEND", job_id)

    # Reading ----------------------------------------------------------------------------------------------------------

    def get(self, job_id: str) -> JobRecord:
        """Return the record with its place in the queue. Raises `UnknownJob`."""
        rank, *flat = self._scripts["READ"](args=[self._prefix, job_id])
        if not flat:
            raise UnknownJob(job_id)
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        return _record(job_id, fields, rank)

    def upload(self, job_id: str) -> bytes | None:
        """Return what was uploaded with the job, as long as it waits, runs or is a dead letter."""
        command = ("GET", self._key("upload", job_id))
        data = self._redis.execute_command(*command, NEVER_DECODE=True)  # type: ignore[no-untyped-call]
        return cast("bytes | None", data)  # everything else here is text

    def page(
        self,
        status: JobStatus | None = None,
        cursor: str | None = None,
        limit: int = 50,
        *,
        owner: str | None = None,
    ) -> JobPage:
        """Return a page of jobs, newest first: all, or one owner's. Raises ValueError for what no `next_cursor` was."""
        if owner is not None:
            return self._page_of(owner, status, cursor, limit)
        index = self._key("jobs", status) if status else self._prefix + "jobs"
        newest = f"({int(cursor)}" if cursor else "+inf"
        found = cast(
            "Sequence[tuple[str, float]]",
            self._redis.zrevrangebyscore(index, newest, "-inf", start=0, num=limit + 1, withscores=True),
        )
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id, _ in found[:limit]:
                pipe.hgetall(self._key("job", job_id))
            records = pipe.execute()
        jobs = [_record(job_id, fields) for (job_id, _), fields in zip(found[:limit], records, strict=True) if fields]
        return JobPage(self._placed(jobs), str(int(found[limit - 1][1])) if len(found) > limit else None)

    def _page_of(self, owner: str, status: JobStatus | None, cursor: str | None, limit: int) -> JobPage:
        index, newest = self._key("owned", owner), f"({int(cursor)}" if cursor else "+inf"
        found: list[tuple[float, JobRecord]] = []
        while len(found) <= limit:  # one more than asked for tells whether there is another page
            batch = cast(
                "Sequence[tuple[str, float]]",
                self._redis.zrevrangebyscore(index, newest, "-inf", start=0, num=200, withscores=True),
            )
            if not batch:
                break
            with self._redis.pipeline(transaction=False) as pipe:
                for job_id, _ in batch:
                    pipe.hgetall(self._key("job", job_id))
                records = pipe.execute()
            for (job_id, seq), fields in zip(batch, records, strict=True):
                if fields and status in (None, fields["status"]):
                    found.append((seq, _record(job_id, fields)))
            newest = f"({int(batch[-1][1])}"
        page = found[:limit]
        return JobPage(self._placed([job for _, job in page]), str(int(page[-1][0])) if len(found) > limit else None)

    def _placed(self, records: list[JobRecord]) -> list[JobRecord]:
        """Fill in the places of those that wait."""
        waiting = [record for record in records if record.status == "queued"]
        with self._redis.pipeline(transaction=False) as pipe:
            for record in waiting:
                pipe.zrank(self._key("queued", record.queue), record.id)
            ranks = pipe.execute() if waiting else []
        places = {record.id: rank + 1 for record, rank in zip(waiting, ranks, strict=True) if rank is not None}
        return [record.model_copy(update={"queue_position": places.get(record.id)}) for record in records]

    def owner_of_forgotten(self, job_id: str) -> str | None:
        """Return the owner ("" for nobody) of a job that ended and may be forgotten; None if there was none."""
        return cast("str | None", self._redis.get(self._key("forgotten", job_id)))

    def counts(self) -> dict[str, QueueCounts]:
        """Return how many jobs wait and run, by queue."""
        with self._redis.pipeline(transaction=False) as pipe:
            for queue in QUEUES:
                pipe.zcard(self._key("queued", queue))
                pipe.zcard(self._key("running", queue))
            sizes = iter(pipe.execute())
        return {queue: QueueCounts(next(sizes), next(sizes)) for queue in QUEUES}

    def queued(self, queue: str) -> int:
        """Return how many jobs wait in a queue."""
        return int(self._redis.zcard(self._key("queued", queue)))

    def waiting_s(self) -> dict[str, float]:
        """Return how long the first job of each queue has waited since it was created; 0 for an empty queue."""
        with self._redis.pipeline(transaction=False) as pipe:
            for queue in QUEUES:
                pipe.zrange(self._key("queued", queue), 0, 0)
            firsts = pipe.execute()
            for ids in firsts:
                pipe.hget(self._key("job", ids[0] if ids else ""), "created_at")
            created = pipe.execute()
        now = self._now()
        return {queue: max(0.0, now - float(at)) if at else 0.0 for queue, at in zip(QUEUES, created, strict=True)}

    def events(self, job_id: str, after: str = "0-0", limit: int = 1_000) -> list[Event]:
        """Return the events that follow the one with the id `after`."""
        entries = self._redis.xrange(self.events_key(job_id), min=f"({after}", count=limit)
        return parse_events(cast("Sequence[tuple[str, Mapping[str, str]]]", entries))

    def events_key(self, job_id: str) -> str:
        """Return the name of the job's event stream, for readers that block on it."""
        return self._key("events", job_id)

    @property
    def endings(self) -> str:
        """The channel on which ids of jobs are published as they end."""
        return self._prefix + "endings"

    def dead_letters(self, limit: int = 100) -> list[dict[str, Any]]:
        """Return the jobs given up last: id, attempts, at (Unix time), reason and detail of the problem."""
        entries = cast("list[str]", self._redis.lrange(self._prefix + "dead", 0, limit - 1))
        return [json.loads(entry) for entry in entries]

    def unfiled(self, ended_s: float = 0, limit: int = 100) -> list[str]:
        """Return jobs that ended longer ago than this, and whose record is not in the store yet."""
        return self._below(self._prefix + "unfiled", self._now() - ended_s, limit)

    # Working ----------------------------------------------------------------------------------------------------------

    def claim(self, job_id: str, worker_id: str, lease_s: float) -> int | None:
        """Take a queued job, or one whose worker let its lease run out; returns the fencing token.

        None means that there is nothing to do: unknown, ended, or with a worker that is alive.
        """
        return int(self._run("CLAIM", job_id, worker_id, lease_s)) or None

    def take(self, queue: str, worker_id: str, lease_s: float) -> Taken | None:
        """Claim the first job of a queue, its message with it; None if none waits.

        A job that lost a worker before is left to the worker that its message reaches.
        """
        answer = self._run("TAKE", "", queue, worker_id, lease_s)
        return Taken(answer[0], answer[1], json.loads(answer[2])["headers"]) if answer else None

    def heartbeat(self, job_id: str, token: int) -> None:
        """Renew the lease. Raises `StaleAttempt`, `UnknownJob`, as all below do that take a token."""
        self._checked("HEARTBEAT", job_id, token)

    def progress(self, job_id: str, token: int, stage: str, step: int, steps: int) -> None:
        """Say how far the job is."""
        self._checked("PROGRESS", job_id, token, Progress(stage=stage, step=step, steps=steps).model_dump_json())

    def finish(self, job_id: str, token: int, result: JobResult) -> None:
        """End the job well, a cancel that came too late notwithstanding."""
        self._checked("CLOSE", job_id, token, "succeeded", "result", result.model_dump_json())

    def fail(self, job_id: str, token: int, error: JobError) -> None:
        """End the job with a problem; one that is our fault makes it a dead letter."""
        dead = "1" if error.status >= 500 else ""
        self._checked("CLOSE", job_id, token, "failed", "error", error.model_dump_json(), dead)

    def finish_canceled(self, job_id: str, token: int) -> None:
        """End the job as canceled, after `is_cancel_requested` turned true."""
        self._checked("CLOSE", job_id, token, "canceled", "")

    def filed(self, job_id: str) -> None:
        """Note that the store has the record of the ended job, and of a dead letter the upload."""
        with self._redis.pipeline() as pipe:
            pipe.zrem(self._prefix + "unfiled", job_id)
            pipe.delete(self._key("upload", job_id))
            pipe.execute()

    def is_cancel_requested(self, job_id: str) -> bool:
        """Whether the running job should stop."""
        return job_id in self.cancel_requests([job_id])

    def cancel_requests(self, job_ids: Sequence[str]) -> set[str]:
        """Which of these running jobs should stop."""
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hget(self._key("job", job_id), "cancel")
            flags = pipe.execute() if job_ids else []
        return {job_id for job_id, flag in zip(job_ids, flags, strict=True) if flag == "1"}

    # Steering ---------------------------------------------------------------------------------------------------------

    def request_cancel(self, job_id: str) -> JobStatus:
        """Cancel a job that no worker has, or ask its worker to stop; returns the status after that."""
        return self._status("CANCEL", job_id)

    def expire(self, job_id: str, error: JobError) -> JobStatus:
        """End a job that still waits as expired; returns the status after that."""
        return self._status("EXPIRE", job_id, error.model_dump_json())

    def requeue(self, job_id: str) -> JobStatus:
        """Put a job whose lease ran out back into its queue, or end it; returns the status after that.

        Canceled if that was requested, failed and a dead letter after too many attempts; otherwise its message is sent.
        """
        return self._status("REQUEUE", job_id)

    def drop_dead_letter(self, job_id: str) -> bool:
        """Take a job off the list of dead letters; says whether it was there."""
        key = self._prefix + "dead"
        entries = [e for e in cast("list[str]", self._redis.lrange(key, 0, -1)) if json.loads(e)["id"] == job_id]
        return sum(int(self._redis.lrem(key, 1, entry)) for entry in entries) > 0

    def orphans(self, limit: int = 100) -> list[str]:
        """Return running jobs whose lease ran out."""
        now = self._now()
        return [job_id for queue in QUEUES for job_id in self._below(self._key("running", queue), now, limit)]

    def due(self, limit: int = 100) -> list[str]:
        """Return queued jobs whose message was sent so long ago that it may be lost."""
        return self._below(self._prefix + "due", self._now(), limit)

    def overdue(self, waited_s: float, limit: int = 100) -> list[str]:
        """Return queued jobs, among the first of each queue, that were created longer ago than this."""
        oldest = self._now() - waited_s
        overdue = []
        for queue in QUEUES:
            ids = cast("list[str]", self._redis.zrange(self._key("queued", queue), 0, limit - 1))
            with self._redis.pipeline(transaction=False) as pipe:
                for job_id in ids:
                    pipe.hget(self._key("job", job_id), "created_at")
                created = pipe.execute() if ids else []
            overdue += [job_id for job_id, at in zip(ids, created, strict=True) if at and float(at) < oldest]
        return overdue

    # ------------------------------------------------------------------------------------------------------------------

    def _key(self, kind: str, name: str) -> str:
        return f"{self._prefix}{kind}:{name}"

    def _idempotency(self, key: str) -> str:
        return self._key("idempotency", hashlib.sha256(key.encode()).hexdigest())

    def _run(self, script: str, job_id: str, *args: str | bytes | float) -> Any:
        return self._scripts[script](args=[self._prefix, job_id, *self._common, SEND_AGAIN_S, *args])

    def _checked(self, script: str, job_id: str, *args: str | float) -> None:
        answer = self._run(script, job_id, *args)
        if answer == "unknown":
            raise UnknownJob(job_id)
        if answer == "stale":
            raise StaleAttempt(job_id)

    def _status(self, script: str, job_id: str, *args: str | float) -> JobStatus:
        status = self._run(script, job_id, *args)
        if not status:
            raise UnknownJob(job_id)
        return cast(JobStatus, status)

    def _now(self) -> float:
        seconds, micros = self._redis.time()
        return seconds + micros / 1e6

    def _below(self, key: str, score: float, limit: int) -> list[str]:
        return cast("list[str]", self._redis.zrangebyscore(key, "-inf", score, start=0, num=limit))


def parse_events(entries: Iterable[tuple[str, Mapping[str, str]]]) -> list[Event]:
    """Turn the entries of an event stream into events."""
    return [Event(entry_id, fields["event"], fields["data"]) for entry_id, fields in entries]


def _record(job_id: str, fields: Mapping[str, str], rank: int = -1) -> JobRecord:
    values: dict[str, Any] = {name: fields[name] for name in _PLAIN_FIELDS if fields.get(name)}
    values |= {name: json.loads(fields[name]) for name in _JSON_FIELDS if name in fields}
    values |= {name: datetime.fromtimestamp(float(fields[name]), UTC) for name in _TIME_FIELDS if name in fields}
    values["queue_position"] = rank + 1 or None
    return JobRecord(id=job_id, cancel_requested=fields.get("cancel") == "1", **values)
