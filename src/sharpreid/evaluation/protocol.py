"""Ranking protocols as data: which gallery items count, for which queries, and over which draws."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Exclusion = Literal["same_identity_and_camera", "same_camera"]


MapOn = Literal["full_gallery", "drawn_gallery"]


Denominator = Literal["valid_queries", "all_queries"]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What a score means; printed with every score.

    Args:
        name: how the protocol is called in a table.
        exclusion: gallery items that leave a query's ranking. "same_identity_and_camera" (Market-1501):
            only those of its identity and camera, other people in its camera stay. "same_camera"
            (CUHK03): everything in its camera.
        gallery_per_identity: images drawn per identity for the CMC (1 is single-shot), from other cameras
            than the query's; None takes the whole gallery. Distractors all stay: they are different people.
        repeats: number of draws; the CMC is their mean. A draw depends on (seed, split, draw) and on the
            order of the gallery's rows, so give those in the data set's own order. Queries of one camera
            share a drawn gallery.
        map_on: "full_gallery" computes mAP on the whole gallery even where the CMC is drawn (multi-shot
            mAP beside a single-shot CMC), "drawn_gallery" on the draws.
        max_rank: length of the CMC.
        denominator: mAP and CMC are divided by the queries with a match, or by all queries (a query
            without a match then scores 0).
        junk_identity: gallery items that leave every ranking; None if there are none.
        distractor_identity: gallery items that match no query; None if it is an identity like others.
        seed, split: with the number of the draw, the seed of the draw.
    Raises:
        ValueError: an option is unknown, a number is out of range, or a drawn gallery is asked for without
            `exclusion="same_camera"`.
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
                    "repeats and map_on='drawn_gallery' need gallery_per_identity: else nothing is drawn"
                )
        elif self.gallery_per_identity < 1 or self.exclusion != "same_camera":
            raise ValueError(
                "gallery_per_identity must be at least 1 and needs exclusion='same_camera', got "
                f"{self.gallery_per_identity} with {self.exclusion!r}"
            )

    @classmethod
    def market1501(cls) -> "Protocol":
        """Market-1501: junk is the query's identity in its own camera; the whole gallery."""
        return cls(name="market1501")

    @classmethod
    def duke(cls) -> "Protocol":
        """DukeMTMC-reID: the rule of Market-1501."""
        return cls(name="duke")

    @classmethod
    def cuhk03_new(cls) -> "Protocol":
        """CUHK03 with 767 training and 700 test identities: the rule of Market-1501."""
        return cls(name="cuhk03_new")

    @classmethod
    def cuhk03_single_shot(cls, seed: int = 0, split: int = 0, repeats: int = 20) -> "Protocol":
        """CUHK03 with 100 test identities: single-shot CMC over `repeats` draws, multi-shot mAP."""
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
        """Plain values, ready for JSON."""
        return asdict(self)
