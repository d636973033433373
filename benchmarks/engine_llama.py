"""What llama.cpp makes of an exported GGUF file on the CPU, beside the same weights as this package computes them.

    python -m benchmarks.engine_llama artifacts/A/123/gguf artifacts/A/123/nvfp4 --question 你是誰 --question 我是誰

The first folder is an export to GGUF, which llama.cpp loads; the second one is what is compared with. Both are asked
greedily, with the chat template in the file and the folder's. Of the prompt: whether both have the same tokens. Of the
first token of the reply: the divergence of both distributions, Σ p·log(p/q) over the tokens that llama.cpp lists.

Needs the package xllamacpp, a binding of llama.cpp with its server (pip install xllamacpp), which fgod does not.
"""

from __future__ import annotations

import argparse
import json
import urllib.request
from pathlib import Path
from typing import Any

import torch
import xllamacpp

from fgod.chat import Chat, ChatSettings
from fgod.data.rows import Message
from fgod.exporters.gguf import FILE
from fgod.talk.conversation import Asking, Conversation
from fgod.talk.opening import Opened, open_model

LISTED = 2000
"""Tokens of the first distribution that llama.cpp gives."""


def served(folder: Path, context: int) -> Any:
    """llama.cpp's server with the file of a folder."""
    params = xllamacpp.CommonParams()
    params.model.path = str(folder / FILE)
    params.n_ctx, params.n_parallel, params.warmup = context, 1, False
    return xllamacpp.Server(params)


def post(server: Any, path: str, body: dict[str, Any]) -> Any:
    """What the server answers."""
    request = urllib.request.Request(
        f"{server.listening_address}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.loads(answer.read())


def compared(server: Any, ours: Opened, question: str, tokens: int) -> dict[str, Any]:
    """A question asked of both."""
    prompt = post(server, "/apply-template", {"messages": [{"role": "user", "content": question}]})["prompt"]
    ids = post(server, "/tokenize", {"content": prompt, "add_special": True, "parse_special": True})["tokens"]
    own_ids = ours.chat.prompt_ids(Chat((Message("user", question),)))
    asked = {"prompt": own_ids, "temperature": 0.0, "top_k": 1, "cache_prompt": False}
    reply = post(server, "/completion", {**asked, "n_predict": tokens, "return_tokens": True})
    first = post(server, "/completion", {**asked, "n_predict": 1, "n_probs": LISTED}).get("completion_probabilities")
    said = Conversation(ours, Asking(tokens)).ask(question)
    theirs, own = reply["tokens"], list(said.ids)
    differing = [n for n, (one, other) in enumerate(zip(theirs, own, strict=False)) if one != other]
    if abs(len(theirs) - len(own)) > 1:  # one may list the end token
        differing.append(min(len(theirs), len(own)))
    return {
        "question": question,
        "same prompt tokens": ids == own_ids,
        "llama.cpp": reply["content"],
        "fgod": said.text,
        "first differing token": differing[0] if differing else None,
        **(distance(first[0]["top_logprobs"], ours, own_ids) if first else {}),
        "tokens a second": reply["timings"]["predicted_per_second"],
    }


def distance(first: list[dict[str, Any]], ours: Opened, ids: list[int]) -> dict[str, float]:
    """How far the distributions of the first token are apart. llama.cpp gives none of a token that ends in the middle
    of a character."""
    theirs = torch.tensor([one["logprob"] for one in first]).double()
    logits = ours.model(input_ids=torch.tensor([ids])).logits[0, -1].double()
    own = logits.log_softmax(-1)[torch.tensor([one["id"] for one in first])]
    return {
        "listed probability": theirs.exp().sum().item(),
        "divergence": (own.exp() * (own - theirs)).sum().item(),
        "largest difference of a probability": (own.exp() - theirs.exp()).abs().max().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--question", action="append", required=True)
    parser.add_argument("--tokens", type=int, default=48)
    args = parser.parse_args()
    ours = open_model(args.other, "stored", "cpu", ChatSettings())
    server = served(args.gguf, min(ours.context, 2048))
    found = [compared(server, ours, question, args.tokens) for question in args.question]
    print(
        json.dumps(
            {"llama.cpp": xllamacpp.BUILD_INFO, "file": str(args.gguf), "found": found}, indent=1, ensure_ascii=False
        )
    )


if __name__ == "__main__":
    main()
