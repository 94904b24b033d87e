"""Generate the embedded data set: ``python -m sharpreid.data.synthetic --root data/synthetic --seed 0``."""

import argparse
from pathlib import Path

from sharpreid.data.synthetic.contact_sheet import contact_sheet
from sharpreid.data.synthetic.dataset import ensure, read_record
from sharpreid.standard_streams import tolerate_write_errors


def main(arguments: list[str] | None = None) -> None:
    """Generate the data set from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m sharpreid.data.synthetic", description="Generate the embedded synthetic data set."
    )
    parser.add_argument(
        "--root", type=Path, required=True, help="folder of the data set; kept if it is complete"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the generator")
    parser.add_argument("--contact-sheet", type=Path, help="also write a contact sheet to this image file")
    options = parser.parse_args(arguments)
    root = ensure(options.root, seed=options.seed, progress=_print_progress)
    counts = read_record(root)["counts"]
    print(root)
    for name, count in counts.items():
        print(f"  {count:6,d} {name.replace('_', ' ')}")
    if options.contact_sheet is not None:
        print(contact_sheet(root, options.contact_sheet))


def _print_progress(done: int, total: int) -> None:
    if done % 500 == 0 or done == total:
        print(f"{done} of {total} images")


if __name__ == "__main__":
    tolerate_write_errors()
    main()
