"""Score a run's checkpoint again, by the run's own config with overrides.

Slow libraries are imported only when the scoring starts, so that wrong arguments are refused at once.
"""

import itertools
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sharpreid.config.paths import CONF_DIR, PATH_KEYS
from sharpreid.run.arguments import UsageError, load_config, load_re_ranking, parse_arguments
from sharpreid.run.console import error_message, print_readings, print_run_table, suppress_lightning_warnings
from sharpreid.run.fast_import import import_torchmetrics
from sharpreid.run.records import describe_code, describe_scores, write_json

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from sharpreid.data.datamodule import ReIDDataModule
    from sharpreid.evaluation.scores import RankingScores
    from sharpreid.module import ReIDModule

_ABSENT = object()
_OVERRIDABLE_PREFIXES = (
    "data_root",
    "data.source.root",
    "data.source.manifest",
    "data.source.within",
    "data.source.images",
    "data.source.distractors",
    "data.source.multi_query",
    "data.source.allow_subset",
    "data.eval_",
    "data.num_workers",
    "data.cache",
    "image.",
    "model.sampler.",
    "protocol.",
    "re_ranking",
    "trainer.accelerator",
    "trainer.precision",
)

_FLAGS = ("-m", "--multirun")
_SINGLE_VALUED = ("experiment", *PATH_KEYS)  # paths may have commas

_MASK_SEED = "model.sampler.seed"


def run(arguments: Sequence[str], usage: str) -> None:
    """Run the command; exit with status 1 if the checkpoint cannot be scored."""
    suppress_lightning_warnings()
    try:
        several = any(argument.lstrip("+").startswith((*_FLAGS, "experiment=")) for argument in arguments)
        (evaluate_sweep if several else evaluate)(arguments)
    except (OSError, ValueError, RuntimeError, OmegaConfBaseException, HydraException) as error:
        help_text = f"\n{usage}" if isinstance(error, UsageError) else ""
        print(f"error: {error_message(error)}{help_text}", file=sys.stderr)
        sys.exit(1)


def evaluate(arguments: Sequence[str]) -> "RankingScores":
    """Score one checkpoint and print a table.

    Args:
        arguments: ``checkpoint=FILE`` and overrides, as ``key=value``.

    Raises:
        FileNotFoundError: The checkpoint or its run's config is missing.
        ValueError: An argument is not key=value, or names a key that the config does not have.
    """
    given = parse_arguments(arguments)
    output, images = given.pop("output", None), _pop_recalibration(given)
    scores, record = _score(*_override_config(given), images)
    print_run_table(record)
    if output is None:
        print("not saved; output=FILE.json saves it")
    else:
        write_json(Path(str(output)), record)
        print(f"written to {output}")
    return scores


