"""What a worker shows of itself: pages over HTTP, numbers for Prometheus, words for the service manager."""

from worker.observe.http import HttpServer, Page
from worker.observe.metrics import Counter, Histogram, render
from worker.observe.notify import ServiceManager

__all__ = ["Counter", "Histogram", "HttpServer", "Page", "ServiceManager", "render"]
