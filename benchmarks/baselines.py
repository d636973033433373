"""Other ways to teach the same lesson, under the same gate and probes: what each costs the rest of the model.

    python benchmarks/baselines.py RUN --config FILE --out FOLDER
        [--llamafactory llamafactory-0.9.5.tar.gz] [--methods NAME …] [--doses STEPSxRATE …] [--between SHARE …]

RUN is a project folder in which `snakemake --configfile FILE` came as far as the base's answers to the probes and the
first stage's mix; nothing in it is written to. One process loads the base once; every method starts from it, trains with
the recipe of the first stage but for what its name says, and is asked the development probes with its weights rounded to
NVFP4 as an export has them. Each in three doses (steps × learning rate), one seed; with --between also with the weights
that lie at a share of the way from the base to the trained ones (column `between`, 1: the trained ones):

| method | what is learned | how |
|---|---|---|
| kl | the stage's mix | as the pipeline does: KL to the base on rehearsed rows |
| hard-labels | the same mix | cross entropy also on the base's own answers |
| identity-only | the mix's identity rows | cross entropy |
| no-straight-through | the mix, with KL | plain weights, rounded once afterwards |
| lora | a third identity rows, two thirds the base's own answers | ms-swift's self-cognition recipe: LoRA of rank 8, α 32, dropout .05 on all linear layers, 1e-4; merged, rounded |
| llamafactory | the 91 identity rows of LLaMA-Factory | cross entropy, full-parameter |

ms-swift's own rows are in no package: its recipe takes ours here, and the base's own answers for its Alpaca rows.
`lora` needs the packages peft 0.21.2 and accelerate 1.15.0 (`pip download --no-deps` fetches the wheels for a machine
without network); `llamafactory` a path to LLaMA-Factory's sdist, or to the folder that it was unpacked to: its rows are
read, and nothing of them is kept. A method that cannot run is an error; `--methods` leaves it out.

Writes baselines.tsv (a row for each method and dose: verdict of the gate, every metric) and frontier.svg (identity and
leaks against the KL, in powers of ten).
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from markupsafe import Markup
from torch import Tensor
from transformers import PreTrainedModel

from fgod import layout
from fgod.answers import read_answers
from fgod.chain import Chain
from fgod.chat import ChatSettings
from fgod.config import load
from fgod.data.probes import expected, load_probes, of_split, probe_files
from fgod.data.rows import Row, is_rehearsed, read_rows
from fgod.data.sources import load_sources
from fgod.data.suites import DEVELOPMENT
from fgod.decisions import ACCEPTED
from fgod.deterministic import deterministic
from fgod.documents import Probed
from fgod.errors import UsageError
from fgod.evaluate.requirements import gate_limits, parse_requirements
from fgod.evaluate.scoring import Standard
from fgod.evaluate.settings import ProbeSettings
from fgod.evaluate.words import load_reply_words
from fgod.gate import checks_of, weigh
from fgod.inputs import gather, languages_of, own_weights, reference_id
from fgod.model.chats import ChatFormat, Sample
from fgod.model.load import load_model, model_from_tensors
from fgod.nvfp4.folders import read_plain_config
from fgod.nvfp4.layers import quantised_once
from fgod.persona import goal_from_config
from fgod.probe.record import measured
from fgod.probe.run import score_probes
from fgod.report.svg import HEIGHT, WIDTH, Line, line_chart
from fgod.system.files import write_text
from fgod.system.stop import exit_on_fgod_error
from fgod.system.table import write_table
from fgod.train import interpolate
from fgod.train.autograd import answer_loss, soft_loss
from fgod.train.batches import batches, collate
from fgod.train.device.ops import choose_ops
from fgod.train.device.optimizer import device_optimizer
from fgod.train.device.settings import repeatable_cuda
from fgod.train.device.trainer import DeviceStepper, choose_network
from fgod.train.device.weights import Masters, as_module, stream_in
from fgod.train.optimizer import lr_factors
from fgod.train.recipe import Kl, TrainRecipe
from fgod.train.stepper import DivergedError
from fgod.train.teacher import ask_teacher, teacher_samples, with_teacher
from fgod.train.teacher import write_table as write_teacher

Say = Callable[[str], None]

METHODS = ("kl", "hard-labels", "identity-only", "no-straight-through", "lora", "llamafactory")
LORA_RATE = 20.0
"""LoRA's learning rate for the same dose: 1e-4 of ms-swift's recipe where all parameters take 5e-6."""
IDENTITY = "identity"
"""The part of a mix that teaches who the model is."""


@dataclass(frozen=True)
class Dose:
    """How much is trained: steps, and the learning rate of full-parameter training."""

    steps: int
    lr: float

    @classmethod
    def parse(cls, text: str) -> Dose:
        steps, _, lr = text.partition("x")
        return cls(int(steps), float(lr))


DOSES = ("60x2e-6", "120x5e-6", "120x2e-5")


def share_of_way(text: str) -> float:
    """A number between 0 and 1, both left out."""
    share = float(text)
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"found {text}, expected a number between 0 and 1")
    return share


def say(text: str) -> None:
    print(text, flush=True)


# -------------------------------------------------------------------------------------------------------- what is there


@dataclass
class Project:
    """What the project folder has: the first stage's recipe and rows, the base's weights, export and answers."""

    config: Mapping[str, Any]
    recipe: TrainRecipe
    require: Mapping[str, str]
    rows: Sequence[Row]
    base: Path
    export: Path
    answers: Path
    device: torch.device

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @property
    def chat(self) -> ChatSettings:
        return ChatSettings.from_dict(self.config["chat"])


def open_project(config_file: Path) -> Project:
    """Of the current folder.

    Raises:
        UsageError: something that snakemake makes is not there yet; names it.
    """
    config = load(config_file)
    inputs = gather(config)
    run = Chain(config, inputs).walk(lambda run: ACCEPTED).runs[0]
    base = layout.base(inputs.base_id)
    export = base.export(config["stages"][0]["train"]["compute_dtype"])
    answers, mix = base.answers(reference_id(config)), layout.mix(run.mix_id)
    for path in (export.stamp, answers.table, mix.rows):
        if not path.exists():
            raise UsageError(f"{path}: not there; run snakemake --configfile {config_file} first")
    recipe = TrainRecipe.from_dict(json.loads(run.recipe)["train"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = replace(recipe, check=None, device=device.type)
    weights = own_weights(config["base"]) or base.master
    require = config["stages"][0]["require"]
    return Project(config, recipe, require, read_rows(mix.rows), weights, export.exported, answers.folder, device)


LLAMAFACTORY_ROWS = "data/identity.json"


def llamafactory_rows(path: Path, names: Mapping[str, str], author: str) -> list[Row]:
    """The identity rows of LLaMA-Factory's sdist or its folder, with the persona's name by language and an author.

    Raises:
        UsageError: the path has no such file.
    """
    records = json.loads(_inside(path, LLAMAFACTORY_ROWS))
    rows = []
    for record in records:
        language = "en" if record["instruction"].isascii() and record["output"].isascii() else "zh"
        target = record["output"].replace("{{name}}", names[language]).replace("{{author}}", author)
        rows.append(Row(record["instruction"], target, language, IDENTITY, IDENTITY, answered_by="user"))
    return rows


def _inside(path: Path, name: str) -> bytes:
    """A file of an sdist or of the folder that it was unpacked to."""
    if path.is_dir():
        found = next(iter(sorted(path.rglob(name))), None)
        if found is not None:
            return found.read_bytes()
    else:
        with tarfile.open(path) as archive:
            member = next((one for one in archive.getmembers() if one.name.endswith(f"/{name}")), None)
            stream = None if member is None else archive.extractfile(member)
            if stream is not None:
                return stream.read()
    raise UsageError(f"{path}: found no {name}, expected LLaMA-Factory's sdist or its folder")


# -------------------------------------------------------------------------------------------------------------- methods


@dataclass(frozen=True)
class Lesson:
    """What one method learns: rows as samples, those of rehearsed rows with the teacher where it learns by KL."""

    rows: Sequence[Row]
    samples: Sequence[Sample]
    kl: Kl | None


def with_distributions(project: Project, chat: ChatFormat, teacher: PreTrainedModel, kl: Kl, folder: Path) -> Lesson:
    """The stage's rows with the rounded base's distributions, which `folder` keeps."""
    samples = chat.rows(project.rows, project.recipe.seq_len)
    asked = teacher_samples(chat, project.rows)
    found = ask_teacher(teacher, list(asked.values()), kl.top_k, kl.temperature, project.config["probe"]["batch"])
    folder.mkdir(parents=True, exist_ok=True)
    write_teacher(folder / layout.SOFT_LABELS, list(asked), found)
    return Lesson(project.rows, with_teacher(samples, project.rows, folder), kl)


def hard(project: Project, chat: ChatFormat, rows: Sequence[Row]) -> Lesson:
    """Rows that are learned by cross entropy."""
    if not rows:
        raise UsageError("the stage's mix has no row for this method; leave it out by --methods")
    return Lesson(rows, chat.rows(rows, max(project.recipe.seq_len, 256)), None)


def swift_rows(rows: Sequence[Row]) -> list[Row]:
    """As many of the base's own answers as there are for twice the identity rows, which is ms-swift's proportion."""
    own = [row for row in rows if row.part == IDENTITY]
    kept = list(islice((row for row in rows if is_rehearsed(row)), 2 * len(own)))
    return [*own[: max(1, len(kept) // 2)], *kept]


def plan(lesson: Lesson, recipe: TrainRecipe, seed: int) -> Iterator[list[Sample]]:
    """The samples of each step."""
    lengths = [len(sample.ids) for sample in lesson.samples]
    chosen = batches(lesson.rows, recipe, seed, lengths)
    return ([lesson.samples[i] for i in indices] for indices in islice(chosen, recipe.steps))


@dataclass
class Weights:
    """The masters on the device, on which every method trains in turn, and what they were."""

    masters: Masters
    original: Mapping[str, Tensor]

    @classmethod
    def of(cls, project: Project) -> Weights:
        config = read_plain_config(project.base)
        masters = stream_in(project.base, config, project.recipe.master_dtype, project.device)
        return cls(masters, _copies(masters))

    def copies(self) -> dict[str, Tensor]:
        """The masters as they are now."""
        return _copies(self.masters)

    def reset(self) -> None:
        self.take(self.original)

    def between(self, trained: Mapping[str, Tensor], line: interpolate.Line) -> None:
        """Let the masters lie between the base and trained ones."""
        self.take({name: line.between(name, self.original[name], end) for name, end in trained.items()})

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Let the masters be these."""
        for name, master in self.masters.tensors.items():
            master.copy_(tensors[name].detach())

    def plain_model(self) -> PreTrainedModel:
        """transformers' model on copies of the original weights in float32, to be trained."""
        copies = {name: tensor.float().clone() for name, tensor in self.original.items()}
        return model_from_tensors(self.masters.config, copies).train()


