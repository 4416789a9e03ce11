"""End-to-end tests with real programs: each says, from the connection log, what carried the bytes."""
