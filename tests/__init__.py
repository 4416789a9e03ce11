"""The tests, as one package, so that test modules of different directories may share a name."""
