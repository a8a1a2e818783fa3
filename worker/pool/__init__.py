"""The one pool of a process: how it is opened, who has its connections, how it closes."""

from worker.pool.checkout import Checkout, holder, shield
from worker.pool.connection import Connection
from worker.pool.options import PoolOptions
from worker.pool.pool import Pool
from worker.pool.shared import bind_pool, get_pool
from worker.pool.view import async_view

__all__ = ["Checkout", "Connection", "Pool", "PoolOptions", "async_view", "bind_pool", "get_pool", "holder", "shield"]
