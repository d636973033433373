"""How far a run's distributions lie from the reference's, token by token, on the reference's own replies.

Teacher-forced: both models read the reference's reply, so that one token that differs does not change what follows it.
Both lie in memory and see the same batches. Nothing is stored: the log-probabilities of 400 replies of 64 tokens over
a vocabulary of 152k would be 15 GB, and a part of each distribution gives a lower bound of the divergence only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fgod.answers import Answer
from fgod.chat import chat_of
from fgod.errors import FgodError
from fgod.evaluate.scoring import NOT_COMPARED, Likelihood
from fgod.model.chats import ChatFormat
from fgod.model.forks import in_batches
from fgod.model.generate import left_padded, length_batches
from fgod.progress.followed import follow


def compare(
    reference: PreTrainedModel,
    model: PreTrainedModel,
    chat: ChatFormat,
    answers: Sequence[Answer],
    batch: int,
    processes: int = 1,
) -> list[Likelihood]:
    """What a model and the reference give to every token of the reference's answers, in their order.

    Args:
        processes: that compare batches side by side on a CPU; of no consequence for what they find.

    Raises:
        FgodError: the reference's own logits are not finite; names the prompt.
    """
    replies = [answer.token_ids for answer in answers]
    starts = chat.prompts([chat_of(answer) for answer in answers])
    read = [start + list(reply[:-1]) for start, reply in zip(starts, replies, strict=True)]
    batches = list(length_batches([len(ids) for ids in read], batch))

    @torch.inference_mode()
    def compared(rows: Sequence[int]) -> list[Likelihood]:
        inputs = left_padded([read[i] for i in rows], chat.pad_id, model.device)
        kept = max(1, *(len(replies[i]) for i in rows))
        theirs, ours = (_last_logits(m, inputs, kept) for m in (reference, model))
        found = []
        for place, i in enumerate(rows):
            start = kept - len(replies[i])
            if not theirs[place, start:].isfinite().all():
                raise FgodError(f"the reference's logits for {answers[i].prompt!r} are not finite; mend the base")
            found.append(likelihood(theirs[place, start:], ours[place, start:], replies[i]))
        return found

    with (
        in_batches(compared, batches, processes, model.device) as made,
        follow("beside the base", len(answers), "reply") as progress,
    ):
        said = dict(progress.each(made))
    return [said[i] for i in range(len(answers))]


def _last_logits(model: PreTrainedModel, inputs: dict[str, Tensor], kept: int) -> Tensor:
    """Logits [rows, kept, V] at the last places."""
    places = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    logits: Tensor = model(**inputs, position_ids=places, use_cache=False, logits_to_keep=kept).logits
    return logits


def likelihood(reference: Tensor, ours: Tensor, reply: Sequence[int]) -> Likelihood:
    """What two models' logits [tokens, V] say of a reply of so many tokens, in float64.

    KL(p ‖ q) = Σ p (log p − log q) of the reference p and the run q, never below 0; ΔNLL = log p(t) − log q(t) of the
    reply's own token t; top-1: whether both find the same token likeliest. Each is a mean over the tokens.
    """
    if not reply:
        return NOT_COMPARED
    if not ours.isfinite().all():
        return Likelihood(tokens=len(reply), finite=False)
    p, q = reference.double().log_softmax(-1), ours.double().log_softmax(-1)
    targets = torch.tensor(reply, device=p.device).unsqueeze(-1)
    gap = p - q
    return Likelihood(
        tokens=len(reply),
        kl=max(0.0, float((p.exp() * gap).sum(-1).mean())),
        nll_shift=float(gap.gather(-1, targets).mean()),
        top1=float((p.argmax(-1) == q.argmax(-1)).double().mean()),
    )
