"""Arguments that several commands share, as dataclasses that these inherit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from jsonargparse import set_parsing_settings
from jsonargparse.typing import register_type

from fgod.arguments import Input, NonNegativeInt, Option, read_object
from fgod.chat import ChatSettings
from fgod.errors import UsageError
from fgod.exporters.names import NVFP4

set_parsing_settings(subclasses_enabled=[ChatSettings])  # or its keys would be options of their own
register_type(
    ChatSettings,
    serializer=ChatSettings.to_dict,
    deserializer=lambda given: ChatSettings.from_dict(read_object(given)),
    deserializer_exceptions=(ValueError, UsageError),
)

CHAT = Option("the config's key chat (default: the chat template alone)", "JSON")

LANGUAGES = Option("only these (default: all there are)", "TAG")

Device = Literal["cpu", "cuda"]

Where = Annotated[Device, Option("where it computes (default: cpu)")]

Anywhere = Annotated[
    Literal["auto", "cpu", "cuda"],
    Option("where it computes (default auto: on a GPU that is free and has room for it, else on the CPU)"),
]

Gpus = Annotated[Literal[0, 1], Option("1: compute on the GPU (default 0: the CPU); same bytes")]

Format = Annotated[
    str,
    Option(
        f"of the export, whose folder has its name: {NVFP4} (default), nvfp4-head, modelopt, bf16, dat, "
        "dat-float16, gguf, gguf-bf16; a plugin may add others",
        "NAME",
    ),
]

Like = Annotated[
    Path | None,
    Option("the folder with config.json and tokenizer of a .dat file (default: the folder where it lies)", "FOLDER"),
]
"""No input as a whole: its weights are not read (`fgod.models.files.beside_weights`)."""

Asked = Annotated[Path | None, Input("prompts.tsv of what the base asked itself")]


@dataclass(frozen=True, kw_only=True)
class Chatting:
    """For commands that write chats."""

    chat: Annotated[ChatSettings, CHAT] = field(default_factory=ChatSettings)


@dataclass(frozen=True, kw_only=True)
class Sourced:
    """For commands that read the written sources."""

    sources: Annotated[Path, Input("folder of the written sources")]
    languages: Annotated[tuple[str, ...], LANGUAGES] = ()


@dataclass(frozen=True, kw_only=True)
class Probing(Sourced):
    """For commands that read probes."""

    probes: Annotated[tuple[Path, ...], Input("the files of probes")]
    fold: Annotated[
        NonNegativeInt, Option("a fold of the wordings that are held back, from 1 (default 0: what the gate asks)")
    ] = 0
