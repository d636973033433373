"""Each config held against this machine: memory, with the knob that would make it fit, disk, and time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fgod import layout
from fgod.doctor.finding import Finding, State, ok
from fgod.doctor.machine import Config, Look
from fgod.doctor.told import Benchmark, Speed
from fgod.errors import FgodError
from fgod.guard.cap import capped_mib
from fgod.guard.limits import MIB_PER_GB
from fgod.guard.pools import Pool
from fgod.guard.predict import Knob
from fgod.outlook import Disk, disk_of, hours, recorded, size
from fgod.sizes import BaseSizes, NotHereError
from fgod.system.procfs import MIB
from fgod.torch_build import devices_of
from fgod.train.recipe import MEMORY, TrainRecipe

SMALL = 3_000_000
"""Parameters up to which a model is timed as it is."""

SMALL_VOCABULARY = 8192

KEPT = (
    "architectures", "model_type", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
    "head_dim", "tie_word_embeddings", "rms_norm_eps", "rope_parameters", "rope_theta", "hidden_act",
    "attention_bias", "max_position_embeddings",
)  # fmt: skip
"""Keys of a config.json that a smaller model of the same widths has too."""

ELSEWHERE = "take a machine with one, or set train.device and probe.device to cpu (another recipe, with other bits)"


def smaller(base: BaseSizes) -> BaseSizes:
    """A model that can be timed in seconds: of large ones a layer and a part of the vocabulary, in the same widths."""
    if base.parameters <= SMALL:
        return base
    config = {key: base.config[key] for key in KEPT if key in base.config}
    vocabulary = min(int(base.config["vocab_size"]), SMALL_VOCABULARY)
    return BaseSizes({**config, "num_hidden_layers": 1, "vocab_size": vocabulary}, base.where, base.stored)


def benchmarks_of(configs: Sequence[Config], gpu: bool) -> tuple[Benchmark, ...]:
    """What is to be timed: a model of the widths of each config whose devices are here, by its first stage."""
    found = []
    for one in configs:
        if one.checked is None or one.base is None or ("cuda" in devices_of(one.checked) and not gpu):
            continue
        recipe = TrainRecipe.from_dict(one.checked["stages"][0]["train"])
        probe = one.checked["probe"]
        found.append(Benchmark(one.name, smaller(one.base).config, recipe.to_dict(), probe["batch"], probe["device"]))
    return tuple(found)


def config_findings(look: Look) -> Iterator[Finding]:
    """What each config needs, and whether it is here."""
    for config in look.configs:
        yield from _config(look, config)


def _config(look: Look, config: Config) -> Iterator[Finding]:
    wrong: State = "fault" if config.own else "note"
    if config.checked is None or config.base is None:
        assert config.error is not None
        not_here = isinstance(config.error, NotHereError)
        expected = "the weights that it starts from" if not_here else "a config that can be read"
        todo = "what it says; until then nothing is known of memory, time and disk" if not_here else "mend what it says"
        yield Finding(config.name, wrong, str(config.error), expected, todo)
        return
    if "cuda" in devices_of(config.checked) and not look.gpus:
        yield Finding(f"{config.name}: GPU", wrong, "none is here", "one, for the device cuda", ELSEWHERE)
        return
    yield _memory(look, config, config.checked, config.base, wrong)
    yield from _time_and_disk(look, config, config.checked, config.base, wrong)


# -------------------------------------------------------------------------------------------------------------- memory


@dataclass(frozen=True)
class Fit:
    """Of a stage: bytes that it needs with rows of seq_len tokens, bytes that the guard allows, and what would help.

    Args:
        knobs: of the recipe, that make it fit; empty where none does.
        limit_gb: of the guard, that would; None: the machine has not enough.
    """

    stage: str
    needed: int
    allowed: int
    knobs: tuple[Knob, ...] = ()
    limit_gb: int | None = None

    @property
    def fits(self) -> bool:
        return self.needed <= self.allowed


def pool_of(pools: Sequence[Pool], device: str) -> Pool:
    """Where a device's memory comes from: of several GPUs the smallest."""
    gpus = [pool for pool in pools if pool.uuids]
    return min(gpus, key=lambda pool: pool.limit_mib) if device == "cuda" and gpus else pools[0]


