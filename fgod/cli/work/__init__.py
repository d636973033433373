"""Commands that load weights: the child under the guard, started again smaller after a kill, and its work."""
