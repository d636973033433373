"""llama.cpp on the CPU, by xllamacpp: a binding of it with its server, which is asked over the loopback interface."""

from __future__ import annotations

import http.client
import importlib.metadata
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fgod.chat import Chat, ChatSettings
from fgod.engines.engine import ENGINES, Ask, Engine, Reply, messages
from fgod.errors import FgodError
from fgod.gguf.exporter import FILE, GGUF, GGUF_BF16

LISTED = 2000
"""Tokens of the first distribution that it lists."""
TIMEOUT = 600
"""Seconds that an answer may take."""


class LlamaCpp(Engine):
    """NVFP4 (type 40) is multiplied as it is stored; on a CPU activations are rounded to 8 bits for that. The chat
    template is the one in the file."""

    name = "llama.cpp"
    module = "xllamacpp"
    extra = "llama"
    formats = (GGUF.name, GGUF_BF16.name)

    def version(self) -> str:
        return f"{self.module} {importlib.metadata.version(self.module)}"

    @contextmanager
    def open(self, folder: Path, chat: ChatSettings, context: int, threads: int) -> Iterator[Ask]:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(folder / FILE)
        params.n_ctx, params.n_parallel, params.warmup, params.n_gpu_layers = context, 1, False, 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.verbosity = 0
        try:
            server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise FgodError(f"{folder / FILE}: {self.name} does not load it: {error}") from error
        yield lambda asked, most: _ask(server.listening_address, asked, chat, most)


def _ask(address: str, chat: Chat, settings: ChatSettings, most: int) -> Reply:
    templated = {"messages": messages(chat, settings), "chat_template_kwargs": dict(settings.template_kwargs)}
    text = _post(address, "/apply-template", templated)["prompt"]
    ids = _post(address, "/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]
    greedy = {"prompt": ids, "temperature": 0.0, "top_k": 1, "cache_prompt": False}
    first = _post(address, "/completion", {**greedy, "n_predict": 1, "n_probs": LISTED})
    start = time.perf_counter()
    said = _post(address, "/completion", {**greedy, "n_predict": most})
    seconds = time.perf_counter() - start
    listed = first.get("completion_probabilities") or [{"top_logprobs": []}]
    return Reply(
        prompt=tuple(ids),
        text=said["content"],
        ended=said["stop_type"] == "eos",
        first={one["id"]: one["logprob"] for one in listed[0]["top_logprobs"]},
        tokens=said["tokens_predicted"],
        seconds=seconds,
    )


def _post(address: str, path: str, body: dict[str, Any]) -> Any:
    """What the server answers."""
    request = urllib.request.Request(
        f"{address}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        raise FgodError(f"llama.cpp: {path}: {error}: {error.read().decode(errors='replace')}") from error
    except (OSError, http.client.HTTPException) as error:  # its server died, or took longer than TIMEOUT
        raise FgodError(f"llama.cpp: {path}: no answer: {type(error).__name__}: {error}") from error


ENGINES.register(LlamaCpp.name, LlamaCpp())
