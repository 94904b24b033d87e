"""List the commands, or run one of them: ``sharpreid train ...`` is ``python -m sharpreid.train ...``."""

import difflib
import os
import runpy
import sys
from collections.abc import Mapping, Sequence

from sharpreid.standard_streams import tolerate_write_errors

COMMANDS: Mapping[str, str] = {
    "train": "train and score a network, or a sweep of them",
    "evaluate": "score a checkpoint again, with other views, masks or re-ranking",
    "visualize": "draw a network's attention masks over photos",
    "embed": "embed images with a trained network, into a folder of Parquet files",
    "calibrate": "choose the distance up to which two images are taken for one person",
    "search": "build a store of embeddings, and find the people of images in it",
    "explore": "search a store and look at masks on a local page",
    "export": "export a trained network to ONNX, torch.export or TorchScript",
    "prepare": "check a data set and store its decoded pixels",
    "runs": "list runs with state and scores, or compare the configs of two",
    "report": "write an HTML and a Markdown page with tables and figures of many runs",
    "report.sweep": "write a sweep's tables and figure again",
    "report.record": "write the runs.csv and the per-query files of an experiment folder",
    "report.results": "write the result tables of the READMEs from recorded runs, or check them",
    "dashboard": "make the W&B workspace and report of a project",
    "data.synthetic": "draw the embedded synthetic data set as image files",
}
"""Module of sharpreid that is a command -> its purpose."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; without one, list all of them.

    Raises:
        SystemExit: With status 0 after listing the commands; with 2 if there is no such command.
    """
    tolerate_write_errors()
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(list_commands())
        sys.exit()
    name, *rest = arguments
    name = name.removeprefix("sharpreid.")
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(COMMANDS)}"
        print(f"error: {name}: no such command; {hint}", file=sys.stderr)
        sys.exit(2)
    if not sys.flags.safe_path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as python -m does: a config may name the user's own classes
    sys.argv = [sys.argv[0], *rest]
    runpy.run_module(f"sharpreid.{name}", run_name="__main__", alter_sys=True)


def list_commands() -> str:
    """Return the usage and one line per command."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {purpose}" for name, purpose in COMMANDS.items()]
    usage = "usage: sharpreid COMMAND ...    (or python -m sharpreid.COMMAND ...)"
    return "\n".join([usage, "", *lines, "", "sharpreid COMMAND --help describes a command."])


if __name__ == "__main__":
    main()
