"""results/DevLog.md: a diary of all runs, an entry for each verdict, made of the records.

The file is only ever added to: an entry once written stays as it is, and so does all that people write into it, for
which each entry has a place. `words` are its sentences in each language, `entry` makes one entry of a run's records,
`log` adds those that are missing.
"""
