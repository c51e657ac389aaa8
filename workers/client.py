"""The sending end of the queue, and the Celery settings that both ends must share."""

import base64
import json

from celery import Celery
from kombu import serialization

from workers import tracing
from workers.messages import GENERATE_QUEUE, QUEUES, TASKS, JobRecord


def make_celery(broker_url: str, visibility_timeout: int) -> Celery:
    """Make the Celery app; gateway and workers all call this, so that no setting can differ.

    Job records are ours (`workers/jobs.py`), so Celery keeps no results; a message is acknowledged when its job ended.
    """
    app = Celery("loomweight", broker=broker_url, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        result_backend=None,
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        task_queues={name: {} for name in QUEUES},
        task_default_queue=GENERATE_QUEUE,
        task_create_missing_queues=False,
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "visibility_timeout": visibility_timeout,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 30,
        },
    )
    return app


_SENDER = Celery("loomweight", broker="redis://", set_as_current=False)
"""Makes messages and never connects."""


def message(job: JobRecord) -> str:
    """Return what a worker's Celery takes from the job's list in Redis; `@tag@` is where a copy's own tag goes.

    Celery makes the task; the envelope around it is that of kombu's virtual transports, which a test compares with one
    that Celery sent itself. Sending through Celery would be a step beside the record's (docs/decisions/0012).
    """
    task = _SENDER.amqp.as_task_v2(job.id, TASKS[job.kind], kwargs={"job_id": job.id}, ignore_result=None)
    content_type, encoding, body = serialization.dumps(task.body, "json")  # type: ignore[no-untyped-call]
    properties = {
        "delivery_tag": "@tag@",
        "delivery_info": {"exchange": "", "routing_key": job.queue},
        "delivery_mode": 2,
        "priority": 0,
        "body_encoding": "base64",
        **task.properties,
    }
    envelope = {
        "properties": properties,
        "headers": {**task.headers, **tracing.carried()},
        "content-type": content_type,
        "content-encoding": encoding,
        "body": base64.b64encode(body.encode()).decode(),
    }
    return json.dumps(envelope)
