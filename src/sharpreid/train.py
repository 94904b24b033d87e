"""Train and score one network, or a sweep of them: ``python -m sharpreid.train --help``.

Only a job imports torch, so that the help and the message about a wrong argument appear at once.
"""

import sys
from collections.abc import Sequence
from string import Template

import hydra
from omegaconf import DictConfig

from sharpreid.config.overrides import quote_paths, refuse_misspelt
from sharpreid.config.paths import CONF_DIR
from sharpreid.config.resolvers import register_resolvers
from sharpreid.run.fast_import import import_torchmetrics
from sharpreid.standard_streams import tolerate_write_errors

register_resolvers()


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="train")
def main(cfg: DictConfig) -> float:
    """Run one job; a failed job of a sweep is recorded, and the sweep continues.

    Returns:
        Objective of a search over hyperparameters: mAP, in [0, 1], on the held-out training identities
        (data.validation_identities). NaN if there are none or the job failed; never a score of the test set.
    """
    import_torchmetrics()
    from sharpreid.run.training import run

    return run(cfg)


def move_multirun_first(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with --multirun first: Hydra accepts overrides on one side of it only.

    >>> move_multirun_first(["seed=1", "--multirun", "model.blocks=[],[1]"])
    ['--multirun', 'seed=1', 'model.blocks=[],[1]']
    """
    return sorted(arguments, key=lambda argument: argument not in ("--multirun", "-m"))


def help_text() -> str:
    """Return the help of conf/train.yaml with the config groups; Hydra's own is slow, it parses all files."""
    groups: dict[str, list[str]] = {}
    for path in sorted(CONF_DIR.rglob("*.yaml")):
        groups.setdefault(path.parent.relative_to(CONF_DIR).as_posix(), []).append(path.stem)
    listed = [f"{group}: {', '.join(options)}" for group, options in sorted(groups.items()) if group != "."]
    with hydra.initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        template = hydra.compose("train", return_hydra_config=True).hydra.help.template
    return Template(template).substitute(
        APP_CONFIG_GROUPS="\n".join(one for one in listed if not one.startswith("hydra/"))
    )


if __name__ == "__main__":
    tolerate_write_errors()
    sys.argv[1:] = quote_paths(move_multirun_first(sys.argv[1:]))
    if sys.argv[1:] in (["--help"], ["-h"]):
        print(help_text())
        sys.exit(0)
    refuse_misspelt(sys.argv[1:])
    main()
