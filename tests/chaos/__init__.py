"""Programs and tests that break things at random."""
