"""Benchmarks: what our own costs, beside what it stands on."""
