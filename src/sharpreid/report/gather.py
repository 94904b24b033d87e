"""Recorded runs beside the paper's tables: what is there, what compares, and what is missing."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sharpreid.attention.context import ContextUnit
from sharpreid.attention.soft import ResidualAttentionMask
from sharpreid.config import CONF_DIR
from sharpreid.report.comparison import Job, load_jobs
from sharpreid.report.summary_files import points
from sharpreid.report.table import caveats, percent, protocol_line

_PACKAGED = Path(__file__).with_name("paper.csv")
PAPER = _PACKAGED if _PACKAGED.is_file() else Path(__file__).parents[3] / "experiments" / "paper.csv"
"""Every number of the paper's tables: inside the installed package, or of the checkout."""

METHODS = {
    "ResNet-50 baseline": "baseline",
    "Baseline + SAB": "sab",
    "Baseline + SAB + CU": "sab_cu",
    "Baseline + SAB + CU + TV": "sab_cu_tv",
    "Our SAN": "sab_cu_tv",
    "Our sharp attention network": "sab_cu_tv",
    "Residual attention network [19]": "residual_attention",
}
"""The paper's rows that can be run here -> their name as ``method=``."""

TABLES = ("Table I", "Table II", "Table III", "Table IV", "Table V", "Table VI")

COMMANDS = {"Table I": "table1", "Table IV": "table4"}
"""Table -> the experiment that fills it; "Our SAN" of the other tables is row 4 of Table I."""


@dataclass(frozen=True)
class Run:
    """A finished run: its record, where it is, and which of the paper's rows it is."""

    job: Job
    record: Mapping[str, Any]
    config: DictConfig
    method: str

    @property
    def data(self) -> str:
        """Name of the data set."""
        return str(self.record["dataset"]["name"])

    @property
    def checkpoint(self) -> Path:
        """Of the trained network; may be gone."""
        return self.job.folder / str(self.record.get("checkpoint", "checkpoints/final.ckpt"))


@dataclass(frozen=True)
class Cell:
    """A number of the paper beside ours."""

    paper: str
    ours: str
    difference: str
    protocol: str
    runs: int


@dataclass(frozen=True)
class PaperRow:
    """A row of one of the paper's tables, for one data set."""

    name: str
    category: str
    dataset: str
    cells: Mapping[str, Cell]
    """Metric -> the paper's number and ours."""
    missing: str
    """What fills the row; empty if it is filled or cannot be run here."""


def method_of(config: DictConfig) -> str:
    """Which of ``method=`` a run's config is, whatever it was called with; else its blocks.

    >>> method_of(OmegaConf.create({"model": {"blocks": [], "sampler": {}}, "objective": {"mu": 0.0}}))
    'baseline'
    """
    model = config.model
    blocks, context = sorted(model.blocks), sorted(model.get("context_blocks") or [])
    if not blocks:
        return "baseline"
    sampler = str(model.sampler.get("_target_", ""))
    all_blocks, penalised = blocks == [1, 2, 3, 4], bool(config.objective.mu)
    if all_blocks and sampler.endswith("SigmoidGate") and not context and not penalised:
        return "sigmoid_gate"
    if context and str(model.context_unit.get("_target_", "")).endswith("ResidualAttentionMask"):
        return "residual_attention"
    known = {((), False): "sab", ((1, 2, 3), False): "sab_cu", ((1, 2, 3), True): "sab_cu_tv"}
    if all_blocks and sampler.endswith("MaskSampler") and (tuple(context), penalised) in known:
        return known[tuple(context), penalised]
    label = "blocks " + "+".join(map(str, blocks))
    label += f", context {'+'.join(map(str, context))}" if context else ""
    label += "" if sampler.endswith("MaskSampler") else f", {sampler.rpartition('.')[2]}"
    return label + (", TV" if penalised else "")


def gather(folders: Iterable[Path]) -> tuple[list[Run], list[Job]]:
    """All finished runs below the folders, and the jobs that have no score or no readable config.

    Raises:
        FileNotFoundError: a folder does not exist.
    """
    runs, others = [], []
    seen: set[Path] = set()
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; expected one that runs wrote to (outputs)")
        for job in load_jobs(folder):
            if job.folder.resolve() in seen:
                continue
            seen.add(job.folder.resolve())
            config = _config(job)
            if job.record is None or config is None:
                others.append(job)
            else:
                runs.append(Run(job, job.record, config, method_of(config)))
    return runs, others


def _config(job: Job) -> DictConfig | None:
    try:
        config = OmegaConf.load(job.folder / "config.yaml")
    except (OSError, ValueError):
        return None
    return config if isinstance(config, DictConfig) and {"model", "objective"} <= set(config) else None