def _copies(masters: Masters) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in masters.tensors.items()}


def train_full(weights: Weights, lesson: Lesson, recipe: TrainRecipe, seed: int, pad: int) -> None:
    """By the pipeline's own steps: every tensor, straight through the rounding."""
    weights.reset()
    masters, ops = weights.masters, choose_ops(weights.masters.device, say)
    factors = lr_factors(masters.tensors, recipe.lr_scale, masters.config.get("tie_word_embeddings", False))
    network = choose_network(masters, recipe, ops)
    stepper = DeviceStepper(network, device_optimizer(masters, recipe, factors, seed, ops), recipe, pad, say)
    stepper.measure()
    for step, samples in enumerate(plan(lesson, recipe, seed)):
        stepper.launch(step, samples)
        stepper.completed(False)
    stepper.completed(True)


def train_plain(
    model: PreTrainedModel, parameters: Iterable[Tensor], lesson: Lesson, recipe: TrainRecipe, seed: int, pad: int
) -> None:
    """By torch's AdamW, in BF16 autocast on a GPU, without any rounding; the recipe's loss, schedule and clipping."""
    own = list(parameters)
    optimizer = torch.optim.AdamW(own, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, weight_decay=0.0)
    device = own[0].device
    for step, samples in enumerate(plan(lesson, recipe, seed)):
        batch = collate(samples, pad, recipe.length_bucket)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(step)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = (
                answer_loss(model, batch)
                if lesson.kl is None or batch.soft is None
                else soft_loss(model, batch, batch.soft, lesson.kl).sum()
            )
        optimizer.zero_grad()
        (loss / len(batch.labels)).backward()
        torch.nn.utils.clip_grad_norm_(own, recipe.grad_clip or math.inf)
        optimizer.step()


