"""The interposed calls one by one, each in a small program under the shim with a real agent."""
