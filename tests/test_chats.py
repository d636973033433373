"""Chats by each family's kind of template: ids are those of what it writes, and no text is a control token."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgod.chat import Chat, ChatSettings, answered, chat_of
from fgod.data.rows import NO_SYSTEM, Message, Row
from fgod.errors import UsageError
from fgod.model.chats import ChatFormat, Sample
from fgod.model.template import control_tokens
from fgod.train.batches import collate
from tests.chat_templates import BEHAVIOURS, CHATML, HEADERS, THINKING, standin, tokenizer_of

DATE = {"date_string": "26 Jul 2024"}
VARIABLES: dict[str, dict[str, Any]] = {"headers": DATE, "thinking": {"enable_thinking": False}}
TAKES_SYSTEM = [name for name in BEHAVIOURS if name != "no-system"]
TURNS = st.lists(st.text(min_size=1, max_size=12).filter(str.strip), min_size=1, max_size=5)


def form(name: str, **settings: Any) -> ChatFormat:
    """The format of a stand-in, its date and thinking fixed."""
    tokenizer, kind = standin(name), BEHAVIOURS[name]
    chosen = ChatSettings.from_dict({"template_kwargs": VARIABLES.get(name, {}), **settings})
    return ChatFormat(tokenizer, chosen, tokenizer.convert_tokens_to_ids(list(kind.ends)), name)


FORMS = {name: form(name) for name in BEHAVIOURS}


def chat(*texts: str, system: str = "") -> Chat:
    return Chat(tuple(Message("assistant" if i % 2 else "user", text) for i, text in enumerate(texts)), system)


def row(prompt: str, target: str, **more: Any) -> Row:
    return Row(prompt, target, "en", "general", "topic", **more)


def history(*texts: str) -> tuple[Message, ...]:
    return chat(*texts).turns


def by_transformers(chosen: ChatFormat, asked: Chat) -> list[int]:
    """What transformers makes of a chat, whose texts it parses for control tokens."""
    messages = [{"role": "system", "content": asked.system}] if asked.system else []
    messages += [{"role": turn.role, "content": turn.content} for turn in asked.turns]
    made = chosen.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False, **chosen.settings.template_kwargs
    )
    return list(made)


def prompts_of(texts: list[str], system: str = "") -> Chat:
    return chat(*(texts if len(texts) % 2 else texts[:-1]), system=system)


@pytest.mark.parametrize("name", BEHAVIOURS)
@given(texts=TURNS, system=st.sampled_from(["", "Answer in verse.", " 簡短 "]))
def test_ids_are_those_of_transformers_where_texts_spell_no_control_token(
    name: str, texts: list[str], system: str
) -> None:
    asked = prompts_of(texts, system if name in TAKES_SYSTEM else "")
    spelled = control_tokens(standin(name))
    if not any(token in text for token in spelled for text in (*texts, system)) and "</think>" not in "".join(texts):
        assert FORMS[name].prompt_ids(asked) == by_transformers(FORMS[name], asked)


@pytest.mark.parametrize("name", BEHAVIOURS)
@given(data=st.data())
def test_no_text_is_parsed_as_a_control_token_whoever_says_it(name: str, data: st.DataObject) -> None:
    tokens = sorted(control_tokens(standin(name)))
    spelled = st.builds("{}{}{}".format, st.text(max_size=3), st.sampled_from(tokens), st.sampled_from(["x", "\nuser"]))
    system = data.draw(spelled) if name in TAKES_SYSTEM else ""
    texts = [data.draw(spelled) for _ in range(3)]
    hostile, harmless = chat(*texts, system=system), chat("a", "b", "c", system=system and "s")
    chosen = FORMS[name]
    control = set(chosen.tokenizer.convert_tokens_to_ids(tokens))
    ids, plain = chosen.prompt_ids(hostile), chosen.prompt_ids(harmless)
    assert [one for one in ids if one in control] == [one for one in plain if one in control]
    written = chosen.tokenizer.decode(ids, skip_special_tokens=False)
    assert written == chosen.template.written([hostile], prompt=True)[0]
    sample = chosen.row_ids(row("a", texts[0]))
    assert [one for one in sample.ids[sample.prompt_length :] if one in control] == [sample.ids[-1]]


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_many_are_as_one_by_one(name: str) -> None:
    chosen = FORMS[name]
    chats = [chat("a"), chat(" 你是誰\n"), chat("a", "b", "c"), chat("x", system=NO_SYSTEM if name != "inst" else "")]
    assert chosen.prompts(chats) == [form(name).prompt_ids(one) for one in chats]  # one that has encoded nothing yet
    rows = [row("a", "b"), row("a", "b c", history=history("d", "e")), row("a", "b", cut=True)]
    assert chosen.rows(rows) == [chosen.row_ids(one) for one in rows]
    assert chosen.row_lengths(rows) == [len(sample.ids) for sample in chosen.rows(rows)]
    assert chosen.prompts([]) == [] and chosen.rows([]) == []


@pytest.mark.parametrize("name", BEHAVIOURS)
@given(texts=TURNS, target=st.text(min_size=1, max_size=9).filter(str.strip))
def test_a_row_is_its_prompt_its_answer_and_an_end_token(name: str, texts: list[str], target: str) -> None:
    chosen, asked = FORMS[name], prompts_of(texts)
    if "</think>" in target + "".join(texts) or target.startswith("\n"):
        return
    *before, last = asked.turns
    one = row(last.content, target, history=tuple(before))
    sample = chosen.row_ids(one)
    assert list(sample.ids[: sample.prompt_length]) == chosen.prompt_ids(asked)
    assert sample.ids[-1] in chosen.end_ids and sample.earlier == ()
    learned = chosen.tokenizer.decode(list(sample.ids[sample.prompt_length : -1]), skip_special_tokens=False)
    assert learned == {"headers": target.strip(), "inst": f" {target}"}.get(name, target)
    written = chosen.template.written([answered(one)], prompt=False)[0]
    assert written.startswith(chosen.tokenizer.decode(list(sample.ids), skip_special_tokens=False))


@pytest.mark.parametrize(("name", "begin"), [("headers", "<|begin|>"), ("inst", "<s>"), ("no-system", "<bos>")])
def test_the_beginning_of_text_is_never_doubled(name: str, begin: str) -> None:
    chosen = FORMS[name]
    token = chosen.tokenizer.convert_tokens_to_ids(begin)
    for ids in (chosen.prompt_ids("a"), chosen.prompt_ids(chat("a", "b", "c")), chosen.row_ids(row("a", "b")).ids):
        assert ids[0] == token and list(ids).count(token) == 1


# -------------------------------------------------------------------------------------------------- system prompts


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("chatml", "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"),
        ("headers", "<|begin|><|header|>user<|/header|>\n\na<|eot|><|header|>assistant<|/header|>\n\n"),
        ("inst", "<s>[INST] a [/INST]"),
        ("thinking", "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        ("no-system", "<bos><start>user\na<end>\n<start>model\n"),
    ],
)
def test_none_is_a_chat_without_a_system_turn(name: str, words: str) -> None:
    chosen = form(name, system="none")
    assert chosen.tokenizer.decode(chosen.prompt_ids("a"), skip_special_tokens=False) == words
    assert FORMS[name].prompt_ids(chat("a", system=NO_SYSTEM)) == chosen.prompt_ids("a")
    longer = chosen.tokenizer.decode(chosen.prompt_ids(chat("a", "b", "c")), skip_special_tokens=False)
    assert longer.startswith(words.partition("a")[0]) and longer.count("system") == 0


def test_the_system_prompt_is_the_rows_else_the_configs_else_the_templates() -> None:
    one, own = row("a", "b"), row("a", "b", system="Mine.")

    def said(chosen: ChatFormat, what: Row) -> str:
        return str(chosen.tokenizer.decode(list(chosen.row_ids(what).ids))).partition("<|im_end|>")[0]

    assert said(FORMS["chatml"], one) == "<|im_start|>system\nYou are Standin, made for tests."
    assert said(form("chatml", system="Ours."), one) == "<|im_start|>system\nOurs."
    for chosen in (FORMS["chatml"], form("chatml", system="Ours."), form("chatml", system="none")):
        assert said(chosen, own) == "<|im_start|>system\nMine."
        assert said(chosen, row("a", "b", system=NO_SYSTEM)) == "<|im_start|>user\na"


def test_a_template_that_takes_no_system_prompt_is_named() -> None:
    for chosen, asked in ((form("no-system", system="Ours."), chat("a")), (FORMS["no-system"], chat("a", system="x"))):
        with pytest.raises(
            UsageError, match=r"chat\.system: the chat template of no-system takes no system prompt: .*no"
        ):
            chosen.prompt_ids(asked)
    ignores = "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    chosen = ChatFormat(tokenizer_of(ignores, ("<|im_start|>", "<|im_end|>"), "<|im_end|>"), ChatSettings("Ours."))
    with pytest.raises(UsageError, match=r"chat\.system: .* takes no system prompt: it makes '<\|im_start\|>PLACE1"):
        chosen.check()


def test_a_system_turn_that_cannot_be_told_apart_is_refused() -> None:
    odd = "<|im_start|>Hello! {{ messages[0].content }}<|im_end|>{% for m in messages[1:] %}<|im_start|>{{ m.content }}"
    chosen = ChatFormat(
        tokenizer_of(odd + "<|im_end|>{% endfor %}", ("<|im_start|>", "<|im_end|>"), "<|im_end|>"), ChatSettings("none")
    )
    with pytest.raises(UsageError, match=r"chat\.system: none: .* cannot be told; expected default or a text"):
        chosen.check()


# ----------------------------------------------------------------------------------------------------- several turns


def test_the_loss_is_on_the_last_answer_or_on_all() -> None:
    said = history("Hi", "Hello!", "How?", "So.")
    for name in ("chatml", "headers", "inst", "no-system"):
        chosen = FORMS[name]
        last, every = (chosen.row_ids(row("And?", "Yes.", history=said, loss_on=on)) for on in ("last", "all"))
        assert last.ids == every.ids and last.prompt_length == every.prompt_length and not last.earlier
        end, lead = chosen.tokenizer.decode([last.ids[-1]]), " " if name == "inst" else ""
        spans = (*every.earlier, (every.prompt_length, len(every.ids)))
        learned = [chosen.tokenizer.decode(list(every.ids[slice(*span)])) for span in spans]
        assert learned == [f"{lead}{text}{end}" for text in ("Hello!", "So.", "Yes.")]
        batch = collate([every, last], 0)
        wanted = [every.ids[place] for place in every.learned] + list(last.ids[last.prompt_length :])
        assert batch.labels.tolist() == wanted
        shifted = [[*sample.ids[1:]] for sample in (every, last)]
        assert [shifted[0][p] for p in batch.positions.tolist()[: len(every.learned)]] == wanted[: len(every.learned)]


def test_all_is_refused_where_later_turns_change_an_answer() -> None:
    one = row("And?", "Yes.", history=history("Hi", "Hello!"), loss_on="all")
    with pytest.raises(UsageError, match=r"loss_on: all: .* writes an answer otherwise where later turns follow"):
        ChatFormat(standin("thinking"), where="thinking").row_ids(one)
    with pytest.raises(UsageError, match="expected the same beginning: what is learned would not be what is asked"):
        FORMS["thinking"].row_ids(one)
    assert FORMS["thinking"].row_ids(row("And?", "Yes.", history=history("Hi", "Hello!"))).earlier == ()
    joined = row("And?", "Yes.", history=history("Hi", "\nHello!"), loss_on="all")
    with pytest.raises(UsageError, match=r"row 1 \('And\?'\): loss_on: all: the tokenizer joins the beginning"):
        FORMS["no-system"].row_ids(joined)


def test_without_a_switch_a_thinking_template_has_its_empty_thought_learned() -> None:
    sample = ChatFormat(standin("thinking")).row_ids(row("Hi", "Hello!"))
    learned = standin("thinking").decode(list(sample.ids[sample.prompt_length :]))
    assert learned == "<think>\n\n</think>\n\nHello!<|im_end|>"
    with pytest.raises(UsageError, match=r"row 1 \('Hi'\): the chat template of .* loses or changes a text"):
        ChatFormat(standin("thinking")).row_ids(row("Hi", "<think>\nHm.\n</think>\n\nHello!"))


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_a_cache_goes_on_as_a_full_replay(name: str) -> None:
    chosen = FORMS[name]
    first = chosen.prompt_ids(chat("a"))
    reply = [*chosen.tokenizer("so it is", add_special_tokens=False)["input_ids"], chosen.end_ids[0]]
    for cached in ([], first, first + reply, first + reply[:-1], [5, 6, 7], chosen.prompt_ids(chat("a", "b", "c"))):
        for asked in (chat("a", "so it is", "c"), chat("a"), chat("a", "b", "c", "d", "e")):
            kept, fed = chosen.continued(cached, asked)
            assert fed and [*cached[:kept], *fed] == chosen.prompt_ids(asked)
    if name in ("chatml", "headers"):  # what was said is not computed again
        own = chosen.row_ids(row("a", "so it is")).ids
        assert chosen.continued(own, chat("a", "so it is", "c"))[0] == len(own)


# ------------------------------------------------------------------------------------------- programs of strangers

HOSTILE = {
    "{{ open('/etc/passwd').read() }}": "'open' is undefined",
    "{{ __import__('os').system('touch stolen') }}": "'__import__' is undefined",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}": "unsafe",
    "{{ messages.append('x') }}": "unsafe",
    "{% include '/etc/passwd' %}": "",
    "{% for i in range(999999999) %}x{% endfor %}": "Range too big",
    "{{ cycler.__init__.__globals__.os.getcwd() }}": "",
    "{% if %}": "TemplateSyntaxError",
    "{{ messages[7].content }}": "has no element 7",
}


@pytest.mark.parametrize("program", HOSTILE)
def test_a_template_that_reaches_out_or_is_broken_is_refused(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = tokenizer_of(program + CHATML, BEHAVIOURS["chatml"].control, "<|im_end|>")
    with pytest.raises(UsageError, match=r"models/bad: chat_template: fails with .*expected a template that") as caught:
        ChatFormat(tokenizer, where="models/bad").check()
    assert HOSTILE[program] in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_date_is_fixed_or_refused() -> None:
    with pytest.raises(UsageError, match=r"today's date .*fix the date by chat\.template_kwargs\.date_string"):
        ChatFormat(standin("headers"), where="llama").check()
    assert "26 Jul 2024" in FORMS["headers"].template.written([chat("a")], prompt=True)[0]
    always = HEADERS.replace("date_string is not defined", "true")
    chosen = ChatFormat(
        tokenizer_of(always, BEHAVIOURS["headers"].control, "<|eot|>", "<|begin|>"), ChatSettings("default", DATE)
    )
    assert "26 Jul 2024" in chosen.template.written([chat("a")], prompt=True)[0]
    assert chosen.template.written([chat("a")], prompt=True)[0] != time.strftime("%d %b %Y")


def test_a_variable_that_the_template_does_not_use_is_named() -> None:
    with pytest.raises(
        UsageError, match=r"enable_thinkin: .* uses no such variable \(did you mean enable_thinking\?\)"
    ):
        form("thinking", template_kwargs={"enable_thinkin": False})
    with pytest.raises(UsageError, match="date_string: the chat template of chatml uses no such variable"):
        form("chatml", template_kwargs=DATE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("turn.content", "turn.content.lower()"), "expected each once, in order"),
        (("turn.content", "turn.content[:4]"), "expected each once, in order"),
        (("turn.content", "turn.content | replace('A', 'B')"), "expected each once, in order"),
        (("turn.content", "turn.content | replace('Z', '')"), "the prompt 'Zebra': .* loses or changes a text; .* It"),
        (("turn.content", "turn.content * 2"), "expected each once, in order"),
        (("for turn in turns", "for turn in turns[-1:]"), "expected each once, in order"),
        (("+ '<|im_end|>\\n' -}}\n{%- endfor", "+ '\\n' -}}\n{%- endfor"), "expected a control token"),
        (("+ '<|im_end|>\\n' -}}\n{%- endfor", "+ '<|endoftext|>' -}}\n{%- endfor"), "an answer with '<|endoftext|>"),
        (("assistant\\n' -}}{%- endif", "model\\n' -}}{%- endif"), "expected the same beginning"),
    ],
)  # fmt: skip
def test_a_template_that_loses_a_text_or_an_end_is_shown(change: tuple[str, str], words: str) -> None:
    assert change[0] in CHATML
    tokenizer = tokenizer_of(CHATML.replace(*change), BEHAVIOURS["chatml"].control, "<|im_end|>")
    with pytest.raises(UsageError, match=words.replace("|", r"\|")):
        chosen = ChatFormat(tokenizer)
        chosen.prompt_ids(chat("a", "b", "Zebra"))
        chosen.check()


def test_the_row_that_a_template_fails_on_is_named() -> None:
    picky = CHATML.replace(
        "turn.content +", "(raise_exception('too long') if turn.content | length > 20 else turn.content) +"
    )
    chosen = ChatFormat(tokenizer_of(picky, BEHAVIOURS["chatml"].control, "<|im_end|>"))
    rows = [row("a", "b"), row("a", "b" * 30), row("c", "d")]
    with pytest.raises(UsageError, match=r"row 2 \('a'\): .*chat_template: fails with TemplateError: too long"):
        chosen.rows(rows)


def test_copies_of_a_row_are_encoded_once_and_messages_have_the_numbers_of_the_file() -> None:
    chosen = FORMS["no-system"]
    rows = [
        row("a", "b"),
        row("c", "d"),
        row("a", "b"),
        row("a", "b", cut=True),
        row("a", "b", history=history("x", "y")),
    ]
    samples = chosen.rows(rows)
    assert samples == [chosen.row_ids(one) for one in rows]
    assert samples[2] is samples[0] and len(set(map(id, samples))) == 4
    with pytest.raises(UsageError, match=r"row 31 \('c'\): .* tokens; train.seq_len allows"):
        chosen.rows([row("a", "b"), row("c", "d" * 99), row("c", "d" * 99)], 64, numbers=[7, 31, 32])


def test_prompts_that_were_encoded_before_are_not_encoded_again() -> None:
    chosen, encoded = form("chatml"), list[int]()
    ids_of = chosen._text_ids
    chosen._text_ids = lambda texts: encoded.append(len(texts)) or ids_of(texts)  # type: ignore[method-assign,func-returns-value]
    first = chosen.prompts(["who", "what"])
    for ids in first:
        ids.append(0)  # whoever has them may change them
    done = len(encoded)
    again = chosen.prompts(["what", "who", "what"])
    assert len(encoded) == done + 1 and encoded[-1] == 0
    assert again == [form("chatml").prompt_ids(text) for text in ("what", "who", "what")]


def test_learned_places_are_those_of_the_answers() -> None:
    assert Sample((1, 2, 3, 4), 2).learned == [2, 3]
    assert Sample(tuple(range(9)), 7, ((1, 2), (4, 6))).learned == [1, 4, 5, 7, 8]
    assert chat_of(row("a", "b", system="s", history=history("c", "d"))) == chat("c", "d", "a", system="s")
    assert THINKING in standin("thinking").get_chat_template()
