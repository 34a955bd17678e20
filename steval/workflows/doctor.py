"""`steval doctor`: findings about a configuration (ours or arc-state's) or a run, each with evidence and what to change."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steval.errors import ConfigError
from steval.settings import read_yaml
from steval.trainer.config import FinetuneConfig
from steval.trainer.progress.rundir import RunDirectory
from steval.trainer.recipes import config_path
from steval.trainer.settings.arc_translation import arc_values, translate
from steval.trainer.settings.network import names_backbone
from steval.wording import counted
from steval.workflows.curves import read_curves
from steval.workflows.symptoms import Symptom, curve_symptoms

CLIP_LIMIT = 5.0
"""Clipping above 1 to 5 lets single batches move the weights far."""
RECOMMENDED_DECAY = (1e-3, 5e-3)
LARGEST_BACKBONE_RATE = 3e-4
"""Of pre-trained weights; a network from nothing bears more."""
DECODER_SHARE = 10.0
"""The two heads' losses should be within this factor of each other."""

SEVERITIES = ("problem", "warning", "note")


def diagnose(target: Path) -> list[Symptom]:
    """Findings on `target`: a configuration file or a recipe's name, a table of metrics, or a run directory; problems first.

    Raises `ConfigError` where there is neither, or where a configuration cannot be read.
    """
    target = config_path(target)
    if not target.exists():
        raise ConfigError(f"no such configuration or run: {target}")
    if not target.is_file() and not target.is_dir():
        raise ConfigError(f"{target} is a pipe or device, neither a configuration file nor a run directory")
    if target.is_file() and target.suffix == ".csv":
        return _sorted(curve_symptoms(read_curves(target)))
    file = target if target.is_file() else target / "config.yaml"
    findings: list[Symptom] = []
    clip = None
    if file.is_file():
        values = read_yaml(file)
        if is_arc_config(values):
            with arc_values(file, values):
                found, clip = _arc_findings(file, values)
        else:
            record = RunDirectory(target).read_record() if target.is_dir() else {}
            found, clip = _own_findings(FinetuneConfig.load(file), record)
        findings += found
    if target.is_dir():
        findings += _run_findings(target, clip, has_config=file.is_file())
    return _sorted(findings)


def is_arc_config(values: Mapping[str, Any]) -> bool:
    """Whether a configuration is arc-state's: its top level has `model` and `training`, ours has `phases`."""
    return "phases" not in values and {"model", "training"} <= set(values)


def _run_findings(directory: Path, clip: float | None, *, has_config: bool) -> list[Symptom]:
    tables = list(directory.rglob("metrics.csv"))
    if not tables:
        if has_config:
            return []
        raise ConfigError(
            f"{directory} holds neither config.yaml nor metrics.csv; name a configuration file or a run directory"
        )
    curves = read_curves(directory)
    findings = curve_symptoms(curves, clip)
    embedding, gene = curves.get("train/embedding"), curves.get("train/gene")
    if embedding is not None and gene is not None and gene.values[-1] > 0 and embedding.values[-1] > 0:
        ratio = float(embedding.values[-1] / gene.values[-1])
        if not 1 / DECODER_SHARE <= ratio <= DECODER_SHARE:
            evidence = f"train/embedding ends at {embedding.values[-1]:.4g}, train/gene at {gene.values[-1]:.4g}"
            change = f"set loss.decoder_weight near {ratio:.2g}, so that both heads weigh alike"
            findings.append(Symptom("warning", "decoder weight against dimensions", evidence, change))
    return findings


def _own_findings(config: FinetuneConfig, record: Mapping[str, Any]) -> tuple[list[Symptom], float]:
    """Of a configuration; `record` is the run's, empty where there is none, and tells which weights it began with."""
    findings = _value_findings(
        config.optimiser.clip, config.optimiser.weight_decay, "optimiser.clip", "optimiser.weight_decay"
    )
    if config.data.input_key not in (None, "X_hvg"):
        findings.append(
            _mismatch(f"data.input_key is {config.data.input_key!r}", "leave data.input_key out (recipe raw-staged)")
        )
    fresh = record["init_from"] is None if "init_from" in record else names_backbone(config.network)
    for number in range(len(config.phases)):
        findings += _phase_findings(config, number, fresh=fresh)
    if record:
        findings += _start_findings(config, fresh) + _end_findings(config, record)
    return findings, config.optimiser.clip


def _start_findings(config: FinetuneConfig, fresh: bool) -> list[Symptom]:
    """What the weights that a run began with have to do with what it trains."""
    frozen = [phase for phase in config.phases if phase.frozen_blocks]
    if fresh and frozen:
        names, steps = ", ".join(phase.name for phase in frozen), sum(phase.steps for phase in frozen)
        evidence = (
            f"the run began with random weights, and phase {names} ({steps:,} of {counted(config.total_steps, 'step')}) freezes "
            f"{', '.join(frozen[0].frozen_blocks)}: what it freezes never learned anything"
        )
        change = "start with --init-from CKPT, or take recipe quick-cpu or full"
        return [Symptom("problem", "frozen random backbone", evidence, change)]
    if not fresh and len(config.phases) == 1 and not frozen:
        evidence = f"the only phase, {config.phases[0].name!r}, trains the whole pre-trained backbone"
        change = "train encoders and outputs first (recipe raw-staged)"
        return [Symptom("note", "no staged unfreezing", evidence, change)]
    return []


