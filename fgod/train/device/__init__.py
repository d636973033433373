"""The hand-written training path: no call waits for the device, weights stay there, and steady steps are CUDA graphs.

`elementwise` and `head` are the parts of a dense decoder with their gradients written out; `network` puts them
together; `optimizer` hands gradients of groups to `fgod.train.optimizer`; `ops` chooses how each part
is computed (plain torch, compiled, Triton); `plan` says what layers save and what memory is needed; `trainer` makes
steps and replays those of a known shape as CUDA graphs; `weights` streams shards in; `settings` chooses the device.
All of it runs on a CPU too, where the tests compare it with `fgod.train.autograd`.
"""