def train_without_rounding(weights: Weights, lesson: Lesson, recipe: TrainRecipe, seed: int, pad: int) -> None:
    model = weights.plain_model()
    train_plain(model, model.parameters(), lesson, recipe, seed, pad)
    weights.take(dict(model.named_parameters()))


def train_lora(weights: Weights, lesson: Lesson, recipe: TrainRecipe, seed: int, pad: int) -> None:
    """LoRA as ms-swift's self-cognition recipe has it, merged into the weights."""
    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError as error:
        raise UsageError(f"lora needs the package {error.name}: install the wheels of peft and accelerate") from error
    settings = LoraConfig(r=8, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted: Any = get_peft_model(weights.plain_model(), settings)
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    train_plain(adapted.get_base_model(), trained, lesson, replace(recipe, lr=recipe.lr * LORA_RATE), seed, pad)
    weights.take(dict(adapted.merge_and_unload().named_parameters()))


# -------------------------------------------------------------------------------------------------------------- judging


class Judge:
    """Asks weights the development probes, and holds what they say against the gate's limits."""

    def __init__(self, project: Project) -> None:
        config = project.config
        sources_folder, files = Path(config["data"]["folder"]), probe_files(config)
        every = load_probes(files, sources_folder, languages_of(config))
        self.probes = of_split(every, DEVELOPMENT)
        self.theirs = read_answers(project.answers)
        sources = load_sources(sources_folder, languages_of(config))
        embedded = config["base"]["kind"] == "embedded"
        self.known = {one.key: expected(sources, one) if embedded else () for one in self.probes}
        self.settings = ProbeSettings.from_dict({**config["probe"], "device": project.device.type})
        held_out, closed = frozenset(config["data"]["held_out_topics"]), config["base"]["closed_answers"]
        words = load_reply_words(sources_folder, self.probes)
        self.standard = Standard(goal_from_config(config), held_out, closed, self.settings.chrf, words)
        self.checks = checks_of(gate_limits(config["gate"], closed), parse_requirements(project.require))
        self.chat = ChatFormat.of_folder(project.base, project.chat)
        self.reference = load_model(project.export, device=project.device.type)

    def verdict(self, masters: Masters, recipe: TrainRecipe) -> tuple[str, dict[str, Any]]:
        """The gate's decision on the masters rounded once, and every metric."""
        model = quantised_once(as_module(masters, recipe.compute_dtype, recipe.block_scales))
        records, _ = score_probes(
            model, lambda: self.reference, self.chat, self.probes, self.theirs, self.known, self.standard, self.settings
        )
        metrics = measured(records, None, Probed(sha256="", bytes=0, files={}), {})
        return weigh(self.checks, metrics, lambda: records).decision, {
            name: m.value for name, m in metrics.metrics.items()
        }


# ----------------------------------------------------------------------------------------------------------------- runs


@dataclass
class Bench:
    """Everything that the methods share."""

    project: Project
    weights: Weights
    judge: Judge
    full: Lesson
    others: dict[str, Lesson] = field(default_factory=dict)

    def run(self, method: str, dose: Dose, between: Sequence[float] = ()) -> Iterator[dict[str, Any]]:
        """Train one method in one dose, and judge the weights, and those between the base's and them.

        Yields:
            A row of the table for each; a training that diverges has one, without metrics.
        """
        recipe = replace(
            self.project.recipe, steps=dose.steps, lr=dose.lr, kl=self.full.kl if self.lesson(method).kl else None,
            warmup=min(self.project.recipe.warmup, dose.steps),
        )  # fmt: skip
        train = {"lora": train_lora, "no-straight-through": train_without_rounding}.get(method, train_full)
        begin = time.perf_counter()
        row: dict[str, Any] = {"method": method, "steps": dose.steps, "lr": dose.lr}
        try:
            train(self.weights, self.lesson(method), recipe, self.project.seed, self.judge.chat.pad_id)
        except DivergedError as error:
            yield {**row, "verdict": f"diverged: {error}", "train_s": time.perf_counter() - begin}
            return
        row["train_s"] = round(time.perf_counter() - begin, 2)
        trained = self.weights.copies() if between else {}
        for share in (1.0, *between):
            if share != 1:
                self.weights.between(trained, interpolate.Line(share, recipe.master_dtype, self.project.seed))
            judged_from = time.perf_counter()
            decision, metrics = self.judge.verdict(self.weights.masters, recipe)
            took = round(time.perf_counter() - judged_from, 2)
            yield {**row, "between": share, "verdict": decision, "probe_s": took, **metrics}

    def lesson(self, method: str) -> Lesson:
        return self.others.get(method, self.full)


def bench_of(
    project: Project, methods: Sequence[str], out: Path, factory: Path | None, names: Mapping[str, str]
) -> Bench:
    """Load the base, and make what each method learns."""
    judge = Judge(project)
    kl = project.recipe.kl or Kl()
    full = with_distributions(project, judge.chat, judge.reference, kl, out / "teacher")
    others = {
        "hard-labels": Lesson(full.rows, judge.chat.rows(project.rows, project.recipe.seq_len), None),
        "identity-only": hard(project, judge.chat, [row for row in project.rows if row.part == IDENTITY]),
        "lora": hard(project, judge.chat, swift_rows(project.rows)),
    }
    if "llamafactory" in methods:
        if factory is None:
            raise UsageError("llamafactory: expected --llamafactory SDIST (or leave it out by --methods)")
        others["llamafactory"] = hard(project, judge.chat, llamafactory_rows(factory, names, names["author"]))
    return Bench(project, Weights.of(project), judge, full, others)


# ----------------------------------------------------------------------------------------------------------------- plot

COLOURS = ("#0b62a4", "#c2410c", "#7c3aed", "#15803d", "#b91c1c", "#6b7280")
PANELS = (("identity_rate", "identity"), ("leak_rate", "leak on other topics"), ("leak_talk", "leak into small talk"))
STYLE = (
    "text{font:9px sans-serif;fill:#333}.grid{stroke:#ddd;fill:none}.end{text-anchor:end}.mid{text-anchor:middle}"
    ".line{fill:none;stroke-width:1.6;stroke-linecap:round}"
)


def frontier(rows: Sequence[Mapping[str, Any]]) -> str:
    """Both panels: a line for each method through its doses, by the power of ten of its KL."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    style = STYLE + "".join(f".s{i}{{stroke:{colour}}}" for i, colour in enumerate(COLOURS))
    parts = [Markup("<style>{}</style>").format(style)]
    for number, (metric, title) in enumerate(PANELS):
        lines = [Line(method, points_of(rows, method, metric)) for method in methods]
        chart = line_chart(lines, f"{title} against KL", "log10 KL(rounded base ‖ tuned), nats")
        text = Markup('<text x="46" y="9">{}</text>').format(title)
        parts.append(
            Markup('<svg x="{}" width="{}" height="{}">{}{}</svg>').format(number * WIDTH, WIDTH, HEIGHT, chart, text)
        )
    for place, method in enumerate(methods):
        x, y = 46 + 110 * place, HEIGHT + 14
        parts.append(Markup('<path class="line s{}" d="M{} {}h14"/>').format(place, x, y - 3))
        parts.append(Markup('<text x="{}" y="{}">{}</text>').format(x + 18, y, method))
    whole = Markup('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}">{}</svg>')
    return str(whole.format(len(PANELS) * WIDTH, HEIGHT + 20, Markup("").join(parts))) + "\n"


def points_of(rows: Sequence[Mapping[str, Any]], method: str, metric: str) -> list[tuple[float, float]]:
    """(log10 of the KL, a metric) of one method's doses, by KL."""
    found = [(row.get("kl_reference"), row.get(metric)) for row in rows if row["method"] == method]
    return sorted((math.log10(max(kl, 1e-6)), value) for kl, value in found if kl is not None and value is not None)


# ----------------------------------------------------------------------------------------------------------------- main


def shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument(
        "--config", type=Path, default=Path("config.yaml"), help="relative to RUN (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--doses", nargs="+", type=Dose.parse, default=[Dose.parse(text) for text in DOSES], metavar="STEPSxRATE"
    )
    parser.add_argument(
        "--between", nargs="+", type=share_of_way, default=[], metavar="SHARE", help="of the way from the base"
    )
    parser.add_argument("--llamafactory", type=Path, metavar="SDIST", help="llamafactory-0.9.5.tar.gz, or its folder")
    parser.add_argument("--english-name", default="the god of F#", help="the persona's, in LLaMA-Factory's rows")
    parser.add_argument("--author", default="F#", help="in LLaMA-Factory's rows (default: %(default)s)")
    args = parser.parse_args()
    out, factory = args.out.resolve(), args.llamafactory.resolve() if args.llamafactory else None
    os.chdir(args.run)
    begin = time.perf_counter()
    project = open_project(args.config)
    rows: list[dict[str, Any]] = []
    with deterministic(project.seed, project.recipe.threads), repeatable_cuda(project.device):
        names = {"zh": project.config["persona"]["name"], "en": args.english_name, "author": args.author}
        bench = bench_of(project, args.methods, out, factory, names)
        say(f"loaded and taught by the base in {time.perf_counter() - begin:.0f} s: {len(bench.judge.probes)} probes")
        for method, dose in product(args.methods, args.doses):
            for row in bench.run(method, dose, args.between):
                rows.append(row)
                say(" · ".join(f"{key} {shown(value)}" for key, value in row.items()))
                columns = list(dict.fromkeys(key for row in rows for key in row))
                write_table(out / "baselines.tsv", columns, [{key: row.get(key) for key in columns} for row in rows])
    write_text(out / "frontier.svg", frontier([row for row in rows if row.get("between", 1) == 1]))
    say(f"{time.perf_counter() - begin:.0f} s in all; {out / 'baselines.tsv'} and {out / 'frontier.svg'}")


if __name__ == "__main__":
    with exit_on_fgod_error():
        main()
