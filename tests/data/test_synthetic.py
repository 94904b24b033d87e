"""The embedded data set: seeded to the pixel, in Market-1501's layout, whole or not there."""

import hashlib
import json
import re
from collections import Counter
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sharpreid.data.reid_data import DataError, Sample, identities
from sharpreid.data.synthetic import SyntheticParams, contact_sheet, ensure, generate, load_synthetic
from sharpreid.data.synthetic import __main__ as synthetic_command
from sharpreid.data.synthetic import dataset as synthetic
from sharpreid.data.synthetic.cameras import CAMERAS, capture_image
from sharpreid.data.synthetic.figure import Pose, draw_figure
from sharpreid.data.synthetic.people import DETAILS, Detail, Person, make_pair, sample_person
from sharpreid.data.synthetic.plan import Plan, plan_images, render_images
from sharpreid.data.synthetic.raster import Canvas
from sharpreid.data.transforms import read_image
from sharpreid.evaluation.protocol import Protocol
from sharpreid.evaluation.ranking import evaluate_ranking

SMALL = SyntheticParams(
    train_identities=6,
    test_identities=6,
    train_hard_pairs=2,
    test_hard_pairs=2,
    junk=8,
    distractors=8,
    cameras_per_identity=(2, 3),
)
DRAWN_DIGEST = "cb3be94b90b7787b51abe14b04aa6d42fd4e5ad0803dcbb7df8fd7881b88dbdb"
DECODED_DIGEST = "18ce38cb8013a22fa11fb2d07d6163e16a47245de7edbd49be74bd06038c6e1e"
"""SHA-256 of the small data set's names and pixels, seed 0: as drawn, and as read from the files."""

DIFFERENCE: dict[Detail, set[str]] = {
    "knapsack": {"knapsack"},
    "logo": {"logo", "logo_colour"},
    "hat": {"hat", "hat_colour"},
    "shoes": {"shoes"},
    "bag": {"bag", "bag_colour"},
}
DOCUMENTS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """the small data set of seed 0, made once; tests only read it."""
    return generate(tmp_path_factory.mktemp("data") / "synthetic", seed=0, params=SMALL)


@pytest.fixture(scope="module")
def default_plan() -> Plan:
    """The default data set without its pixels."""
    return plan_images(0, SyntheticParams())


def load(root: Path) -> synthetic.ReIDData:
    return synthetic.load_market1501(root=root, expected={})


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
    }


@cache
def draw(seed: int) -> dict[str, bytes]:
    """Pixels of the small data set before they are encoded."""
    images = render_images(seed, SMALL, plan_images(seed, SMALL))
    return {f"{p.shot.folder}/{p.shot.name}": p.pixels.tobytes() for p in images}


def digest(pictures: dict[str, bytes]) -> str:
    total = hashlib.sha256()
    for name, pixels in sorted(pictures.items()):
        total.update(name.encode() + b"\0" + pixels)
    return total.hexdigest()


def test_layout_is_that_of_market1501(root: Path) -> None:
    assert sorted(path.name for path in root.iterdir()) == [
        "bounding_box_test",
        "bounding_box_train",
        "query",
        "synthetic.json",
    ]
    for path in root.rglob("*.jpg"):
        assert re.fullmatch(r"(-1|\d{4})_c[1-6]s1_\d{6}_\d{2}\.jpg", path.name)
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 128))


def test_the_hard_pairs_of_the_test_people_are_known_to_who_reads_the_data(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "ensure", lambda *_, **__: root)
    pairs = load_synthetic(root=root, seed=0, progress=lambda *_: None).hard_pairs
    assert len(pairs) == SMALL.test_hard_pairs
    assert [pair.detail for pair in pairs] == list(DETAILS[:2])
    tested = identities(load(root).query)
    assert all(set(pair.pids) <= tested for pair in pairs)


