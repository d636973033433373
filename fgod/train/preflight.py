"""Checks of a few seconds before the first step: that what is trained is what will be served.

Each failure names itself and its cure. A training path that computes something else than the serving path starts with
a loss of 35 and then washes the model out: it must never take a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from fgod.data.rows import Row
from fgod.errors import FgodError, UsageError
from fgod.model.chats import ChatFormat
from fgod.nvfp4.codec import Quantised, dequantise, pack, quantise, unpack
from fgod.nvfp4.layers import StraightThroughLinear

PROMPTS = 4
"""Prompts that the starting model answers."""

ANSWER_TOKENS = 8
"""Tokens of each of those answers."""


class PreflightError(FgodError):
    """A check before training failed. The message names it, what was found, and the cure."""


def check_chat(chat: ChatFormat, vocab: int, row: Row) -> str:
    """The chat template writes a row as a whole, answers end, and all that chats need is in the vocabulary.

    Returns:
        The row as text, with its control tokens.

    Raises:
        PreflightError
    """
    try:
        sample = chat.row_ids(row)
        text = str(chat.tokenizer.decode(list(sample.ids), skip_special_tokens=False))
    except UsageError as error:
        raise PreflightError(f"preflight, chat template: {error}") from error
    for name, token in (("pad token", chat.pad_id), *(("end token", one) for one in chat.end_ids)):
        if not 0 <= token < vocab:
            raise PreflightError(
                f"preflight, {name}: id {token}, expected one below {vocab}, the rows of the embedding"
            )
    return text


class _Served(StraightThroughLinear):
    """A projection that reads its weight as a server does: from packed codes and stored scales."""

    def forward(self, input: Tensor) -> Tensor:
        master = self.weight.detach().float()
        stored = quantise(master, self.group.global_scale(), self.group.name, self.block_scales)
        loaded = Quantised(unpack(pack(stored.codes)), stored.scales, stored.global_scale)
        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        return F.linear(input, dequantise(loaded, self.group.name).to(self.compute_dtype), bias)


@contextmanager
def served(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model computes as its reloaded export will, one weight unpacked at a time."""
    layers = [module for module in model.modules() if type(module) is StraightThroughLinear]
    for layer in layers:
        layer.__class__ = _Served
    try:
        yield
    finally:
        for layer in layers:
            layer.__class__ = StraightThroughLinear


def _last_logits(model: PreTrainedModel, rows: Sequence[Sequence[int]], count: int) -> Tensor:
    """float32 [R, count, V]: logits at the last `count` tokens of each row of ids.

    Rows are filled up at their ends, which tokens before do not see.
    """
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[row[-1]] * (width - len(row))] for row in rows], device=model.lm_head.weight.device)
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    kept = [one[len(row) - count : len(row)] for one, row in zip(hidden, rows, strict=True)]
    return model.lm_head(torch.stack(kept)).float()


@torch.no_grad()
def check_forward(model: PreTrainedModel, chats: Sequence[Sequence[int]]) -> float:
    """The training forward gives the served one's logits to the bit, and the model's own answers a small loss.

    A greedy token has at least probability 1/V, so that the loss of a model's own answer is at most log V nats: more
    proves that two different things are computed.

    Returns:
        Loss of the starting model's own greedy answers, in nats a token.

    Raises:
        PreflightError
    """
    limit = math.log(model.config.vocab_size)
    answered = [list(chat) for chat in chats]
    for _ in range(ANSWER_TOKENS):
        for row, token in zip(answered, _last_logits(model, answered, 1)[:, 0].argmax(-1).tolist(), strict=True):
            row.append(token)
    ours = _last_logits(model, answered, ANSWER_TOKENS + 1)
    with served(model):
        theirs = _last_logits(model, answered, ANSWER_TOKENS + 1)
    difference = (ours - theirs).abs().max().item()
    if difference != 0:
        raise PreflightError(
            f"preflight, forward: the training forward and the exported one differ by up to {difference:g} in "
            "their logits on the starting weights; expected equal bits: what is trained is not what is served "
            "(is a layer or a dtype of this model unknown to fgod.nvfp4.layers?)"
        )
    labels = torch.tensor([row[-ANSWER_TOKENS:] for row in answered], device=ours.device)
    loss = F.cross_entropy(ours[:, :-1].flatten(0, 1), labels.flatten()).item()
    if not loss <= limit * 1.001:
        raise PreflightError(
            f"preflight, first loss: {loss:.2f} nats a token on the model's own answers; expected at most {limit:.2f}, "
            "the loss of a uniform guess: the training forward pass does not compute the same function as generation; "
            "check the starting weights and the tokenizer"
        )
    return loss


NETWORK_LIMIT = {torch.float32: 1e-3, torch.bfloat16: 0.05}
"""‖ours - theirs‖ / ‖theirs‖ of the median token's logits by two paths that round at other places."""


def token_gaps(ours: Tensor, theirs: Tensor) -> Tensor:
    """‖ours - theirs‖ / ‖theirs‖ [T] of the logits [T, V] of each token."""
    return (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)


@torch.no_grad()
def check_network(found: Iterable[Tensor], model: PreTrainedModel, chats: Sequence[Sequence[int]]) -> float:
    """The forward pass of a device's own network gives the logits of transformers' model on the same masters.

    A chat is judged by its median token. In bfloat16, rounding can turn the logits of single tokens of short chats, as
    far as transformers' own bfloat16 is from float32 there (benchmarks/bf16_paths.py). A wrong path moves most tokens.

    Args:
        found: logits of each chat, float32 [T, V], by the device's network, laid out as in training.

    Returns:
        The largest of the chats' relative differences.

    Raises:
        PreflightError
    """
    medians = []
    for chat, ours in zip(chats, found, strict=True):
        theirs = _last_logits(model, [chat], len(chat))[0]
        medians.append(token_gaps(ours, theirs).median())
    worst = torch.stack(medians).max().item()  # NaN, where one is
    layer = next(module for module in model.modules() if isinstance(module, StraightThroughLinear))
    limit = NETWORK_LIMIT[layer.compute_dtype]
    if not worst <= limit:
        raise PreflightError(
            f"preflight, network: the device's path differs from the exported model in its logits by {worst:.2g} "
            f"(relative norm of a chat's median token); expected at most {limit:g}: what is trained is not what is "
            "served; train with train.device: cpu and report this"
        )
    return worst


def check_changed(unchanged: Sequence[str], step: int) -> None:
    """Raises PreflightError naming tensors that `step`, the first one at full learning rate, left as they were."""
    if unchanged:
        some = ", ".join(unchanged[:4])
        raise PreflightError(
            f"after step {step}, {len(unchanged)} tensors are as they were: {some}; expected every tensor to change: "
            "raise train.lr, or keep masters that accumulate (train.master_dtype: fp32 or bf16)"
        )
