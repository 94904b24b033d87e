"""Explore a store on a local page: ``python -m sharpreid.explore store=STORE model=RUN``."""

import os
import sys
import tempfile
import threading
from pathlib import Path

from sharpreid.standard_streams import tolerate_write_errors

USAGE = """\
usage: python -m sharpreid.explore store=STORE model=RUN [key=value ...]

Serves a page on this machine, until Ctrl-C: choose or upload a picture of a person, and see the nearest
rows of the store with distances, cameras and times; draw the attention masks of each block; draw a map of the
embeddings. Needs the extra explore: pip install 'sharpreid[explore]'.

  store=STORE        store of python -m sharpreid.search
  model=RUN          the run or model folder that embedded it
  beside=RUN2        a second model with the same attention blocks: its masks are drawn beside the others
  run=RUN            a run whose worst queries are shown
  host=127.0.0.1     address to listen on. The page has no password: on another address than 127.0.0.1
                     everybody who reaches this machine sees the pictures
  port=7860          port to listen on; 0 takes a free one

Exit status: 0 after Ctrl-C, 1 for an error, 2 for wrong arguments.
"""

_KEYS = ("store", "model", "beside", "run", "host", "port")


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE)
        sys.exit(0 if arguments else 2)
    from sharpreid.serving.arguments import UsageError, parse_pairs, parse_port

    try:
        given = parse_pairs(arguments, _KEYS, required=("store", "model"))
        explore(given, port=parse_port(given, 7860))
    except UsageError as error:
        print(f"error: {error}\n\n{USAGE}", file=sys.stderr)
        sys.exit(2)
    except ImportError as error:
        print(f"error: {error}; the page needs pip install 'sharpreid[explore]'", file=sys.stderr)
        sys.exit(1)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def explore(given: dict[str, str], *, port: int) -> None:
    """Serve the page until Ctrl-C; uploads lie in a temporary folder, which is then deleted.

    Args:
        given: arguments of the command.
        port: port to listen on; 0 takes a free one.
    """
    with tempfile.TemporaryDirectory(prefix="sharpreid-explore-") as folder:
        # Gradio reads these when it is imported
        os.environ.update(GRADIO_TEMP_DIR=folder, GRADIO_ANALYTICS_ENABLED="False")
        from sharpreid.exploration.explorer import Explorer
        from sharpreid.exploration.page import serve_page
        from sharpreid.serving.model import load_model
        from sharpreid.serving.stores import open_store

        explorer = Explorer(
            open_store(given["store"]),
            load_model(given["model"]),
            beside=load_model(given["beside"]) if "beside" in given else None,
            run=Path(given["run"]).expanduser() if "run" in given else None,
        )
        with serve_page(explorer, host=given.get("host", "127.0.0.1"), port=port) as address:
            print(f"{address} shows {len(explorer.items):,} rows; Ctrl-C ends it", flush=True)
            try:
                threading.Event().wait()
            except KeyboardInterrupt:
                print("ended")


if __name__ == "__main__":
    tolerate_write_errors()
    main()
