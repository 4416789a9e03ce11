"""CPython's own socket tests, plain and under bertha-run: what passes plain must pass with the shim.

`child` runs one module's tests and writes a line for each; `suite` starts it both ways, over hangs and
crashes, and compares; `table` does it for all modules and writes docs/users/cpython-suite.md.
"""
