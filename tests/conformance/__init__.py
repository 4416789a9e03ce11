"""The conformance kit over every implementation here, and the kit itself over bad chunnels."""
