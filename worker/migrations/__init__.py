"""The schema's numbered SQL files, forward only, one purpose each."""
