"""
The jobs of this deployment: an inventory of a folder.

`jobs.inventory.scan.send("/some/folder")` walks the folder and leaves one row per file in `inventory.file`: size,
digest, media type, or why the file could not be read. Schedules keep the rows true, report identical files and sample
the progress. Call `jobs.tables.create_tables(conn)` once per database before the first job runs.

`worker run` imports this package; what it imports here is what the worker knows.
"""

from __future__ import annotations

from jobs import duplicates, inventory, progress

__all__ = ["duplicates", "inventory", "progress"]
