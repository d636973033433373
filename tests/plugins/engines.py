"""A plugin: two inference engines. One computes what was exported; the other repeats what it is told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fgod.chat import Chat, ChatSettings
from fgod.engines.engine import Ask, Engine, Reply, messages
from fgod.registry import ENGINES


class Plain(Engine):
    name = "plain"
    module = "transformers"
    extra = ""
    formats = ("bf16", "nvfp4-head")

    def version(self) -> str:
        return "plain 1.0"

    @contextmanager
    def open(self, folder: Path, chat: ChatSettings, context: int, threads: int) -> Iterator[Ask]:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

        def ask(asked: Chat, most: int) -> Reply:
            ids = tokenizer.apply_chat_template(
                messages(asked, chat), add_generation_prompt=True, return_dict=False, **chat.template_kwargs
            )
            start = time.perf_counter()
            with torch.no_grad():
                prompt = torch.tensor([ids])
                first = model(prompt).logits[0, -1].double().log_softmax(-1).topk(50)
                mask = torch.ones_like(prompt)
                made = model.generate(prompt, attention_mask=mask, max_new_tokens=most, do_sample=False)
            said = made[0, len(ids) :].tolist()
            text = tokenizer.decode([one for one in said if one != tokenizer.eos_token_id])
            listed = dict(zip(first.indices.tolist(), first.values.tolist(), strict=True))
            ended = said[-1] == tokenizer.eos_token_id
            return Reply(tuple(ids), text, ended, listed, len(said), time.perf_counter() - start)

        yield ask


class Parrot(Engine):
    """Never ends what it says."""

    name = "parrot"
    module = "json"
    extra = ""
    formats = ("modelopt",)

    def version(self) -> str:
        return "parrot 1.0"

    @contextmanager
    def open(self, folder: Path, chat: ChatSettings, context: int, threads: int) -> Iterator[Ask]:
        yield lambda asked, most: Reply((), asked.turns[-1].content, False, {1: 0.0}, 1, 0.001)


ENGINES.register(Plain.name, Plain())
ENGINES.register(Parrot.name, Parrot())