def _end_findings(config: FinetuneConfig, record: Mapping[str, Any]) -> list[Symptom]:
    """Whether the run came to its end, and whether that came too early."""
    step, best, status = record.get("step"), record.get("best") or {}, record.get("status")
    if status != "finished":
        where = {"stopped": "stopped", "calibrating": "was cut off while choosing how predictions become cells,"}.get(
            str(status)
        )
        where = "did not come to its end" if where is None or step is None else f"{where} after step {step:,}"
        evidence = f"the run {where}; it has {counted(config.total_steps, 'step')}"
        change = "unless it is still at work, continue it: steval finetune --resume RUN"
        return [Symptom("warning", "not finished", evidence, change)]
    if best and best["step"] == step:
        evidence = (
            f"{best['metric']} is best at the last step, {step:,} ({best['value']:.4g}): it was still getting better"
        )
        change = f"train longer: raise phases.{len(config.phases) - 1}.steps"
        return [Symptom("note", "best is the last step", evidence, change)]
    return []


def _phase_findings(config: FinetuneConfig, number: int, *, fresh: bool) -> list[Symptom]:
    phase = config.phases[number]
    place = f"phases.{number}"
    findings = []
    trains_backbone = bool({"top", "middle", "lower"} & set(phase.trains))
    if trains_backbone and not fresh and phase.rates.backbone > LARGEST_BACKBONE_RATE:
        evidence = f"{place}.rates.backbone is {phase.rates.backbone:g} in phase {phase.name!r}"
        findings.append(
            Symptom("warning", "backbone rate is high", evidence, f"at most {LARGEST_BACKBONE_RATE:g}; 1e-4 is usual")
        )
    if number and phase.start == "last":
        evidence = f"{place}.start is 'last': phase {phase.name!r} starts from the last weights, not the best"
        findings.append(Symptom("warning", "starts from the last checkpoint", evidence, f"set {place}.start to best"))
    if phase.warmup_fraction == 0 and phase.schedule != "one-cycle":
        evidence = f"{place}.warmup_fraction is 0: a fresh optimiser starts at its peak rate"
        findings.append(Symptom("warning", "no warm-up", evidence, f"set {place}.warmup_fraction to 0.05"))
    if "outputs" not in phase.trains and number == 0:
        evidence = f"phase {phase.name!r} does not train the outputs; layers re-initialised by a change of shape would stay random"
        findings.append(Symptom("warning", "outputs frozen at the start", evidence, f"add outputs to {place}.trains"))
    return findings


def _value_findings(clip: float | None, decay: float | None, clip_key: str, decay_key: str) -> list[Symptom]:
    findings = []
    if clip is None or clip > CLIP_LIMIT:
        evidence = f"{clip_key} is {clip if clip is not None else 'not set'}; single batches can move the weights far"
        findings.append(Symptom("problem", "clip above 1 to 5", evidence, f"set {clip_key} to 1.0"))
    low, high = RECOMMENDED_DECAY
    if not decay:
        findings.append(
            Symptom(
                "warning",
                "no effective weight decay",
                f"{decay_key} is {decay}",
                f"set {decay_key} to {low:g} to {high:g}",
            )
        )
    elif not low <= decay <= high:
        evidence = f"{decay_key} is {decay:g}, outside {low:g} to {high:g}"
        findings.append(Symptom("note", "weight decay is unusual", evidence, f"set {decay_key} to {low:g} to {high:g}"))
    return findings


def _mismatch(evidence: str, change: str) -> Symptom:
    published = (
        "the evaluator compares genes; the published rounds with embedding input scored under 0.2, raw expression 5.7"
    )
    return Symptom("problem", "representation mismatch", f"{evidence}; {published}", change)


def _arc_findings(path: Path, values: Mapping[str, Any]) -> tuple[list[Symptom], float | None]:
    training = dict(values.get("training") or {})
    clip = training.get("gradient_clip_val")
    findings = _value_findings(clip, RECOMMENDED_DECAY[0], "training.gradient_clip_val", "training.weight_decay")
    findings.append(
        Symptom(
            "problem", "no effective weight decay",
            f"training.weight_decay is {training.get('weight_decay')}, which nothing reads: arc-state's optimiser is plain Adam",
            "fine-tune with steval (AdamW, optimiser.weight_decay 1e-3 to 5e-3 on matrices only)",
        )
    )  # fmt: skip
    embed_key = ((values.get("data") or {}).get("kwargs") or {}).get("embed_key")
    if embed_key not in (None, "X_hvg"):
        findings.append(_mismatch(f"data.kwargs.embed_key is {embed_key!r}", "train on expression: embed_key null"))
    kwargs = dict((values.get("model") or {}).get("kwargs") or {})
    if kwargs.get("freeze_pert_backbone"):
        findings.append(
            Symptom(
                "problem", "frozen output layer",
                "model.kwargs.freeze_pert_backbone also freezes project_out: re-initialised by a change of shape it never trains",
                "fine-tune with steval: phase A trains encoders and outputs, the backbone alone is frozen",
            )
        )  # fmt: skip
    translation = translate(path)
    findings += [
        Symptom("warning", "dead key", f"{key}: {reason}", "remove it; it changes nothing")
        for key, reason in translation.dead
    ]
    findings += [
        Symptom("warning", "not carried over", f"{key}: {reason}", "say it anew in the configuration here")
        for key, reason in translation.left_out
    ]
    return findings, None if clip is None else float(clip)


def _sorted(findings: list[Symptom]) -> list[Symptom]:
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
