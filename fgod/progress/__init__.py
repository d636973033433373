"""How far long work is, as it is said to people: one live line in a terminal, plain lines now and then in a log.

What works calls `follow` (`followed`); to whom it is told is set once in a process (`reporting`), as with logging: by
default to nobody. A command that computes writes it to a small file beside its phase (`reached`). `fgod status` reads
that, and so does the snakemake that draws the lines of all its jobs (`jobs`). Nothing of it is a record, and no fault
of a terminal or of that file ends the work.
"""
