"""The sending end of the queue, and the Celery settings that both ends must share."""

from celery import Celery

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


class QueueClient:
    """Sends jobs to their queues by task name: no task code is imported here."""

    def __init__(self, broker_url: str, visibility_timeout: int) -> None:
        self._celery = make_celery(broker_url, visibility_timeout)
        # A sender waits for the broker only briefly: the job is recorded, and its message is sent again when due.
        self._celery.conf.broker_transport_options["socket_timeout"] = 5

    def send(self, job: JobRecord) -> None:
        """Send the job's message. Raises `kombu.exceptions.OperationalError` if the broker does not take it."""
        self._celery.send_task(
            TASKS[job.kind],
            kwargs={"job_id": job.id},
            queue=job.queue,
            task_id=job.id,
            headers=tracing.carried(),
            retry=True,
            retry_policy={"max_retries": 1, "interval_start": 0.1},
        )

    def close(self) -> None:
        """Let go of the broker's connections."""
        self._celery.close()
