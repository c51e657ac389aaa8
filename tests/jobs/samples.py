"""Jobs to test with."""

import itertools

from workers.messages import GENERATE_QUEUE, GenerateRequest, GenerateResult, JobError, JobRecord, Novelty, StoredModel

_numbers = itertools.count(1)

RESULT = GenerateResult(
    models=(StoredModel(id="m-1", rank=0, holdout_accuracy=0.9),),
    classes=("cat", "dog"),
    seed=7,
    method="conditional-mean",
    bundle="starter-000000000000",
    ranked_on="cross-validation",
    baselines={"retrieve": 0.4},
    novelty=Novelty(score=0.1, warning=None),
    timings_ms={"queue": 1.0},
)
ERROR = JobError.of("invalid-samples", "The samples cannot be used", 422, "samples[3] cannot be decoded.")


def a_job(queue: str = GENERATE_QUEUE) -> JobRecord:
    return JobRecord(id=f"job-{next(_numbers)}", kind="generate", queue=queue, request=GenerateRequest(target="mlp"))
