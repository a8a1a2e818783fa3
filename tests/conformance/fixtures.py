"""The fixtures of Dramatiq's tests, over our broker and the services that are there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import dramatiq
import dramatiq.brokers.stub
import psycopg
import pytest
import redis
from dramatiq import Worker
from dramatiq.rate_limits import RateLimiterBackend
from dramatiq.rate_limits import backends as rate_limits
from dramatiq.results import ResultBackend
from dramatiq.results import backends as results

from tests.conformance import stand_in
from tests.factories import opened_pool
from worker import PostgresBroker, PostgresLimits, PostgresResults

# A database of its own within Redis, because it is emptied before each test.
REDIS_URL = os.environ.get("WORKER_TEST_REDIS_URL", "redis://127.0.0.1:6379/15")

# Before the tests are imported: some make a StubBroker by themselves.
dramatiq.brokers.stub.StubBroker = stand_in.StandInBroker  # type: ignore[misc,assignment]  # the point of it all


def _redis_answers() -> bool:
    try:
        return bool(redis.Redis.from_url(REDIS_URL).ping())
    except redis.ConnectionError:
        return False


# Memcached, Dramatiq's third, would only ever be tested against itself.
BACKENDS = ["stub", "postgres", *(["redis"] if _redis_answers() else [])]


@pytest.fixture
def stub_broker() -> Iterator[stand_in.StandInBroker]:
    broker = stand_in.StandInBroker()
    broker.emit_after("process_boot")
    dramatiq.set_broker(broker)
    yield broker
    broker.close()
    with psycopg.connect(stand_in.database_url) as conn:
        conn.execute("TRUNCATE worker.job, worker.job_dead, worker.job_history, worker.worker")


@pytest.fixture
def stub_worker(stub_broker: stand_in.StandInBroker) -> Iterator[Worker]:
    # As many threads and as short a timeout as Dramatiq gives its own.
    worker = Worker(stub_broker, worker_timeout=100, worker_threads=32)
    worker.start()
    yield worker
    worker.stop()


@pytest.fixture
def redis_client() -> Any:
    client = redis.Redis.from_url(REDIS_URL)
    client.flushdb()
    return client


@pytest.fixture
def redis_result_backend(redis_client: Any) -> ResultBackend:
    backend: ResultBackend = results.RedisBackend(client=redis_client)
    return backend


@pytest.fixture
def executor() -> Iterator[PostgresBroker]:
    """What our backends run their statements on, where a test has no broker of ours."""
    with opened_pool(stand_in.database_url) as pool:
        yield PostgresBroker(pool=pool)
    with psycopg.connect(stand_in.database_url) as conn:
        conn.execute("TRUNCATE worker.result, worker.counter CASCADE")


@pytest.fixture(params=BACKENDS)
def result_backend(request: pytest.FixtureRequest) -> ResultBackend:
    if request.param == "redis":
        backend: ResultBackend = request.getfixturevalue("redis_result_backend")
        return backend
    if request.param == "postgres":
        return PostgresResults(request.getfixturevalue("executor"))
    return results.StubBackend()


@pytest.fixture(params=BACKENDS)
def rate_limiter_backend(request: pytest.FixtureRequest) -> RateLimiterBackend:
    if request.param == "redis":
        backend: RateLimiterBackend = rate_limits.RedisBackend(client=request.getfixturevalue("redis_client"))
        return backend
    if request.param == "postgres":
        return PostgresLimits(request.getfixturevalue("executor"))
    return rate_limits.StubBackend()
