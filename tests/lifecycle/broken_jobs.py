"""A module of jobs with a mistake in it."""

raise ZeroDivisionError("as an example")
