"""Make a W&B workspace and report of a project: ``python -m sharpreid.dashboard --entity TEAM``."""

import argparse
import importlib
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from sharpreid.report.markdown import markdown_table
from sharpreid.report.paper_tables import TABLES, read_paper
from sharpreid.run.paper_recipe import PAPER_DATA
from sharpreid.standard_streams import tolerate_write_errors

BLOCKS = (1, 2, 3, 4)

BARS = {"test/mAP": "mAP of the test set", "test/rank1": "rank-1 of the test set"}
"""Metrics shown as bars, one per group of runs."""

CURVES = {
    "Training": (
        "train/loss",
        "train/triplet",
        "train/active_triplets",
        "train/embedding_norm",
        "train/grad_norm",
    ),
    "Held-out identities": ("val/mAP", "val/rank1"),
    "Schedules": ("train/tau", "train/lr"),
    "Sharpness": tuple(f"train/{what}_block{block}" for what in ("decided", "entropy") for block in BLOCKS),
    "Total variation": tuple(f"train/tv_block{block}" for block in BLOCKS),
}
"""Section -> metrics shown as curves, one panel each."""

GALLERY = "masks"
"""Key under which the pictures of masks are logged."""

GROUPS = ("data.source.name", "method", "departures", "rules")
"""Settings of `sharpreid.run.comparability.logged_settings` by which runs are grouped and averaged."""

COMPARABLE = "Config('comparable') = True and Config('data.source.name') = '{data}'"
OTHERS = "Config('comparable') = False"
"""Filters of the report: runs comparable with the paper on one of its data sets, and all other runs."""


def build_workspace(entity: str, project: str) -> Any:
    """Build the workspace: ablation bars, a curve per metric, mask galleries, and the paper's numbers.

    Args:
        entity: W&B user or team.
        project: W&B project; the runs log to ``sharpreid``.

    Raises:
        ModuleNotFoundError: The package wandb-workspaces is not installed.
    """
    workspaces, panels = _libraries()
    sections = [
        workspaces.Section(name="Ablation", panels=_bars(panels), is_open=True),
        *(
            workspaces.Section(name=name, panels=_curves(panels, metrics), is_open=name == "Training")
            for name, metrics in CURVES.items()
        ),
        workspaces.Section(name="Masks", panels=[_gallery(panels)]),
        workspaces.Section(name="Paper", panels=[panels.MarkdownPanel(markdown=paper_markdown())]),
    ]
    grouped = workspaces.RunsetSettings(groupby=[workspaces.Config(key) for key in GROUPS])
    return workspaces.Workspace(
        entity=entity, project=project, name="sharpreid", sections=sections, runset_settings=grouped
    )


def build_report(entity: str, project: str) -> Any:
    """Build the report: the panels of `build_workspace` in the order of the paper, and the paper's tables."""
    _, panels = _libraries()

    def grid(some: Sequence[Any], filters: str = "") -> Any:
        groups = [f"config.{key}" for key in GROUPS]
        runs = panels.Runset(entity=entity, project=project, groupby=groups, filters=filters)
        return panels.PanelGrid(runsets=[runs], panels=list(some))

    blocks = [
        panels.H1("Sharp attention: the paper and these runs"),
        panels.P(
            "A run is comparable with the paper only if its data, recipe and protocol are the paper's. "
            "Runs with the same data set, method, deviations from the paper's recipe and scoring rules are "
            "averaged over their seeds."
        ),
        panels.H2("Ablation (Fig. 5, Table I)"),
        *(
            part
            for data in PAPER_DATA
            for part in (panels.H3(data), grid(_bars(panels), COMPARABLE.format(data=data)))
        ),
        panels.H3("Runs that are not comparable with the paper: synthetic or other data, recipe or protocol"),
        grid(_bars(panels), OTHERS),
        *(
            part
            for name, metrics in CURVES.items()
            for part in (panels.H2(name), grid(_curves(panels, metrics)))
        ),
        panels.H2("Masks (Fig. 2 and 6)"),
        grid([_gallery(panels)]),
        panels.H2("The paper's tables"),
        panels.MarkdownBlock(paper_markdown()),
    ]
    return panels.Report(entity=entity, project=project, title="sharpreid", blocks=blocks)


