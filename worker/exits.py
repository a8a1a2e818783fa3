"""Exit codes: each a name and a sentence."""

from __future__ import annotations

OK = 0
FAILED = 1
USAGE = 2
DATABASE = 3
SCHEMA = 4
NOT_FOUND = 5
REFUSED = 6
INTERNAL = 70
RECYCLED = 75
INTERRUPTED = 130

MEANINGS = {
    OK: "Done, or stopped as asked.",
    FAILED: "What was asked for failed; the message says what.",
    USAGE: "The command line, a setting or a job module is wrong: nothing was started.",
    DATABASE: "The database could not be reached or started.",
    SCHEMA: "The schema is missing or of a version this worker cannot serve: see 'worker migrate'.",
    NOT_FOUND: "There is nothing by that name.",
    REFUSED: "It could not be done as things are now; the message says what is in the way.",
    INTERNAL: "Something inside died, or an error in this program; the message holds what or where.",
    RECYCLED: "It has run as many jobs, or grown as large, as --max-jobs or --max-memory allow: start it again.",
    INTERRUPTED: "Stopped by Ctrl-C before the end.",
}
