"""A module of jobs that takes its time to import."""

import time

from worker import log

log.get_logger("worker.tests").info("slow_jobs.importing")
time.sleep(600)
