"""Negotiation: what both ends want in, a plan or a refusal out.  No I/O."""
