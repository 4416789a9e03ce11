"""The same socket calls over plain TCP and over shared memory: same returns, errnos, readiness, bytes.

`generate` makes a random sequence of calls for two programs; `driver` is such a program, and makes each
call through the C library; `lockstep` lets the two make them one after the other and compares the two runs.
"""
