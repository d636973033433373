"""Operating system helpers that know nothing of training: they import only `fgod.errors` of the package.

files      atomic writes, digests, JSON and TSV, removal of what killed processes left
digests    SHA-256 of large files, remembered by path, size and times
garbage    no garbage collection while many objects are made
lock       a file lock that a command inherits
process    processes of /proc, process trees, SIGKILL to exactly one process
procfs     readers of /proc that keep their files open
stop       stop signals as exceptions; a command does not outlive the snakemake that started it
"""
