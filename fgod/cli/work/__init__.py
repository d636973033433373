"""Commands that load weights: the child under the guard, started again smaller after a kill, and its work.

`train` leads the trainer, which is no such child but a process of `fgod.train`.
"""