def test_counts_are_recorded_and_those_of_the_files(root: Path) -> None:
    counts = json.loads((root / "synthetic.json").read_text())["counts"]
    data = load(root)
    assert counts == {
        "train_images": len(data.train),
        "train_identities": 6,
        "query_images": len(data.query),
        "query_identities": 6,
        "gallery_images": len(data.gallery),
        "junk_images": 8,
        "distractor_images": 8,
    }
    assert data.counts()["distractor_images"] == data.junk == 8


def test_pixels_are_those_recorded_for_this_generator_version() -> None:
    assert digest(draw(0)) == DRAWN_DIGEST


def test_decoded_images_are_those_recorded_for_this_generator_version(root: Path) -> None:
    pictures = {
        str(path.relative_to(root)): np.asarray(read_image(path)).tobytes() for path in root.rglob("*.jpg")
    }
    assert digest(pictures) == DECODED_DIGEST


def test_encoding_changes_pixels_little(root: Path) -> None:
    for name, pixels in draw(0).items():
        drawn = np.frombuffer(pixels, np.uint8).astype(int)
        assert np.abs(np.asarray(read_image(root / name)).ravel() - drawn).mean() < 8


def test_the_same_seed_gives_the_same_files(root: Path, tmp_path: Path) -> None:
    again = generate(tmp_path / "again", seed=0, params=SMALL)
    assert contents(again) == contents(root)


def test_another_seed_gives_other_people_and_other_pixels(root: Path) -> None:
    one, other = plan_images(0, SMALL), plan_images(1, SMALL)
    assert all(one.people[pid] != other.people[pid] for pid in one.people)
    assert set(draw(0).values()).isdisjoint(draw(1).values())


def test_an_image_does_not_depend_on_the_others() -> None:
    plan = plan_images(0, SMALL)
    some = plan._replace(shots=plan.shots[5::7])
    for image in render_images(0, SMALL, some):
        assert image.pixels.tobytes() == draw(0)[f"{image.shot.folder}/{image.shot.name}"]


def test_training_and_test_people_are_different(root: Path) -> None:
    data = load(root)
    assert identities(data.train) == set(range(1, 7))
    assert identities(data.query) == set(range(7, 13))
    assert identities(data.gallery) == {0, *range(7, 13)}


def test_every_query_has_a_match_in_another_camera(root: Path, default_plan: Plan) -> None:
    data = load(root)
    shots = [Sample(Path(s.folder, s.name), s.pid, s.camera) for s in default_plan.shots]
    for query, gallery in (
        (data.query, data.gallery),
        (
            [one for one in shots if one.path.parts[0] == "query"],
            [one for one in shots if one.path.parts[0] == "bounding_box_test"],
        ),
    ):
        seen = {(one.pid, one.camid) for one in gallery}
        for one in query:
            assert any(pid == one.pid and camid != one.camid for pid, camid in seen)
            assert (one.pid, one.camid) in seen


def test_one_query_for_each_test_person_and_camera(default_plan: Plan) -> None:
    queries = Counter((shot.pid, shot.camera) for shot in default_plan.shots if shot.folder == "query")
    assert set(queries.values()) == {1}


def test_file_names_are_unique(default_plan: Plan) -> None:
    names = [shot.name for shot in default_plan.shots]
    assert len(set(names)) == len(names)


def test_default_data_set_holds_what_it_says(default_plan: Plan) -> None:
    params = SyntheticParams()
    special = Counter(shot.pid for shot in default_plan.shots if shot.pid <= 0)
    assert special == {-1: params.junk, 0: params.distractors}
    cameras: dict[int, Counter[int]] = {}
    for shot in default_plan.shots:
        if shot.pid > 0:
            cameras.setdefault(shot.pid, Counter())[shot.camera] += 1
    assert len(cameras) == params.train_identities + params.test_identities
    assert {len(seen) for seen in cameras.values()} == {3, 4, 5}
    assert {count for seen in cameras.values() for count in seen.values()} == {2, 3}
    assert {camera for seen in cameras.values() for camera in seen} == set(range(1, 7))