def evaluate_sweep(arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Score every combination of the arguments' values and print one table.

    All arguments are checked before the first combination is scored. The output file is written anew after
    each combination.

    Returns:
        For each combination the record that `evaluate` writes, with its overrides under ``settings``.

    Raises:
        FileNotFoundError: A checkpoint, its run's config or the experiment is missing.
        ValueError: An argument is not key=value, or names a key that the config does not have.
    """
    pairs = [argument.lstrip("+") for argument in arguments if argument not in _FLAGS]
    checkpoints = [pair for pair in pairs if pair.startswith("checkpoint=")]
    single = [pair for pair in pairs if pair.partition("=")[0] in _SINGLE_VALUED]
    lists = [pair for pair in pairs if pair not in single]
    fixed = parse_arguments(single)
    fixed.pop("checkpoint", None)
    experiment, output = fixed.pop("experiment", None), fixed.pop("output", None)
    jobs = []
    for checkpoint in checkpoints or [""]:
        for setting in (one for sweep in load_sweeps(experiment) for one in combinations([*sweep, *lists])):
            named = [checkpoint] if checkpoint else []
            given = {**fixed, **parse_arguments([*named, *setting])}
            shown = [*named, *setting] if len(checkpoints) > 1 else setting
            images = _pop_recalibration(given)
            jobs.append((shown, (*_override_config(given), images)))
    records: list[dict[str, Any]] = []
    for number, (shown, job) in enumerate(jobs, start=1):
        print(f"[{number}/{len(jobs)}] {' '.join(shown)}", flush=True)
        records.append({"settings": shown, **_score(*job)[1]})
        if output is not None:
            write_json(Path(str(output)), records)
    print_readings(records, together=_MASK_SEED)
    if output is not None:
        print(f"written to {output}")
    return records


def combinations(arguments: Sequence[str]) -> list[list[str]]:
    """Return every combination of the values of arguments in Hydra's override grammar.

    The last argument varies fastest.

    Raises:
        HydraException: An argument is not in that grammar.

    >>> combinations(["model.sampler.draws=1,8", "model.sampler.seed=range(0,2)"])[1:3]
    [['model.sampler.draws=1', 'model.sampler.seed=1'], ['model.sampler.draws=8', 'model.sampler.seed=0']]
    """
    values = []
    for override in OverridesParser.create().parse_overrides(list(arguments)):
        listed = override.is_sweep_override()
        texts = override.sweep_string_iterator() if listed else [override.get_value_element_as_str()]
        values.append([f"{override.get_key_element()}={text}" for text in texts])
    return [list(combination) for combination in itertools.product(*values)]


def _pop_recalibration(given: dict[str, Any]) -> int:
    """Remove ``recalibrate`` from the arguments and return its number of images; ValueError if invalid."""
    images = given.pop("recalibrate", 0)
    if not isinstance(images, int) or isinstance(images, bool) or images < 0:
        raise ValueError(f"recalibrate must be a number of training images or 0, got {images!r}")
    return images


def load_sweeps(experiment: str | None) -> list[list[str]]:
    """Load the lists of arguments of a file in conf/evaluation; FileNotFoundError if it does not exist."""
    if experiment is None:
        return [[]]
    path = CONF_DIR / "evaluation" / f"{experiment}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(other.stem for other in path.parent.glob("*.yaml")))
        raise FileNotFoundError(f"experiment={experiment}: no such evaluation; expected one of {known}")
    sweeps: Any = OmegaConf.to_container(OmegaConf.load(path))
    return [[f"{key}={value}" for key, value in sweep.items()] for sweep in sweeps["sweeps"]]


def _override_config(given: Mapping[str, Any]) -> tuple[Path, DictConfig]:
    """Return the checkpoint in the arguments, and its run's config with the other arguments applied."""
    values = dict(given)
    if "checkpoint" not in values:
        raise UsageError("checkpoint=... is missing")
    checkpoint = Path(str(values.pop("checkpoint")))
    cfg = load_config(checkpoint)
    if "re_ranking" in values:
        cfg.re_ranking = load_re_ranking(str(values.pop("re_ranking")))
    for key, value in values.items():
        if not key.startswith(_OVERRIDABLE_PREFIXES):
            allowed = ", ".join(_OVERRIDABLE_PREFIXES)
            raise ValueError(f"{key} does not concern the scoring; allowed are {allowed}")
        if key.startswith("model.sampler.") and OmegaConf.select(cfg, "model.blocks") == []:
            raise ValueError(f"{key}: the network of {checkpoint} has no attention block, and thus no mask")
        if OmegaConf.select(cfg, key, default=_ABSENT) is _ABSENT:
            raise ValueError(f"{key}: the config of {checkpoint} has no such key; see config.yaml beside it")
        OmegaConf.update(cfg, key, value)

    import_torchmetrics()
    from sharpreid.config.validation import check_node  # imports the targets of the config

    for place in ("data", "model", "protocol", "re_ranking", "trainer"):
        check_node(cfg, place)
    return checkpoint, cfg


def _score(checkpoint: Path, cfg: DictConfig, images: int) -> tuple["RankingScores", dict[str, Any]]:
    """Score a checkpoint; return the scores and the record to print and write.

    Args:
        checkpoint: File of the trained network.
        cfg: Config of its run, with overrides.
        images: Number of training images to recalibrate the batch norms on; 0 leaves them as they are.
    """
    from sharpreid.run.build import build_data, build_trainer
    from sharpreid.run.loading import load_network, score
    from sharpreid.run.preflight import check_test

    data, module = build_data(cfg), load_network(checkpoint, cfg)
    trainer = build_trainer(cfg, training=False)
    check_test(trainer, module, data)
    if images:
        _recalibrate(module, data, trainer, images)
    scores = score(trainer, module, data)
    record = {
        "name": f"{cfg.name}, evaluated again",
        **describe_scores(cfg, module.test_metric.protocol, data.data, scores),
        "checkpoint": str(checkpoint),
        **describe_code(),
    }
    if images:
        record["protocol"]["batch_norm"] = f"recalibrated on {images} training images"
    return scores, record


def _recalibrate(module: "ReIDModule", data: "ReIDDataModule", trainer: "pl.Trainer", images: int) -> None:
    """Recompute the batch norms' statistics on training images under the test mask."""
    from sharpreid.models.batch_norm import recalibrate

    data.setup("fit")
    device = trainer.strategy.root_device
    module.to(device)
    loader = data.recalibration_dataloader(images)
    passes = (partial(module.embed_views, batch.views.to(device)) for batch in loader)
    with trainer.precision_plugin.forward_context():
        recalibrate(module.network, passes)
