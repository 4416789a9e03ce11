"""Tests of the commands, run as real children."""
