"""Tests of the carrier in Python, alone and against the native one."""
