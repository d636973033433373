"""Numeric self-tests: what computes, against slow and plain references.

`plain` holds the cases of the CPU, against loops in Python; `torch_ops` what torch computes on a GPU, against the CPU
in float64; `kernels` this project's Triton kernels, against the plain torch that they stand for (`adamw` is the
reference of the optimizer's). `fgod doctor` runs them on this machine, and the tests run the same list.
"""
