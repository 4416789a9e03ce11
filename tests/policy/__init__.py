"""Tests of the policy file and of what is picked by it: pure functions, no agent."""