def paper_markdown() -> str:
    """Return the paper's own rows of its tables as Markdown."""
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for line in read_paper():
        if line["place"] in TABLES and line["metric"] in ("mAP", "rank1") and line["category"] == "paper":
            rows.setdefault((line["place"], line["row"], line["dataset"]), {})[line["metric"]] = line["value"]
    return "\n".join(
        markdown_table(
            [
                {
                    "table": place,
                    "row": row,
                    "data set": dataset,
                    "rank-1": v.get("rank1", ""),
                    "mAP": v.get("mAP", ""),
                }
                for (place, row, dataset), v in rows.items()
            ]
        )
    )


def specification(entity: str, project: str) -> dict[str, Any]:
    """Return the workspace and report as plain data, without a network or a key."""
    workspace, report = build_workspace(entity, project), build_report(entity, project)
    blocks = [
        {
            "runsets": [{"filters": runs.filters, "groupby": runs.groupby} for runs in block.runsets],
            "panels": [_plain(panel) for panel in block.panels],
        }
        if hasattr(block, "panels")
        else _plain(block)
        for block in report.blocks
    ]
    return {"workspace": _plain(workspace), "report": {"title": report.title, "blocks": blocks}}


def shown_metrics() -> Iterator[str]:
    """Yield the metrics of all panels."""
    yield from BARS
    for metrics in CURVES.values():
        yield from metrics


def _plain(part: Any) -> Any:
    return json.loads(part._to_model().model_dump_json(by_alias=True))


def _libraries() -> tuple[Any, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of the library's own use of pydantic 1
            return (
                importlib.import_module("wandb_workspaces.workspaces"),
                importlib.import_module("wandb_workspaces.reports.v2"),
            )
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "wandb-workspaces is not installed: pip install 'sharpreid[dashboard]', or make setup"
        ) from error


def _bars(panels: Any) -> list[Any]:
    return [
        panels.BarPlot(title=title, metrics=[metric])  # takes the grouping of its runs
        for metric, title in BARS.items()
    ]


def _curves(panels: Any, metrics: Sequence[str]) -> list[Any]:
    return [panels.LinePlot(title=metric, x="epoch", y=[metric]) for metric in metrics]


def _gallery(panels: Any) -> Any:
    return panels.MediaBrowser(title="mask over photo, by block", media_keys=[GALLERY])


def main(arguments: Sequence[str] | None = None) -> None:
    """Make a new W&B workspace and a new report of a project; --dry-run prints them as JSON instead."""
    parser = argparse.ArgumentParser(prog="python -m sharpreid.dashboard", description=main.__doc__)
    parser.add_argument("--entity", help="W&B user or team; required without --dry-run")
    parser.add_argument("--project", default="sharpreid", help="W&B project (default: sharpreid)")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the workspace and report as JSON and upload nothing"
    )
    given = parser.parse_args(arguments)
    if not given.entity and not given.dry_run:
        parser.error("--entity TEAM is missing: the W&B user or team of the project")
    try:
        if given.dry_run:
            print(json.dumps(specification(given.entity or "TEAM", given.project), indent=2))
            return
        from sharpreid.loggers.wandb import has_key  # slow, and not for a dry run

        if not has_key():
            raise RuntimeError(
                "no W&B key is configured: run wandb login, or add --dry-run to print what would be uploaded"
            )
        for made in (build_workspace(given.entity, given.project), build_report(given.entity, given.project)):
            made.save()
            print(made.url)
    except Exception as error:  # the library raises plain Exceptions
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    tolerate_write_errors()
    main()