def test_hard_pairs_lie_within_a_split_and_share_nobody(default_plan: Plan) -> None:
    pairs = default_plan.hard_pairs
    people = [pid for pair in pairs for pid in pair.pids]
    assert len(set(people)) == len(people) == 100
    for pair in pairs:
        assert {pid <= 150 for pid in pair.pids} == {pair.split == "train"}
    assert Counter((pair.split, pair.detail) for pair in pairs) == {
        **{("train", detail): 6 for detail in DETAILS},
        **{("test", detail): 4 for detail in DETAILS},
    }


def test_hard_pairs_differ_in_their_detail_alone(default_plan: Plan) -> None:
    for pair in default_plan.hard_pairs:
        one, two = (default_plan.people[pid] for pid in pair.pids)
        assert different(one, two) <= DIFFERENCE[pair.detail]
        assert one != two


def test_other_people_differ_in_more(default_plan: Plan) -> None:
    people = [default_plan.people[pid] for pid in sorted(default_plan.people)]
    pairs = {pair.pids for pair in default_plan.hard_pairs}
    for first, one in enumerate(people, start=1):
        for second, two in enumerate(people[first:], start=first + 1):
            assert (first, second) in pairs or len(different(one, two)) > 5


@pytest.mark.parametrize("detail", DETAILS)
def test_the_detail_of_a_hard_pair_can_be_seen(detail: Detail) -> None:
    """From the front, in the same pose and light, some pixels differ clearly and most not at all."""
    rng = np.random.default_rng(0)
    for _ in range(10):
        one, two = (front_view(person) for person in make_pair(rng, sample_person(rng), detail))
        change = np.abs(one.astype(int) - two).max(-1)
        assert 0.001 < (change > 40).mean() < 0.15
        assert (change == 0).mean() > 0.7


def front_view(person: Person) -> np.ndarray:
    canvas = np.full((3, 256, 128), 128, dtype=np.float32)
    draw_figure(Canvas(canvas, left=64, top=12, unit=230), person, Pose("front", 0.2, 0.1))
    neutral = replace(CAMERAS[0], noise=0)
    return capture_image(np.random.default_rng(1), neutral, canvas, 0.0)


def different(one: Person, two: Person) -> set[str]:
    return {field.name for field in fields(one) if getattr(one, field.name) != getattr(two, field.name)}


def test_cameras_see_the_same_people_in_different_colours(root: Path) -> None:
    means = {
        camera: np.mean(
            [
                np.asarray(read_image(one.path)).mean((0, 1))
                for one in load(root).train
                if one.camid == camera
            ],
            axis=0,
        )
        for camera in {one.camid for one in load(root).train}
    }
    for camera, mean in means.items():
        for other, second in means.items():
            assert camera == other or np.abs(mean - second).max() > 8


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "synthetic", seed=0, params=SMALL, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_every_image(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    generate(tmp_path / "synthetic", seed=0, params=SMALL, progress=lambda *now: seen.append(now))
    total = len(plan_images(0, SMALL).shots)
    assert seen == [(done, total) for done in range(1, total + 1)]


def test_of_two_runs_at_once_the_second_uses_the_copy_of_the_first(tmp_path: Path) -> None:
    """The faster run starts and ends while the slower one is at its third image."""
    place = tmp_path / "synthetic"
    faster: list[int] = []

    def overtake(done: int, total: int) -> None:
        if done == 3:
            generate(place, seed=0, params=SMALL)
            faster.append(place.stat().st_ino)

    assert generate(place, seed=0, params=SMALL, progress=overtake) == place
    assert [place.stat().st_ino] == faster
    assert list(tmp_path.iterdir()) == [place]


def test_a_slower_run_of_another_seed_refuses_the_copy_of_the_first(tmp_path: Path) -> None:
    place = tmp_path / "synthetic"

    def overtake(done: int, total: int) -> None:
        if done == 3:
            generate(place, seed=1, params=SMALL)

    with pytest.raises(DataError, match="another synthetic data set, seed is 1, wanted 0"):
        generate(place, seed=0, params=SMALL, progress=overtake)
    assert list(tmp_path.iterdir()) == [place]
    assert json.loads((place / "synthetic.json").read_text())["seed"] == 1


def test_ensure_makes_the_data_set_once(tmp_path: Path) -> None:
    place = ensure(tmp_path / "deep" / "synthetic", seed=0, params=SMALL)
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    assert ensure(place, seed=0, params=SMALL) == place
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before


def test_ensure_fills_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "synthetic").mkdir()
    assert load(ensure(tmp_path / "synthetic", seed=0, params=SMALL)).train


