"""Tests of the agent and of what it decides by: policy, negotiation, shared memory."""
