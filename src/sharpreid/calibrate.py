"""Choose a threshold: ``python -m sharpreid.calibrate gallery=FOLDER model=RUN false_positive_rate=0.01``."""

import sys
from typing import cast, get_args

from sharpreid.standard_streams import tolerate_write_errors

USAGE = """\
usage: python -m sharpreid.calibrate gallery=FOLDER model=RUN false_positive_rate=RATE [key=value ...]

Chooses the distance up to which a gallery image is taken for the person of a query, so that RATE of the
queries of people who are not in the gallery are matched. Writes it into config.json and README.md of the
model, with its interval and the share of the queries of people in the gallery that find their person.

  gallery=FOLDER                folder of sharpreid.embed with identity and camera of each image; images
                                without an identity are not used. The people must not be those of training
  model=RUN                     directory of a run, or a copy of its folder model/
  false_positive_rate=0.01      wanted rate, at most 0.5; 0.1, 0.05 and 0.01 need 29, 59 and 299 people
  gallery_identities=N          number of people in the galleries that will be searched, at most half of the
                                labelled people; by default half of them. In a larger gallery more strangers
                                are matched.
  exclusion=same_identity_and_camera    images that are not counted: those of the query's person in its camera
                                (Market-1501's rule), or same_camera: all images of the query's camera
  dataset=NAME                  name of the people, for the card; by default the name of the gallery's folder

Exit status: 0, 1 if no threshold can be chosen, 2 wrong arguments.
"""

_KEYS = ("gallery", "model", "false_positive_rate", "gallery_identities", "exclusion", "dataset")


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE)
        sys.exit(0 if arguments else 2)
    from sharpreid.evaluation.protocol import Exclusion  # slow, and not for the help
    from sharpreid.serving.arguments import UsageError, parse_count, parse_pairs
    from sharpreid.serving.calibration import calibrate_folder

    try:
        given = parse_pairs(arguments, _KEYS, required=_KEYS[:3])
        size = parse_count(given, "gallery_identities", 1) if "gallery_identities" in given else None
        exclusion = given.get("exclusion", "same_identity_and_camera")
        if exclusion not in get_args(Exclusion):
            raise UsageError(f"exclusion must be one of {', '.join(get_args(Exclusion))}, got {exclusion}")
        try:
            rate = float(given["false_positive_rate"])
        except ValueError:
            raise UsageError(
                f"false_positive_rate must be a number, got {given['false_positive_rate']!r}"
            ) from None
        threshold = calibrate_folder(
            given["gallery"],
            model=given["model"],
            false_positive_rate=rate,
            gallery_identities=size,
            exclusion=cast(Exclusion, exclusion),
            dataset=given.get("dataset"),
        )
    except UsageError as error:
        print(f"error: {error}\n\n{USAGE}", file=sys.stderr)
        sys.exit(2)
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    print(threshold.describe())
    print(f"written into the model of {given['model']}")


if __name__ == "__main__":
    tolerate_write_errors()
    main()