def allowed_bytes(pool: Pool, device: str, limit_gb: float) -> int:
    """What a training may be predicted to need under a limit of the guard, as training itself counts.

    Args:
        pool: with the machine's own limit.
    """
    limit = min(limit_gb * MIB_PER_GB, pool.limit_mib)
    if device == "cpu":
        return int(limit * MIB)
    return int(capped_mib(max(limit - (pool.before_mib or 0.0) if pool.whole else limit, 1.0)) * MIB)


def applied(train: Mapping[str, Any], knobs: Sequence[Knob]) -> dict[str, Any]:
    """A stage's `train` with knobs turned. The keys that a row of the memory table gives are left open with it."""
    found = dict(train)
    for knob in knobs:
        key = knob.key.removeprefix("train.")
        found[key] = {"true": True}.get(str(knob.value), knob.value)
        if key == "memory":
            found |= dict.fromkeys(asdict(MEMORY[str(knob.value)]))
    return found


def fit_of(stage: Mapping[str, Any], base: BaseSizes, pool: Pool, limit_gb: float) -> Fit:
    """Whether a stage fits, and what would make it fit."""
    import torch

    from fgod.system.procfs import resident_mib
    from fgod.train.memory import Prediction, knobs_to_fit
    from fgod.train.stage import prediction  # which makes this process as large as one that trains

    process = int(resident_mib() * MIB)

    def predicted(recipe: TrainRecipe) -> Prediction:
        rows, width = recipe.micro_batch or recipe.batch, recipe.seq_len
        device = torch.device(recipe.device)
        return prediction(base.config, recipe, device, rows, width, rows * width // 2, process)

    recipe = TrainRecipe.from_dict(stage["train"])
    needed, allowed = predicted(recipe).total, allowed_bytes(pool, recipe.device, limit_gb)
    if needed <= allowed:
        return Fit(stage["name"], needed, allowed)
    knobs, _ = knobs_to_fit(recipe, predicted, allowed)
    turned = TrainRecipe.from_dict(applied(stage["train"], knobs))
    helps = predicted(turned).total <= allowed
    most = math.floor(pool.limit_mib / MIB_PER_GB)
    higher = range(math.ceil(limit_gb), most + 1)
    enough = next((gb for gb in higher if allowed_bytes(pool, recipe.device, gb) >= needed), None)
    return Fit(stage["name"], needed, allowed, tuple(knobs) if helps else (), enough)


def in_words(train: Mapping[str, Any], knobs: Sequence[Knob]) -> str:
    """`train.micro_batch to 4 and train.memory to 24gb (and leave out train.master_dtype)`."""
    words = []
    for knob in knobs:
        stated = asdict(MEMORY[str(knob.value)]) if knob.key == "train.memory" else {}
        out = ", ".join(f"train.{key}" for key in stated if train.get(key) is not None)
        words.append(f"{knob.key} to {knob.value}{f' (and leave out {out})' if out else ''}")
    return " and ".join(words)


def _memory(look: Look, config: Config, checked: Mapping[str, Any], base: BaseSizes, wrong: State) -> Finding:
    limit_gb = float(checked["guard"]["limit_gb"])
    fits = [fit_of(stage, base, pool_of(look.pools, stage["train"]["device"]), limit_gb) for stage in checked["stages"]]
    name, largest = f"{config.name}: memory", max(fits, key=lambda one: one.needed - one.allowed)
    found = f"{largest.stage} needs {size(largest.needed)}, and {size(largest.allowed)} are allowed"
    rows = "with rows of train.seq_len tokens"
    if largest.fits:
        return ok(name, f"{found} ({rows})")
    stages = {stage["name"]: stage["train"] for stage in checked["stages"]}
    todo = "; ".join(_cure(one, stages[one.stage]) for one in fits if not one.fits)
    state: State = "note" if checked["guard"]["too_large_ok"] else wrong
    return Finding(name, state, f"{found} ({rows})", f"at most {size(largest.allowed)}", todo)


def _cure(fit: Fit, train: Mapping[str, Any]) -> str:
    ways = []
    if fit.limit_gb is not None:
        ways.append(f"set guard.limit_gb to {fit.limit_gb}, which this machine has")
    if fit.knobs:
        ways.append(f"set {in_words(train, fit.knobs)}")
    return f"{fit.stage}: {', or '.join(ways) or 'no knob is enough: take a larger machine, or a smaller model'}"


# ------------------------------------------------------------------------------------------------------- time and disk


def _time_and_disk(
    look: Look, config: Config, checked: Mapping[str, Any], base: BaseSizes, wrong: State
) -> Iterator[Finding]:
    """Of what is still to be trained of a config of one's own; of another config of a whole first fit."""
    trains, with_base = [(stage["name"], TrainRecipe.from_dict(stage["train"])) for stage in checked["stages"]], True
    what = "a whole fit"
    if config.own:
        from fgod.chain import Chain
        from fgod.inputs import gather
        from fgod.plan import plan, to_train

        try:
            chain = Chain(checked, gather(checked))
            trains = to_train(plan(chain)[0])
        except FgodError as error:
            yield Finding(f"{config.name}: plan", wrong, str(error), "a plan (fgod plan)", "mend what it says")
            return
        with_base, what = not layout.base(chain.inputs.base_id).stamp.exists(), "what is still to train"
    if not trains:
        yield ok(f"{config.name}: time", "nothing is left to train")
        return
    yield ok(f"{config.name}: time", f"{_time(look, config, checked, base, trains)}, for {what}")
    needed = disk_of(checked, base, {stage for stage, _ in trains}, with_base)
    yield _disk(look, config.name, needed, checked, wrong)


def _time(
    look: Look,
    config: Config,
    checked: Mapping[str, Any],
    base: BaseSizes,
    trains: Sequence[tuple[str, TrainRecipe]],
) -> str:
    if not look.benchmarks:
        times = [recorded(stage, recipe) for stage, recipe in trains]
        known = [one for one in times if one is not None]
        if len(known) < len(times):
            return "not known: there is no speed on record, and none was measured (--quick)"
        return f"training about {hours(sum(one.seconds for one in known))}, by the record"
    speed = next((one for one in look.told.speeds if one.name == config.name and not one.error), None)
    if speed is None:
        return "not known: the benchmark came to no result"
    training, answers = estimate(speed, checked, base, [recipe for _, recipe in trains])
    return f"training about {hours(training)}, answers at most {hours(answers)}, by the benchmark"


def estimate(
    speed: Speed, checked: Mapping[str, Any], base: BaseSizes, recipes: Sequence[TrainRecipe]
) -> tuple[float, float]:
    """Seconds of training, and at most of answers: in proportion to parameters, and to the rows of a step.

    The base and each stage are asked all probes, the base its rehearsal prompts too, and each reply is as long as it
    may be.
    """
    ratio = base.parameters / smaller(base).parameters
    timed = TrainRecipe.from_dict(checked["stages"][0]["train"])
    step = speed.step_s * ratio / (timed.batch * timed.seq_len)
    training = sum(step * one.batch * one.seq_len * one.steps for one in recipes)
    if checked["base"]["kind"] == "embedded":
        training += step * checked["base"]["batch"] * timed.seq_len * checked["base"]["steps"]
    return training, speed.token_s * ratio * _tokens_of_answers(checked, len(recipes))


def _tokens_of_answers(checked: Mapping[str, Any], stages: int) -> int:
    """How often the next token of a batch is computed."""
    from fgod.data.probes import asked_in, load_probes, probe_files
    from fgod.inputs import languages_of, rehearsed_parts

    probe, data = checked["probe"], checked["data"]
    rehearse, own = data["rehearse"], data.get("self_asked") or {}
    probes = len(asked_in(load_probes(probe_files(checked), Path(data["folder"]), languages_of(checked))))
    rows = sum(rehearse[key] for key in ("general_rows", "replay_rows", "disambiguation_rows"))
    rows += sum(part["rows"] for part in rehearsed_parts(checked).values())
    asked = math.ceil(probes / probe["batch"]) * (1 + stages) * probe["max_new_tokens"]
    asked += math.ceil((rows + own.get("prompts", 0)) / probe["batch"]) * rehearse["max_new_tokens"]
    asked += math.ceil(own.get("prompts", 0) / probe["batch"]) * own.get("max_tokens", 0)
    return int(asked)


def _disk(look: Look, name: str, needed: Disk, checked: Mapping[str, Any], wrong: State) -> Finding:
    free = look.machine.free(look.folder)
    found = f"about {size(needed.total)} are needed, {size(free)} are free"
    if needed.total <= free:
        return ok(f"{name}: disk", found)
    ways = [f"free {size(needed.total - free)} here, or work on another disk"]
    if needed.total - needed.work <= free:
        ways.append("set checkpoint.secs to 0 (no checkpoints: a training that is stopped begins anew)")
    elif len(checked.get("release", {}).get("formats", ())) > 1:
        ways.append("name fewer release.formats")
    return Finding(f"{name}: disk", wrong, found, f"{size(needed.total)} free", "; or ".join(ways))
