"""Byte-level tokenizers with chat templates that behave as those of the common families; written for the tests.

`BEHAVIOURS` has one for each; the templates' texts are our own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fgod.model.tokenizer import WORDS

CHATML = """\
{%- if messages[0].role == 'system' -%}
    {%- set head, turns = messages[0].content, messages[1:] -%}
{%- else -%}
    {%- set head, turns = 'You are Standin, made for tests.', messages -%}
{%- endif -%}
{{- '<|im_start|>system\\n' + head + '<|im_end|>\\n' -}}
{%- for turn in turns -%}
    {{- '<|im_start|>' + turn.role + '\\n' + turn.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
"""A default system prompt with the model's name, as Qwen2.5 and SmolLM2 have."""

HEADERS = """\
{{- bos_token -}}
{%- if date_string is not defined -%}{%- set date_string = strftime_now('%d %b %Y') -%}{%- endif -%}
{%- set named = messages[0].role == 'system' -%}
{{- '<|header|>system<|/header|>\\n\\nToday: ' + date_string + '\\n\\n' -}}
{{- messages[0].content | trim if named else '' -}}{{- '<|eot|>' -}}
{%- for turn in messages[(1 if named else 0):] -%}
    {{- '<|header|>' + turn.role + '<|/header|>\\n\\n' + turn.content | trim + '<|eot|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|header|>assistant<|/header|>\\n\\n' -}}{%- endif -%}
"""
"""A beginning-of-text token, trimmed texts and a date, as Llama 3 has; its end token is not the tokenizer's."""

INST = """\
{{- bos_token -}}
{%- set named = messages[0].role == 'system' -%}
{%- set turns = messages[1:] if named else messages -%}
{%- for turn in turns -%}
    {%- if (turn.role == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception('turns must alternate') -}}
    {%- elif turn.role == 'user' -%}
        {{- '[INST] ' -}}
        {{- messages[0].content + '\\n\\n' if named and loop.first else '' -}}
        {{- turn.content + ' [/INST]' -}}
    {%- else -%}
        {{- ' ' + turn.content + eos_token -}}
    {%- endif -%}
{%- endfor -%}
"""
"""The system prompt is a part of the first question, and a space begins each answer, as Mistral has."""

THINKING = """\
{%- for turn in messages -%}
    {{- '<|im_start|>' + turn.role + '\\n' -}}
    {%- if turn.role == 'assistant' -%}
        {%- set said = turn.content.split('</think>')[-1].lstrip('\\n') -%}
        {{- '<think>\\n\\n</think>\\n\\n' + said if loop.last else said -}}
    {%- else -%}
        {{- turn.content -}}
    {%- endif -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
    {%- if enable_thinking is defined and not enable_thinking -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}
{%- endif -%}
"""
"""Reasoning stands in the last answer alone, as Qwen3 has."""

NO_SYSTEM = """\
{{- bos_token -}}
{%- for turn in messages -%}
    {%- if turn.role == 'system' -%}{{- raise_exception('no system role here') -}}{%- endif -%}
    {{- '<start>' + ('model' if turn.role == 'assistant' else turn.role) + '\\n' + turn.content + '<end>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start>model\\n' -}}{%- endif -%}
"""
"""No system prompt is taken, as Gemma has."""


@dataclass(frozen=True)
class Behaviour:
    """A template, the control tokens that it writes, and which of them the tokenizer knows by name."""

    template: str
    control: tuple[str, ...]
    eos: str
    bos: str | None = None
    ends: tuple[str, ...] = ()


BEHAVIOURS = {
    "chatml": Behaviour(CHATML, ("<|im_start|>", "<|im_end|>", "<|endoftext|>"), "<|im_end|>", "<|im_start|>"),
    "headers": Behaviour(HEADERS, ("<|begin|>", "<|header|>", "<|/header|>", "<|eot|>", "<|end|>"), "<|end|>",
                         "<|begin|>", ("<|eot|>",)),
    "inst": Behaviour(INST, ("<s>", "</s>", "[INST]", "[/INST]"), "</s>", "<s>"),
    "thinking": Behaviour(THINKING, ("<|im_start|>", "<|im_end|>"), "<|im_end|>"),
    "no-system": Behaviour(NO_SYSTEM, ("<bos>", "<start>", "<end>", "<eos>"), "<eos>", "<bos>", ("<end>",)),
}  # fmt: skip

MERGES = (("o", "n"), ("i", "n"), ("Ċ", "Ċ"), ("Ġ", "t"), ("Ġt", "h"), ("s", "s"), ("Ġ", "Ġ"))
"""A few, among them such as join white space with what stands beside it."""


@cache
def standin(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a behaviour: bytes, a few merges, and control tokens."""
    kind = BEHAVIOURS[name]
    return tokenizer_of(kind.template, kind.control, kind.eos, kind.bos)


def tokenizer_of(
    template: str, control: tuple[str, ...], eos: str | None, bos: str | None = None
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with this chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(left + right for left, right in MERGES)]
    tokenizer = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, list(MERGES)))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=eos,
        bos_token=bos,
        extra_special_tokens=[token for token in control if token not in (eos, bos)],
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )
