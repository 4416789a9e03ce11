"""Tests of negotiation: offers in, a plan or a refusal out, and what two agents say.  Pure: no I/O at all."""
