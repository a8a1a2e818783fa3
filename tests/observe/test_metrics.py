"""Prometheus' text format: names, labels, escapes, cumulative buckets."""

from __future__ import annotations

from worker.observe.metrics import Counter, Family, Histogram, Sample, render


def test_a_counter_counts_by_its_labels() -> None:
    counter = Counter("worker_jobs_total", "Runs.", "queue", "outcome")
    counter.add("mail", "done")
    counter.add("mail", "done")
    counter.add("default", "dead", amount=3)

    assert render([counter.family()]) == (
        "# HELP worker_jobs_total Runs.\n"
        "# TYPE worker_jobs_total counter\n"
        'worker_jobs_total{queue="default",outcome="dead"} 3\n'
        'worker_jobs_total{queue="mail",outcome="done"} 2\n'
    )


def test_a_histogram_is_cumulative_and_a_bound_belongs_to_its_bucket() -> None:
    histogram = Histogram("x_seconds", "Time.", "queue", buckets=(0.1, 1.0))
    for value in (0.1, 0.5, 7.0):
        histogram.observe(value, "mail")

    assert render([histogram.family()]).splitlines()[2:] == [
        'x_seconds_bucket{queue="mail",le="0.1"} 1',
        'x_seconds_bucket{queue="mail",le="1"} 2',
        'x_seconds_bucket{queue="mail",le="+Inf"} 3',
        'x_seconds_sum{queue="mail"} 7.6',
        'x_seconds_count{queue="mail"} 3',
    ]


def test_what_a_label_holds_cannot_break_the_line() -> None:
    family = Family("x", "gauge", 'two\nlines \\ "quoted"', [Sample({"name": 'a"b\\c\nd'}, 0.25)])

    assert render([family]).splitlines() == [
        r'# HELP x two\nlines \\ "quoted"',
        "# TYPE x gauge",
        r'x{name="a\"b\\c\nd"} 0.25',
    ]


def test_large_and_infinite_numbers_are_written_as_prometheus_reads_them() -> None:
    values = [1792000000.25, 1e18, float("inf"), float("-inf")]

    lines = render([Family("x", "gauge", "", [Sample({}, value) for value in values])]).splitlines()[2:]

    assert [float(line.split()[1]) for line in lines] == values
