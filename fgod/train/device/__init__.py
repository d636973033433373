"""The training path of GPUs: no call waits for the device, weights stay there, and steady steps are CUDA graphs.

`elementwise` and `head` are the parts of a Qwen3 with their gradients written out; `network` puts them together;
`optimizer` hands gradients of groups to `fgod.train.optimizer`; `ops` chooses how each part is computed (plain torch,
compiled, Triton); `trainer` is one step, replayed as a graph where its shape is known; `weights` streams shards in and
out. All of it runs on a CPU too, where the tests compare it with `fgod.train.loop`.
"""
