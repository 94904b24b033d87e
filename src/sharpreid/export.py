"""Export a trained network: ``python -m sharpreid.export model=RUN format=onnx output=FOLDER``."""

import sys
from pathlib import Path

from sharpreid.standard_streams import tolerate_write_errors

USAGE = """\
usage: python -m sharpreid.export model=RUN format=FORMAT output=FOLDER [key=value ...]

Writes a trained network to a new folder: the network in a file that needs no part of this package,
config.json (input, output, distance, difference of the embeddings) and README.md, the card for a model hub.

  model=RUN                directory of a run, or a copy of its folder model/
  format=onnx              ONNX Runtime and other runtimes; needs pip install 'sharpreid[export]'
  format=torch_export      torch.export.load, in Python
  format=torchscript       torch.jit.load, in Python and C++
  format=safetensors       a model folder: weights for sharpreid.load and for your own code
  precision=float32        float32 | float16 | int8 (onnx only); safetensors is float32
  images=FOLDER            images of people, for comparing embeddings and for the ranges of int8: a folder, a
                           glob or a CSV file; without it people drawn by a program are compared, and int8 is
                           refused

Input: RGB images, uint8, (B, height, width, 3), resized to the height and width in config.json; any B.
Scaling, normalisation and crops are inside. Output: embeddings, float32, (B, D). Nothing is written if the
embeddings differ by more than the limit of the precision. --format onnx is the same as format=onnx, and so
for each key.
Exit status: 0, 1 if the export failed, 2 wrong arguments.
"""

_KEYS = ("model", "format", "output", "precision", "images")


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE)
        sys.exit(0 if arguments else 2)
    from sharpreid.serving.arguments import UsageError, join_options, parse_pairs
    from sharpreid.serving.exporting import export_model, parse_target  # slow, and not for the help

    try:
        given = parse_pairs(join_options(arguments), _KEYS, required=("model", "format", "output"))
        export_model(
            given["model"],
            parse_target(given["format"], given.get("precision", "float32"), images=given.get("images")),
            output=Path(given["output"]).expanduser(),
        )
    except UsageError as error:
        print(f"error: {error}\n\n{USAGE}", file=sys.stderr)
        sys.exit(2)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    tolerate_write_errors()
    main()