@pytest.mark.parametrize(
    ("seed", "params", "difference"),
    [
        (1, SMALL, "seed is 0, wanted 1"),
        (0, replace(SMALL, obstruction=0.5), r"obstruction is 0\.12, wanted 0\.5"),
        (
            0,
            replace(SMALL, cameras_per_identity=(2, 4)),
            r"cameras_per_identity is \[2, 3\], wanted \[2, 4\]",
        ),
    ],
)
def test_ensure_refuses_another_data_set_and_names_the_difference(
    root: Path, seed: int, params: SyntheticParams, difference: str
) -> None:
    with pytest.raises(DataError, match=rf"{difference}; name another folder .*or delete this one"):
        ensure(root, seed=seed, params=params)


def test_ensure_refuses_images_of_another_generator(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "GENERATOR_VERSION", 99)
    with pytest.raises(DataError, match="generator_version is 1, wanted 99"):
        ensure(root, seed=0, params=SMALL)


def test_ensure_refuses_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(DataError, match=r"not a synthetic data set \(no synthetic\.json, found holiday\.jpg"):
        ensure(tmp_path, seed=0)


def test_ensure_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"not a synthetic data set .*found a file"):
        ensure(tmp_path / "file", seed=0)


def test_ensure_refuses_a_damaged_copy(tmp_path: Path) -> None:
    place = generate(tmp_path / "synthetic", seed=0, params=SMALL)
    next((place / "query").glob("*.jpg")).unlink()
    with pytest.raises(DataError, match=r"query: \d+ images instead of \d+, .*damaged; name another folder"):
        ensure(place, seed=0, params=SMALL)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"counts": {"train_images": 1}}'])
def test_ensure_refuses_a_damaged_record(tmp_path: Path, text: str) -> None:
    (tmp_path / "synthetic.json").write_text(text)
    with pytest.raises(DataError, match=r"synthetic\.json: cannot be read .*; name another folder"):
        ensure(tmp_path, seed=0)


def test_generate_never_writes_over_anything(root: Path) -> None:
    before = contents(root)
    with pytest.raises(DataError, match=r"exists already; name another folder .*, or delete this one"):
        generate(root, seed=0, params=SMALL)
    assert contents(root) == before


def test_a_place_that_cannot_be_written_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        OSError, match=r"file/synthetic: the synthetic data set cannot be written \(.+\); name"
    ):
        generate(tmp_path / "file" / "synthetic", seed=0, params=SMALL)


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(
        OSError, match=r"cannot be written \(No space left on device\); name a writable"
    ) as error:
        generate(tmp_path / "synthetic", seed=0, params=SMALL)
    assert error.value.errno == 28
    assert list(tmp_path.iterdir()) == []


def test_a_negative_seed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        generate(tmp_path / "synthetic", seed=-1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cameras": 7}, "which is at most 6"),
        ({"cameras": 4}, r"within 2 to cameras = 4.*got \(3, 5\)"),
        ({"cameras_per_identity": (1, 3)}, "cameras_per_identity must be a range"),
        ({"images_per_camera": (1, 3)}, "one of them is the query"),
        ({"test_hard_pairs": 51}, "got 100 identities and 51 pairs"),
        ({"train_identities": 1, "train_hard_pairs": 0}, "train_identities must be at least 2"),
        ({"train_identities": 9_950}, "file names have four digits"),
        ({"junk": -1}, "must be >= 0, got -1"),
        ({"obstruction": 1.5}, r"must be in \[0, 1\], got 1\.5"),
        ({"poor_boxes": -0.1}, r"must be in \[0, 1\], got 0\.12 and -0\.1"),
    ],
)
def test_an_impossible_size_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SyntheticParams(**changes)


