"""Conversion with the user's cells (a default control set from them, the attention regime that fits them best), and back."""

from pathlib import Path

import numpy as np

from steval.checkpoints.conversion import Conversion, ConversionOptions, ConversionReport, plan_conversion
from steval.checkpoints.export.arc_run import ArcExport, write_arc_run
from steval.checkpoints.location import local, locate_checkpoint
from steval.checkpoints.store import ControlSet, choose_controls, load_checkpoint
from steval.data.outputs import require_output
from steval.errors import ConfigError, DataError
from steval.predictor.controls import file_controls
from steval.wording import listed
from steval.workflows.checkpoints.probe import CellOptions, ProbeReport, probe_regimes


def convert(
    source: Path,
    out: Path,
    options: ConversionOptions,
    *,
    probe: Path | None = None,
    controls: Path | None = None,
    adapter: Path | None = None,
    cells: CellOptions | None = None,
) -> tuple[ConversionReport, ProbeReport | None]:
    """Convert an arc-state model; `probe` (h5ad) decides the attention regime, `controls` (h5ad) gives default controls;
    `adapter`: where LoRA adapters go, which are added to the weights otherwise.

    Raises `CheckpointError`, `ConfigError`, `DataError`; nothing is written then.
    """
    source = local(source)
    if probe is not None and options.attention is not None:
        raise ConfigError("--attention and --probe both decide the regime; give one of them")
    inputs = {
        "the model": source, "--probe": probe, "--controls": controls, "--perturbation-map": options.perturbation_map,
        "--perturbation-features": options.perturbation_features,
        **{f"--genes {path}": path for path in options.genes},
    }  # fmt: skip
    require_output(out, inputs, suffixes=(".safetensors",))
    if adapter is not None:
        require_output(adapter, {**inputs, "--out": out}, suffixes=(".safetensors",))
    cells = cells or CellOptions()
    conversion = plan_conversion(source, options)
    probed = None
    if probe is not None:
        probed = probe_regimes(conversion.as_checkpoint(), probe, cells)
        conversion = _decide(conversion, probed, probe)
    control_set = None
    if controls is not None:
        conversion, control_set = default_controls(conversion, controls, cells)
    if adapter is not None:
        return conversion.write_apart(out, adapter, control_set), probed
    return conversion.write(out, control_set), probed


def export_to_arc(source: Path, out: Path) -> ArcExport:
    """A steval checkpoint (or a run's best) as the arc-state run directory `out`; errors as `write_arc_run`."""
    return write_arc_run(load_checkpoint(locate_checkpoint(source)), out)


def _decide(conversion: Conversion, probed: ProbeReport, path: Path) -> Conversion:
    """The probe's regime, unless the file records another and the cells do not clearly say otherwise."""
    regime = conversion.model.regime
    taken = regime.attention if regime.recorded and not probed.is_clear else probed.best
    recorded = f"; the file records {regime.attention}" if regime.recorded else ""
    return conversion.with_attention(taken, f"probed with {path.name}, {probed.describe()}{recorded}")


def default_controls(conversion: Conversion, path: Path, cells: CellOptions) -> tuple[Conversion, ControlSet]:
    """At most 512 control cells per cell type of an h5ad file, and the conversion with their names.

    Cell types, and batches where the network does not embed them, may be new to the model.
    """
    manifest = conversion.manifest
    with file_controls(path, manifest, columns=cells.columns, scale=cells.scale) as pool:
        rows = choose_controls(pool.cell_types, np.random.default_rng(cells.seed))
        chosen = ControlSet(pool.inputs(rows), pool.cell_types[rows], pool.batches[rows])
    new_batches = _new_names(chosen.batches, manifest.batches)
    if new_batches and manifest.model.batch_encoder:
        raise DataError(
            f"the network embeds batches and does not know those of {path}: {listed(new_batches, 5)}; its batches are "
            f"{listed(manifest.batches, 5)}. Name the right column with --batch-col"
        )
    return (
        conversion.with_names(
            manifest.cell_types + _new_names(chosen.cell_types, manifest.cell_types), manifest.batches + new_batches
        ),
        chosen,
    )


def _new_names(names: np.ndarray, known: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted({str(name) for name in names} - set(known)))
