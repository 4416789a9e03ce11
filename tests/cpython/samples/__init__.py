"""A package of tests that is not CPython's, to see what the harness makes of each outcome."""
