"""The one pool of a process: how it is opened, who has its connections, how it closes."""

from worker.pool.checkout import Checkout, holder, shield
from worker.pool.close_event import CloseEvent
from worker.pool.connection import Connection
from worker.pool.hygiene import HygieneMode
from worker.pool.mark import mark
from worker.pool.options import AsyncMode, ConnectOptions, PoolOptions
from worker.pool.pool import Pool
from worker.pool.shared import bind_pool, get_lender, get_lender_async, get_pool, get_pool_async
from worker.pool.stats import PoolStats

__all__ = [
    "AsyncMode",
    "Checkout",
    "CloseEvent",
    "ConnectOptions",
    "Connection",
    "HygieneMode",
    "Pool",
    "PoolOptions",
    "PoolStats",
    "bind_pool",
    "get_lender",
    "get_lender_async",
    "get_pool",
    "get_pool_async",
    "holder",
    "mark",
    "shield",
]
