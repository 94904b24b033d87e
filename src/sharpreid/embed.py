"""Embed images: ``python -m sharpreid.embed images=FOLDER model=RUN output=gallery``."""

import sys
from pathlib import Path

from sharpreid.standard_streams import tolerate_write_errors

USAGE = """\
usage: python -m sharpreid.embed images=PLACE model=RUN output=FOLDER [key=value ...]

Embeds the person in each image, and writes a row for each to FOLDER/part-*.parquet: path, box, frame, camera,
time, track, identity, embedding. After an interruption the same command goes on. Images whose file,
camera, time, track or identity has changed are embedded again.

  images=FOLDER                 images in a folder and its subfolders
  images='shots/*/*.jpg'        or those that match a glob
  images=list.csv               or a CSV file: path, and optionally box (left upper right lower, pixels),
                                camera, time (seconds), track, identity; paths are relative to the file
  images=clip.mp4 boxes=b.csv   or boxes in a video: frame (from 0), x, y, w, h (pixels), optionally track
  model=RUN                     directory of a run, or a copy of its folder model/
  camera_pattern='_c(?P<camera>\\d+)'   camera from each file name; it may have groups time and identity
  batch_size=64 device=cpu      images per pass of the network; a device such as cuda

An image that cannot be read is listed in FOLDER/skipped.csv. Exit status: 0, 1 if no image could be embedded,
2 wrong arguments.
"""

_KEYS = ("images", "boxes", "model", "output", "camera_pattern", "batch_size", "device")


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE)
        sys.exit(0 if arguments else 2)
    from sharpreid.serving.arguments import UsageError, parse_count, parse_pairs
    from sharpreid.serving.embedding import embed_images  # slow, and not for the help

    try:
        given = parse_pairs(arguments, _KEYS, required=("images", "model", "output"))
        batch_size = parse_count(given, "batch_size", 64)
        embedded, skipped = embed_images(
            given["images"],
            model=given["model"],
            output=Path(given["output"]).expanduser(),
            boxes=given.get("boxes"),
            camera_pattern=given.get("camera_pattern"),
            batch_size=batch_size,
            device=given.get("device", "cpu"),
        )
    except UsageError as error:
        print(f"error: {error}\n\n{USAGE}", file=sys.stderr)
        sys.exit(2)
    except ImportError as error:
        print(f"error: {error}; the command needs pip install 'sharpreid[serve]'", file=sys.stderr)
        sys.exit(1)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    if skipped:
        place = Path(given["output"], "skipped.csv")
        print(f"{skipped} images could not be read; {place} lists them", file=sys.stderr)
    if skipped and not embedded:
        sys.exit(1)


if __name__ == "__main__":
    tolerate_write_errors()
    main()
