"""Random faults over several workers, with a ledger of effects; see `__main__`."""
