"""Check a data set and decode it once: ``python -m sharpreid.prepare data=market1501``."""

import json
import sys

from sharpreid.standard_streams import tolerate_write_errors

USAGE = """\
usage: python -m sharpreid.prepare data=NAME [key=value ...] [--json]

Checks the data set (published counts, file names, identities shared by training and test, images that do not
decode, equal files, image sizes) and stores the decoded pixels in <data_root>/cache/NAME for the training.
After an interruption the same command continues. Options and values are those of sharpreid.train:

  data=market1501 data_root=/path data.source.root=/path data.source.allow_subset=true data.cache=/path

Writes files.csv (path, identity, camera, split, box, SHA-256) and report.json beside the pixels. --json
prints the report as JSON, also if the command fails. Exit status: 0 the data set is ready, 1 it has problems,
which are listed, 2 wrong arguments, 130 interrupted, 143 terminated.
"""


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE)
        sys.exit(0 if arguments else 2)
    from sharpreid.config.overrides import find_misspelt, quote_paths  # Hydra, not for the help

    arguments = quote_paths(arguments)
    if problem := find_misspelt([one for one in arguments if one != "--json"]):
        print(f"error: {problem}\n\n{USAGE}", file=sys.stderr)
        if "--json" in arguments:
            print(json.dumps({"ready": False, "problems": [problem]}, indent=2))
        sys.exit(2)
    from sharpreid.run.preparation import run  # slow, and not for the help

    run(arguments, USAGE)


if __name__ == "__main__":
    tolerate_write_errors()
    main()
