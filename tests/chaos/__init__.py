"""Chaos: everything at once that can happen to a pool, for as long as one likes."""