def read_paper(path: Path = PAPER) -> list[dict[str, str]]:
    """The rows of paper.csv."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def paper_table(place: str, runs: Sequence[Run], paper: Sequence[Mapping[str, str]]) -> list[PaperRow]:
    """One of the paper's tables with ours beside it; only runs that compare with the paper get in.

    Args:
        place: such as ``Table I``.
        runs: of `gather`.
        paper: of `read_paper`.
    """
    found: dict[tuple[str, str, str], dict[str, str]] = {}
    for line in paper:
        if line["place"] == place:
            found.setdefault((line["row"], line["category"], line["dataset"]), {})[line["metric"]] = line[
                "value"
            ]
    rows = []
    for (name, category, dataset), values in found.items():
        method = METHODS.get(name)
        ours = comparable(runs, method, dataset) if method else []
        cells = {
            metric: _parameters(method, metric, value)
            if metric.startswith("parameters")
            else _cell(metric, value, ours)
            for metric, value in values.items()
        }
        missing = ""
        if method and not ours:
            experiment = COMMANDS.get(place, "table1")
            missing = f"python -m sharpreid.train +experiment={experiment} data={dataset} method={method}"
        rows.append(PaperRow(name, category, dataset, cells, missing))
    return rows


def comparable(runs: Sequence[Run], method: str | None, dataset: str) -> list[Run]:
    """The runs of a method on a data set that may stand beside the paper's numbers (`caveats` has none)."""
    return [run for run in runs if (run.method, run.data) == (method, dataset) and not caveats(run.record)]


def _cell(metric: str, paper: str, runs: Sequence[Run]) -> Cell:
    scores = [100 * score for run in runs if (score := run.job.score(metric)) is not None]
    if not scores:
        return Cell(paper, "-", "-", "", 0)
    ours = f"{fmean(scores):.1f}"
    if len(scores) > 1:
        ours += f" ({min(scores):.1f} to {max(scores):.1f})"
    protocols = dict.fromkeys(protocol_line(run.record["protocol"]) for run in runs)
    return Cell(paper, ours, points(fmean(scores) - float(paper)), " / ".join(protocols), len(scores))


def _parameters(method: str | None, metric: str, paper: str) -> Cell:
    """Convolution weights of the mask branches, in millions: counted, not trained."""
    place = metric.removeprefix("parameters_")
    blocks = (1, 2, 3) if place == "total" else (int(place.removeprefix("block")),)
    count = sum(_convolution_weights(method, 2 ** (7 + block)) for block in blocks) / 1e6
    return Cell(paper, f"{count:.2f}", f"{count - float(paper):+.2f}", "counted", 0)


def _convolution_weights(method: str | None, channels: int) -> int:
    unit = (
        ResidualAttentionMask(channels=channels, lowest_channels=2048, strides="v1")
        if method == "residual_attention"
        else ContextUnit(channels=channels, strides="v1", upsample="deconv")
    )
    return sum(parameter.numel() for parameter in unit.parameters() if parameter.ndim == 4)


def sweeps(runs: Sequence[Run], others: Sequence[Job]) -> dict[str, list[Job]]:
    """The jobs of each named experiment that has several, finished or not, in the order of their start."""
    found: dict[str, list[Job]] = {}
    for job in sorted([*(run.job for run in runs), *others], key=lambda job: job.started):
        found.setdefault(job.name, []).append(job)
    return {name: jobs for name, jobs in found.items() if len(jobs) > 1}


def summary_of(name: str) -> tuple[str | None, str]:
    """Baseline override and claim of an experiment file, by its name; (None, "") if there is none."""
    path = CONF_DIR / "experiment" / f"{name}.yaml"
    if not path.is_file():
        return None, ""
    lines = [
        line.lstrip("# ") for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")
    ]
    claim = " ".join(line for line in lines if not line.startswith("@package")).partition("Run:")[0]
    baseline = OmegaConf.select(OmegaConf.load(path), "hydra.callbacks.summary.baseline")
    return None if baseline is None else str(baseline), claim.strip()


def own_rows(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Every run that does not compare with the paper, gathered over seeds, with the reason in each line."""
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        reasons = caveats(run.record)
        if reasons:
            key = (run.data, run.method, " ".join(reasons))
            groups.setdefault(key, []).append(run)
    rows = []
    for (data, method, why), same in sorted(groups.items()):
        cells = {"data": data, "method": method, "why not comparable": why, "runs": str(len(same))}
        for metric, title in (("mAP", "mAP"), ("rank1", "rank-1")):
            scores = [score for run in same if (score := run.job.score(metric)) is not None]
            cells[title] = percent(fmean(scores)) if scores else "-"
            if len(scores) > 1:
                cells[title] += f" ({percent(min(scores))} to {percent(max(scores))})"
        cells["protocol"] = " / ".join(dict.fromkeys(protocol_line(run.record["protocol"]) for run in same))
        rows.append(cells)
    return rows
