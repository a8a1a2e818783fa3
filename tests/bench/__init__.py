"""
How fast the worker is, beside others that do the same work: `python -m tests.bench --help`. Measures; asserts nothing.

    __main__ -> rounds -> side_process -> side (a process for each stage) -> peers/* -> peer, tally
                rounds -> stores, network (the servers, and the way to them), machine, server (what was spent)
    __main__ -> report, figure -> results

Programs of their own, on the same machinery: steady, fleet, memory, profile; and claim, pool, schedules. Those with
targets end with a `verdict`. A new peer is a file in `peers/`; `dramatiq_side` and `node_side` are what several share.
"""
