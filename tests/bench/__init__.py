"""How fast the worker is: `python -m tests.bench drain --jobs 20000 --runs 3`. Measures; asserts nothing."""
