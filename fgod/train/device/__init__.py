"""The training path of GPUs: no call waits for the device, weights stay there, and steady steps are CUDA graphs.

`elementwise`, `attention` and `head` are the parts of a Qwen3 with their gradients written out; `network` puts them
together; `optimizer` steps masters and packed moments by numbers that lie on the device; `ops` chooses how each part
is computed (plain torch, compiled, Triton); `graphs` replays steps of a known shape; `trainer` is one step;
`weights` streams shards in and out. All of it runs on a CPU too, where the tests compare it with `fgod.train.loop`.
"""
