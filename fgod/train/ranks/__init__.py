"""One run on several GPUs of a host, one process (rank) each: masters and optimizer states are split by rows.

`group` is what ranks tell each other; `shards` says which rows a rank owns, and streams them in; `packed` is a weight
as it travels, in NVFP4; `network` computes with weights that are gathered as they are needed; `optimizer` steps what a
rank owns; `trainer` makes steps; `plan` predicts memory; `launch` starts ranks, watches them (`beats`) and says which
one failed. `python -m fgod.train.ranks` is a rank. All of it runs on a CPU too (gloo), for its tests.
"""
