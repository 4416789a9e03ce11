"""Small programs that the tests start as processes of their own; none of them knows of the shim."""
