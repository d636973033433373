"""`fgod doctor`: whether this machine can do what the configs ask of it, before a night is spent on finding out.

`CHECKS` (`checks`) is a list of small functions, each of which looks at one thing and returns findings (`finding`).
They see the machine through `machine.Machine`, which a test can simulate. What may crash or hang, above all what
touches a GPU, runs in a process of its own (`child`), which tells what it did line by line (`told`): numeric self-tests
(`fgod.selftest`), and a few steps of training (`speed`). `configs` holds each config against what was found.
"""
