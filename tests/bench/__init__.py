"""
How fast the worker is, beside others that do the same work: `python -m tests.bench --help`. Measures; asserts nothing.

    __main__ -> rounds -> side (a process for each run) -> peers/* -> peer, tally
    __main__ -> report, figure -> results

A new peer is a new file in `peers/`.
"""
