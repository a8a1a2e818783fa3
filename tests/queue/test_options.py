"""What `@job` takes, under our names and Dramatiq's, and what it refuses."""

from __future__ import annotations

from functools import partial
from typing import Any

import dramatiq
import pytest

from worker import ArgumentError, ConfigError, Limit, PostgresBroker, Rate, Unique, job


@pytest.fixture
def broker() -> PostgresBroker:
    return PostgresBroker(schema="worker")


def declared(broker: PostgresBroker, **options: Any) -> Any:
    @job(broker=broker, **options)
    def charge() -> None: ...

    return charge


def test_dramatiqs_names_of_our_options_mean_the_same(broker: PostgresBroker) -> None:
    ours = declared(broker, name="a", queue="mail", timeout=5, priority=3)
    theirs = declared(broker, actor_name="b", queue_name="mail", time_limit=5000, priority=3)

    assert (ours.actor_name, theirs.actor_name) == ("a", "b")
    assert ours.queue_name == theirs.queue_name == "mail"
    assert ours.options == theirs.options
    assert ours.priority == theirs.priority == 3


def test_a_time_limit_without_end_is_no_timeout(broker: PostgresBroker) -> None:
    assert declared(broker, time_limit=float("inf")).options["time_limit"] == float("inf")


def test_the_same_thing_said_twice_is_no_contradiction(broker: PostgresBroker) -> None:
    assert declared(broker, name="a", actor_name="a", queue="mail", queue_name="mail").actor_name == "a"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "a", "actor_name": "b"}, "actor_name: it is Dramatiq's name of name=, which is 'a' already"),
        ({"queue": "a", "queue_name": "b"}, "queue_name: it is Dramatiq's name of queue=, which is 'a' already"),
        ({"timeout": 5, "time_limit": 6000}, "time_limit: it is Dramatiq's name of timeout=, which is 5 already"),
        ({"time_limit": "5s"}, "job time_limit '5s': expected more than 0 milliseconds, or say timeout= in seconds"),
        ({"actor_class": dramatiq.Actor}, "@job makes a class of its own; an actor of another class is declared by"),
        ({"queue": "my mail"}, "job queue 'my mail': expected a letter or an underscore, then letters"),
        ({"queue_name": 5}, "job queue 5: expected a letter"),
        ({"name": 5}, "job name 5: expected text"),
        ({"priority": "high"}, "job priority 'high': expected a whole number"),
        ({"timeout": 0}, "job timeout 0: expected more than 0 seconds, or None for no limit"),
        ({"limit": 5}, "job limit 5: expected a worker.Limit, such as Limit(5)"),
        ({"limit": Limit}, "expected a worker.Limit, such as Limit(5)"),
        ({"rate": "10/min"}, "job rate '10/min': expected a worker.Rate, such as Rate(10, per=60)"),
        ({"aliases": "old"}, "job aliases 'old': expected names by names, as {'old': 'new'}"),
        ({"aliases": {"old": 5}}, "job aliases {'old': 5}: expected names by names"),
        ({"former_names": "old"}, "job former_names 'old': expected a list of names, as ['old']"),
        ({"former_names": [5]}, "job former_names [5]: expected a list of names"),
        ({"transaction": "no"}, "job transaction 'no': expected True, or False for a connection that commits each"),
        ({"store_results": "yes"}, "job store_results 'yes': expected True or False"),
        ({"retry_when": 3}, "job retry_when 3: expected a function of the number of retries and the exception"),
        ({"throws": "ValueError"}, "job throws 'ValueError': expected an exception class, or a tuple of some"),
        ({"throws": (ValueError, 5)}, "expected an exception class, or a tuple of some"),
        ({"on_success": 5}, "job on_success 5: expected a job or its name"),
    ],
)
def test_an_option_that_cannot_work_is_refused_by_name(
    broker: PostgresBroker, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        declared(broker, **options)

    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"url": b"postgresql://u:s3cret@h/d"}, "PostgresBroker(url) of type bytes: expected a connection string"),
        ({"pool": "shop"}, "PostgresBroker(pool='shop'): expected a worker.Pool, or None, and one of psycopg_pool by"),
        ({"schema": 5}, "PostgresBroker(schema=5): expected the name of a schema, or None"),
        ({"lease": "10s"}, "PostgresBroker(lease='10s'): expected a number of seconds, more than 0"),
        ({"lease": 0}, "PostgresBroker(lease=0): expected a number of seconds, more than 0"),
        ({"max_args": 0}, "PostgresBroker(max_args=0): expected a number of bytes"),
    ],
)
def test_an_option_of_the_broker_that_cannot_work_is_refused_by_name(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        PostgresBroker(**options)

    assert said in str(refused.value)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("count", [Limit, partial(Rate, per=60)])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"by": 5}, "by 5: expected the name of an argument, or a list of names"),
        ({"by": ["user", 5]}, "by ['user', 5]: expected the name of an argument"),
        ({"by": ""}, "by '': expected the name of an argument"),
        ({"name": ""}, "name '': expected text"),
        ({"name": 5}, "name 5: expected text"),
    ],
)
def test_what_is_counted_by_no_words_is_refused(count: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        count(1, **options)

    assert said in str(refused.value)


@pytest.mark.parametrize("by", [5, "user", ["user", 5]])
def test_a_unique_job_by_no_words_is_refused(by: Any) -> None:
    with pytest.raises(ArgumentError, match="expected a list of names of arguments"):
        Unique(by=by)
