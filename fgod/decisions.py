"""The words of a verdict that other modules ask for. Imports nothing: also what has to be fast asks for them."""

ACCEPTED = "accepted"
"""Of a run: its gate let it through; of a format: its engine says of it what was probed."""
