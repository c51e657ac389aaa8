"""Sends what the outbox holds, from the gateway's event loop: a webhook waits for a network, and workers are dear.

Any gateway sends any webhook. At least once: a gateway that dies in between lets another one send it again, with the
same `webhook-id`.
"""

import asyncio
import json
import logging
import random
import ssl
import time
from contextlib import suppress
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Literal

import httpx
from anyio import CancelScope, create_task_group, get_cancelled_exc_class, move_on_after, to_thread
from redis import RedisError
from starlette.concurrency import run_in_threadpool

from model_store.store import StoreError
from service.access.keys import BOOTSTRAP, LOCAL
from service.jobs.schemas import Job
from service.state import Services
from service.webhooks.addresses import NotAllowed, Resolve, system_resolver
from service.webhooks.outbox import Delivery
from service.webhooks.signing import secret_of, sign
from workers.jobs import UnknownJob
from workers.messages import JobRecord

MOST_BYTES = 20_000
TIMEOUT_S = 15.0
AT_ONCE = 32
_HAND_BACK_S = 2.0
Outcome = Literal["delivered", "failed", "refused", "gone", "given-up", "dropped"]
_log = logging.getLogger(__name__)


class Sender:
    """Delivers webhooks until it is canceled."""

    def __init__(
        self, services: Services, resolve: Resolve = system_resolver, tls: ssl.SSLContext | None = None
    ) -> None:
        self._services = services
        self._resolve = resolve
        self._tls = tls or ssl.create_default_context()
        self._sending = 0

    async def run(self) -> None:
        """Send what is due, again and again.

        Canceled by its task group, it ends when nothing of it is at work, which may take as long as a client of Redis
        is patient: a thread that was left alone could still take deliveries, and each would wait for its lease to end.
        """
        settings = self._services.settings
        async with create_task_group() as deliveries:
            while True:
                await asyncio.sleep(settings.callback_interval_s * random.uniform(0.7, 1.0))  # noqa: S311 - jitter
                try:
                    due = await run_in_threadpool(self._services.outbox.take, AT_ONCE - self._sending)
                except RedisError:
                    continue  # it answers again some day, and others say that it does not
                except Exception:  # noqa: BLE001 - whatever it was, the next look may fare better
                    _log.exception("webhooks that are due cannot be looked up")
                    continue
                for delivery in due:
                    self._sending += 1
                    deliveries.start_soon(self._deliver, delivery)

    async def _deliver(self, delivery: Delivery) -> None:
        try:
            outcome = await self._outcome(delivery)
            with CancelScope(shield=True):  # it was sent, or was not: that is known, so it is noted
                await run_in_threadpool(self._conclude, delivery, outcome)
        except Exception as error:  # noqa: BLE001 - one delivery must not end the others
            unheard_of = not isinstance(error, RedisError | StoreError)
            _log.warning("webhook of job %s is left for later: %r", delivery.job_id, error, exc_info=unheard_of)
        except get_cancelled_exc_class():
            with move_on_after(_HAND_BACK_S, shield=True), suppress(RedisError):
                await to_thread.run_sync(self._services.outbox.hand_back, delivery.job_id, abandon_on_cancel=True)
            raise
        finally:
            self._sending -= 1

    async def _outcome(self, delivery: Delivery) -> Outcome:
        try:
            return await self._attempt(delivery)
        except (RedisError, StoreError):
            raise
        except Exception:  # noqa: BLE001 - it counts as an attempt, so that it is not tried for ever
            _log.exception("webhook of job %s", delivery.job_id)
            return "failed"

    def _conclude(self, delivery: Delivery, outcome: Outcome) -> None:
        outbox, pauses = self._services.outbox, self._services.settings.callback_retries_s
        if outcome in ("failed", "refused"):
            if delivery.attempts < len(pauses):
                outbox.again(delivery.job_id, pauses[delivery.attempts] * random.uniform(0.8, 1.2))  # noqa: S311
            else:
                outcome = "given-up"
        if outcome == "gone":
            outbox.gone(delivery.key_id, delivery.url)
        if outcome not in ("failed", "refused"):
            outbox.forget(delivery.job_id)
        self._services.metrics.webhooks.labels(outcome).inc()
        _log.info("webhook of job %s, attempt %d: %s", delivery.job_id, delivery.attempts + 1, outcome)

    async def _attempt(self, delivery: Delivery) -> Outcome:
        secrets = await run_in_threadpool(self._secrets, delivery.key_id)
        try:
            record = await run_in_threadpool(self._services.jobs.get, delivery.job_id)
        except UnknownJob:
            return "dropped"
        if not secrets or await run_in_threadpool(self._services.outbox.is_gone, delivery.key_id, delivery.url):
            return "dropped"
        try:
            async with asyncio.timeout(TIMEOUT_S):
                status = await self._post(delivery, secrets, payload(record))
        except NotAllowed as error:
            _log.warning("webhook of job %s: %s", delivery.job_id, error)
            return "refused"
        except (TimeoutError, OSError, httpx.HTTPError, UnicodeError) as error:
            _log.info("webhook of job %s: %s", delivery.job_id, type(error).__name__)
            return "failed"
        if status == HTTPStatus.GONE:
            return "gone"
        return "delivered" if 200 <= status < 300 else "failed"  # a redirect is a failure: it leads who knows where

    async def _post(self, delivery: Delivery, secrets: list[str], body: bytes) -> int:
        rules = self._services.callback_rules
        url = rules.parse(delivery.url)
        address = await rules.resolve(url, self._resolve)
        message_id, timestamp = f"msg_{delivery.job_id}", int(time.time())
        headers = {
            "Host": url.netloc.decode("ascii"),
            "Content-Type": "application/json",
            "User-Agent": "loomweight-webhooks",
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(secrets, message_id, timestamp, body),
        }
        # The connection goes to the address that was checked, whatever the name leads to by now; TLS still asks for the
        # name. Connections are not shared: two names at one address are two receivers.
        transport = httpx.AsyncHTTPTransport(verify=self._tls, trust_env=False, retries=0)
        async with httpx.AsyncClient(transport=transport, trust_env=False, timeout=TIMEOUT_S) as client:
            request = client.build_request(
                "POST",
                url.copy_with(host=str(address)),
                content=body,
                headers=headers,
                extensions={"sni_hostname": url.raw_host.decode("ascii")},
            )
            answer = await client.send(request, stream=True, follow_redirects=False)  # its body is never read
            await answer.aclose()
            return answer.status_code

    def _secrets(self, key_id: str) -> list[str]:
        """The secrets that sign for a key: none if it was revoked."""
        master = self._services.settings.callback_secret
        if master is None:
            return []
        versions: tuple[int, ...] = (1,)
        if key_id not in (BOOTSTRAP, LOCAL):
            key = self._services.access.keys.by_id(key_id)
            if key is None or not key.usable(datetime.now(UTC)):
                return []
            versions = key.webhook_versions
        return [secret_of(master.get_secret_value(), key_id, version) for version in versions]


def payload(record: JobRecord) -> bytes:
    """Return what is told of a job that ended: all that `GET /jobs/{id}` says, or where to ask if that is too much."""
    shown = Job.of(record).model_dump(mode="json")
    full = _event(record, shown)
    return full if len(full) < MOST_BYTES else _event(record, {name: shown[name] for name in ("id", "status", "links")})


def _event(record: JobRecord, job: dict[str, object]) -> bytes:
    ended = record.finished_at or record.created_at
    event = {"type": f"job.{record.status}", "timestamp": ended.isoformat(), "data": job}
    return json.dumps(event, separators=(",", ":")).encode()
