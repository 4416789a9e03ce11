"""Tests of expressions on messages."""
