"""Weights that are not lost: which runs must keep theirs, pins, the trash, the inventory of every file of weights."""
