import pytest
from redis import Redis

from workers.jobs import Jobs


@pytest.fixture
def jobs(redis: Redis) -> Jobs:
    return Jobs(redis)
