"""Evaluation protocols as data: which items a query is ranked against, and how scores are averaged."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Exclusion = Literal["same_identity_and_camera", "same_camera"]
MapOn = Literal["full_gallery", "drawn_gallery"]
Denominator = Literal["valid_queries", "all_queries"]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The rules of an evaluation, which are printed with every score.

    Args:
        name: name of the protocol in tables.
        exclusion: gallery items that are removed from a query's ranking. "same_identity_and_camera"
            (Market-1501) removes images of the query's identity from the query's camera, "same_camera"
            (CUHK03) all images from the query's camera.
        gallery_per_identity: images drawn per identity for the CMC (1 is single-shot), from other cameras
            than the query's. None uses the whole gallery. Distractors are never drawn: all of them stay,
            because they show different people.
        repeats: number of random galleries over which the CMC is averaged. A draw depends on (seed, split,
            number of the draw) and on the order of the gallery, so the gallery should be in the order of the
            data set. Queries of one camera share a drawn gallery.
        map_on: "full_gallery" computes mAP on the whole gallery even where the CMC is drawn (multi-shot mAP
            with a single-shot CMC), "drawn_gallery" on the drawn galleries.
        max_rank: length of the CMC.
        denominator: divide mAP and CMC by the number of queries with a match, or by the number of all
            queries, where a query without a match scores 0.
        junk_identity: identity of gallery items that are removed from every ranking, or None.
        distractor_identity: identity of gallery items that match no query, or None.
        seed, split: seeds of the draws.

    Raises:
        ValueError: an option is unknown, a number is out of range, or a drawn gallery is combined with
            another exclusion than "same_camera".
    """

    name: str
    exclusion: Exclusion = "same_identity_and_camera"
    gallery_per_identity: int | None = None
    repeats: int = 1
    map_on: MapOn = "full_gallery"
    max_rank: int = 50
    denominator: Denominator = "valid_queries"
    junk_identity: int | None = -1
    distractor_identity: int | None = 0
    seed: int = 0
    split: int = 0

    def __post_init__(self) -> None:
        for field, options in (("exclusion", Exclusion), ("map_on", MapOn), ("denominator", Denominator)):
            if getattr(self, field) not in get_args(options):
                raise ValueError(f"{field} must be one of {get_args(options)}, got {getattr(self, field)!r}")
        for field, least in (("repeats", 1), ("max_rank", 1), ("seed", 0), ("split", 0)):
            if getattr(self, field) < least:
                raise ValueError(f"{field} must be at least {least}, got {getattr(self, field)}")
        if self.gallery_per_identity is None:
            if self.repeats != 1 or self.map_on != "full_gallery":
                raise ValueError(
                    "repeats and map_on='drawn_gallery' need gallery_per_identity, without which no gallery "
                    "is drawn"
                )
        elif self.gallery_per_identity < 1 or self.exclusion != "same_camera":
            raise ValueError(
                "gallery_per_identity must be at least 1 and needs exclusion='same_camera', got "
                f"{self.gallery_per_identity} with {self.exclusion!r}"
            )

    @classmethod
    def market1501(cls) -> "Protocol":
        """Return the rules of Market-1501: the whole gallery less the query's identity in its own camera."""
        return cls(name="market1501")

    @classmethod
    def duke(cls) -> "Protocol":
        """Return the rules of DukeMTMC-reID, which are those of Market-1501."""
        return cls(name="duke")

    @classmethod
    def cuhk03_new(cls) -> "Protocol":
        """Return the rules of CUHK03 with 767 training and 700 test identities: those of Market-1501."""
        return cls(name="cuhk03_new")

    @classmethod
    def cuhk03_single_shot(cls, seed: int = 0, split: int = 0, repeats: int = 20) -> "Protocol":
        """Return the rules of CUHK03 with 100 test identities: single-shot CMC, multi-shot mAP.

        Args:
            seed, split, repeats: see `Protocol`.
        """
        return cls(
            name="cuhk03_single_shot",
            exclusion="same_camera",
            gallery_per_identity=1,
            repeats=repeats,
            map_on="full_gallery",
            seed=seed,
            split=split,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        return asdict(self)
