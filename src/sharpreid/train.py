"""Train and score one network, or a sweep of them: ``python -m sharpreid.train --help``.

What a job needs is imported by the job: help, a mistyped key and the start of a sweep do not wait for torch.
"""

import sys
from collections.abc import Sequence

import hydra
from omegaconf import DictConfig

from sharpreid.config.overrides import refuse_misspelt
from sharpreid.config.paths import CONF_DIR
from sharpreid.config.resolvers import register_resolvers

register_resolvers()


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="train")
def main(cfg: DictConfig) -> float:
    """Run one job; in a sweep a failing job is recorded and the others go on.

    Returns:
        What a search over hyperparameters may go by: the mAP, in [0, 1], of the trained network on the
        training identities that were held out (data.validation_identities). Never a score of the test set:
        NaN if none were held out, and if the job failed.
    """
    from sharpreid.run.training import run

    return run(cfg)


def flags_first(arguments: Sequence[str]) -> list[str]:
    """The arguments with --multirun in front: Hydra takes overrides on one side of it only.

    >>> flags_first(["seed=1", "--multirun", "model.blocks=[],[1]"])
    ['--multirun', 'seed=1', 'model.blocks=[],[1]']
    """
    return sorted(arguments, key=lambda argument: argument not in ("--multirun", "-m"))


def quote_checkpoint(argument: str) -> str:
    """Hydra's quotes around a path that has a = in it: of ``resume=FILE`` and of ``hydra.run.dir=RUN``.

    >>> quote_checkpoint("resume=out/step=000100.ckpt"), quote_checkpoint("resume=auto")
    ("resume='out/step=000100.ckpt'", 'resume=auto')
    """
    key, _, value = argument.partition("=")
    is_path = key in ("resume", "hydra.run.dir") and "=" in value and "$" not in value
    return f"{key}='{value}'" if is_path and value[0] not in "'\"" else argument


if __name__ == "__main__":
    sys.argv[1:] = map(quote_checkpoint, flags_first(sys.argv[1:]))
    refuse_misspelt(sys.argv[1:])
    main()