def test_loading_makes_the_data_set_and_marks_it_as_synthetic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "SyntheticParams", lambda: SMALL)
    data = load_synthetic(root=tmp_path / "synthetic", seed=0)
    assert (data.name, data.synthetic, data.subset) == ("synthetic", True, None)
    assert load_synthetic(root=str(tmp_path / "synthetic"), seed=0) == data


def test_contact_sheet_shows_people_and_pairs(root: Path, tmp_path: Path) -> None:
    path = contact_sheet(root, tmp_path / "sheet.png")
    with Image.open(path) as sheet:
        assert sheet.size[0] > 6 * 2 * 64
        assert sheet.size[1] > (2 + 2 * 2 + 2) * 128


def test_command_makes_the_data_set_and_prints_its_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(synthetic, "SyntheticParams", lambda: SMALL)
    place, sheet = tmp_path / "synthetic", tmp_path / "sheet.jpg"
    synthetic_command.main(["--root", str(place), "--contact-sheet", str(sheet)])
    printed = capsys.readouterr().out
    assert str(place) in printed
    assert "6 train identities" in printed
    assert sheet.stat().st_size > 0


def test_documented_counts_are_those_of_the_default_data_set(default_plan: Plan) -> None:
    text = (DOCUMENTS / "synthetic.md").read_text(encoding="utf-8")
    for name, count in synthetic.count_images(default_plan).items():
        assert re.search(rf"\| {name.replace('_', ' ')} \| {count:,} \|", text), name
    assert f"generator version {synthetic.GENERATOR_VERSION}" in text


def test_documentation_names_the_command_and_shows_the_contact_sheet() -> None:
    text = (DOCUMENTS / "synthetic.md").read_text(encoding="utf-8")
    assert "python -m sharpreid.data.synthetic --root data/synthetic --seed 0" in text
    (picture,) = re.findall(r"!\[.+\]\((.+)\)", text)
    assert 0 < (DOCUMENTS / picture).stat().st_size < 400_000


@pytest.mark.slow
def test_documented_baselines_are_measured(tmp_path: Path) -> None:
    text = (DOCUMENTS / "synthetic.md").read_text(encoding="utf-8")
    data = load_synthetic(root=tmp_path / "synthetic", seed=0)
    train, query, gallery = map(thumbnails, (data.train, data.query, data.gallery))
    cameras = np.array([one.camid for one in data.train])
    mean = {camid: train[cameras == camid].mean(0) for camid in range(1, 7)}
    std = {camid: train[cameras == camid].std(0) for camid in range(1, 7)}

    def standardise(samples: tuple[Sample, ...], values: np.ndarray) -> np.ndarray:
        return np.stack(
            [(row - mean[one.camid]) / std[one.camid] for one, row in zip(samples, values, strict=True)]
        )

    random = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        random.append(
            score(data, rng.standard_normal((len(query), 128)), rng.standard_normal((len(gallery), 128)))
        )
    measured = {
        "random embedding, mean of 10": tuple(np.mean(random, axis=0)),
        "colours of 16 x 8 pixels": score(data, query, gallery),
        "the same, standardised per camera": score(
            data, standardise(data.query, query), standardise(data.gallery, gallery)
        ),
    }
    for name, (mAP, rank1) in measured.items():
        assert f"| {name} | {100 * mAP:.1f} | {100 * rank1:.1f} |" in text


def thumbnails(samples: tuple[Sample, ...]) -> np.ndarray:
    return np.stack(
        [
            np.asarray(read_image(one.path).resize((8, 16), Image.Resampling.BOX), dtype=np.float32).ravel()
            for one in samples
        ]
    )


def score(data: synthetic.ReIDData, query: np.ndarray, gallery: np.ndarray) -> tuple[float, float]:
    labels = [
        np.array([getattr(one, name) for one in samples])
        for samples in (data.query, data.gallery)
        for name in ("pid", "camid")
    ]
    scores = evaluate_ranking(query, *labels[:2], gallery, *labels[2:], protocol=Protocol.market1501())
    return scores.mAP, scores.rank(1)
