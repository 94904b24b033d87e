"""A manifest of anyone's own images is read whole, or refused by the number of a line."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from sharpreid.data.manifest import load_manifest
from sharpreid.data.reid_data import DataError, ReIDData, split_validation
from tests.data.fake_images import PEOPLE, paint

Write = Callable[..., Path]

HEADER = "path,identity,camera,split"
LINES = (
    "a1.jpg,anna,door,train",
    "a2.jpg,anna,yard,train",
    "b1.jpg,bo,door,train",
    "b2.jpg,bo,yard,train",
    "c1.jpg,carl,door,query",
    "c2.jpg,carl,yard,gallery",
    "c3.jpg,carl,door,gallery",
    "d1.jpg,distractor,yard,gallery",
    "j1.jpg,junk,yard,gallery",
)
"""Lines 2 to 10 of a manifest."""


def write_fake_dataset(root: Path, cameras: tuple[str, str] = ("door", "yard")) -> list[str]:
    """Write a manifest of small images, some with a box; return the overrides that select it."""
    lines = ["path,identity,camera,split,box"]
    for person in PEOPLE:
        for number, camera in enumerate(cameras * 2):
            path = f"Bilder ☂/{person}_{number}.png"
            paint(root / path, "L" if number else "RGB")
            split = "train" if person <= 4 else ("query", "gallery")[number > 0]
            lines.append(f"{path},Person {person},{camera},{split},{'0 0 12 30' if number == 2 else ''}")
    Image.new("RGB", (1, 1)).save(root / "dot.png")
    lines.append(f"dot.png,distractor,{cameras[0]},gallery,")
    (root / "images.csv").write_text("\n".join(lines), encoding="utf-8")
    return [f"data.source.manifest={root / 'images.csv'}", "data.source.name=shop"]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a manifest and an image of 40 x 80 pixels for each of its paths."""

    def manifest(*lines: str, header: str = HEADER, encoding: str = "utf-8") -> Path:
        place = tmp_path / "images.csv"
        place.write_text("\n".join((header, *lines)) + "\n", encoding=encoding)
        for name in ("a1", "a2", "b1", "b2", "c1", "c2", "c3", "d1", "j1"):
            Image.new("RGB", (40, 80), (90, 120, 150)).save(tmp_path / f"{name}.jpg")
        return place

    return manifest


def without_cameras(lines: tuple[str, ...]) -> list[str]:
    return [line.replace(",door,", ",,").replace(",yard,", ",,") for line in lines]


def load(manifest: Path) -> ReIDData:
    return load_manifest(manifest=manifest, name="shop")


def test_identities_and_cameras_are_numbered_in_the_order_of_their_names(write: Write) -> None:
    data = load(write(*LINES))
    assert [(one.path.name, one.pid, one.camid) for one in data.train] == [
        ("a1.jpg", 1, 1),
        ("a2.jpg", 1, 2),
        ("b1.jpg", 2, 1),
        ("b2.jpg", 2, 2),
    ]
    assert [(one.pid, one.camid) for one in data.query] == [(3, 1)]
    assert (data.name, data.cameras_known, data.subset) == ("shop", True, None)


def test_distractors_are_gallery_and_junk_is_left_out_and_counted(write: Write) -> None:
    data = load(write(*LINES))
    assert [(one.path.name, one.pid) for one in data.gallery] == [
        ("c2.jpg", 3),
        ("c3.jpg", 3),
        ("d1.jpg", 0),
    ]
    assert (data.junk, data.counts()["distractor_images"]) == (1, 1)


def test_without_cameras_a_query_and_its_matches_count_as_from_two_cameras(write: Write) -> None:
    data = load(write(*without_cameras(LINES)))
    assert not data.cameras_known
    assert {one.camid for one in (*data.train, *data.query)} == {0}
    assert {one.camid for one in data.gallery} == {1}
    held, _ = split_validation(
        (*data.train, *(one._replace(pid=9) for one in data.train)), 1, 0, cameras_known=data.cameras_known
    )
    assert held.query


def test_boxes_are_cut_from_one_file_for_several_people(write: Write) -> None:
    people = ("a1.jpg,carl,door,query,0 0 20 80", "a1.jpg,distractor,door,gallery,20 0 40 80")
    lines = [f"{line}," for line in LINES if not line.startswith("a1")]
    data = load(write(*lines, *people, header=f"{HEADER},box"))
    assert data.query[-1].box == (0, 0, 20, 80)
    assert data.gallery[-1].box == (20, 0, 40, 80)
    assert data.train[0].box is None


def test_columns_may_come_in_any_order_and_from_a_spreadsheet(write: Write) -> None:
    turned = [",".join(reversed(line.split(","))) for line in LINES]
    header = ",".join(reversed(HEADER.split(",")))
    assert load(write(*turned, header=header, encoding="utf-8-sig")) == load(write(*LINES))


def test_names_may_hold_spaces_commas_and_any_letters(tmp_path: Path, write: Write) -> None:
    folder = tmp_path / "Käufer, 東京 ☂"
    folder.mkdir()
    Image.new("RGB", (4, 8)).save(folder / "bild eins.PNG")
    manifest = write(*LINES, '"Käufer, 東京 ☂/bild eins.PNG",Čeněk,Tür 1,gallery', "")
    last = load(manifest).gallery[-1]
    assert (last.path, last.pid) == (folder / "bild eins.PNG", 4)


def test_an_absolute_path_needs_no_manifest_beside_it(tmp_path: Path, write: Write) -> None:
    image = tmp_path / "elsewhere.png"
    Image.new("RGB", (4, 8)).save(image)
    assert load(write(*LINES, f"{image},dora,door,gallery")).gallery[-1].path == image


@pytest.fixture
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody's private picture."""
    image = tmp_path_factory.mktemp("private") / "me.png"
    Image.new("RGB", (4, 8)).save(image)
    return image


@pytest.mark.parametrize("way", ["absolute", "upwards", "link", "linked folder"])
def test_an_image_outside_of_the_manifests_folder_is_refused(
    way: str, tmp_path: Path, outside: Path, write: Write
) -> None:
    name = {
        "absolute": str(outside),
        "upwards": os.path.relpath(outside, tmp_path),
        "link": "link.png",
        "linked folder": "folder/me.png",
    }[way]
    (tmp_path / "link.png").symlink_to(outside)
    (tmp_path / "folder").symlink_to(outside.parent)
    manifest = write(*LINES, f"{name},dora,door,gallery")
    with pytest.raises(
        DataError, match=r"line 11: the image is .*me\.png, outside of .*data\.source\.within="
    ):
        load(manifest)
    shared = os.path.commonpath([tmp_path, outside])
    data = load_manifest(manifest=manifest, name="shop", within=shared)
    assert data.gallery[-1].path == tmp_path / name


def test_a_file_outside_is_refused_before_it_is_opened(write: Write) -> None:
    line = f"{'../' * 40}etc/passwd,dora,door,gallery,0 0 1 1"
    with pytest.raises(DataError, match=r"line 11: the image is /etc/passwd, outside of"):
        load(write(*(f"{line}," for line in LINES), line, header=f"{HEADER},box"))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("path,identity,split", r"line 1: the header must be path,identity,camera,split.*missing: camera"),
        ("path,identity,cam,split", r"missing: camera; unknown: cam\)"),
        ("path;identity;camera;split", "missing: path, identity, camera, split"),
        ("path,identity,camera,split,split", r"line 1: the header must be"),
        (",path,identity,camera,split", r"a column without a title; pandas .* index=False"),
        ("path,identity,camera,split\u200b", r"unknown: 'split\\u200b' with U\+200B"),
    ],
)
def test_a_wrong_header_is_compared_with_the_right_one(write: Write, header: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(write(*LINES, header=header))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("c3.jpg,dora,door,test", "line 11: split must be one of train, query, gallery; got 'test'"),
        ("c9.jpg,dora,door,gallery", r"line 11: no file .*c9\.jpg; paths are absolute or relative"),
        (",dora,door,gallery", "line 11: no file"),
        ("c3.jpg,,door,gallery", "line 11: no identity; write distractor or junk"),
        ("c3.jpg,distractor,door,train", "line 11: .*identity distractor must have split gallery; got train"),
        ("c3.jpg,junk,door,query", "line 11: .*identity junk must have split gallery; got query"),
        ("c3.jpg,dora,,query", "line 11: no camera, but line 2 has one"),
        ("c3.jpg,anna,door,gallery", "line 11: identity 'anna' has split gallery here and train in line 2"),
        ("c3.jpg,dora,door,gallery", "line 11: the same image as in line 8, in the same split"),
        ("c3.jpg,dora,door", "line 11: 3 fields instead of 4; .*comma in double quotes"),
        ("c3.jpg,dora,door,gallery,1 2 3 4", "line 11: 5 fields instead of 4"),
        ("c3.jpg,Distractor,door,gallery", "line 11: identity 'Distractor': write distractor, or choose"),
        (f"{'c' * 300}.jpg,dora,door,gallery", "line 11: no file"),
        ('c3.jpg,"dora,y,gallery\nc3.jpg,dora",y,gallery', "line 12: a line break within identity"),
        ('c3.jpg,"dora"x,door,gallery', "not a CSV file in UTF-8"),
    ],
)
def test_a_wrong_line_is_named_by_its_number(write: Write, line: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(write(*LINES, line))


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ("0 0 20", "box must be four whole numbers, left upper right lower; got '0 0 20'"),
        ("0 0 20 8.5", "box must be four whole numbers"),
        ("20 0 20 80", "box '20 0 20 80' is empty"),
        ("0 0 41 80", r"box \(0, 0, 41, 80\) is not inside .*c3\.jpg, 40 x 80 pixels"),
        ("-1 0 20 80", r"box \(-1, 0, 20, 80\) is not inside"),
    ],
)
def test_a_wrong_box_is_named_by_its_line(write: Write, box: str, message: str) -> None:
    lines = [f"{line}," for line in LINES]
    with pytest.raises(DataError, match=f"line 11: {message}"):
        load(write(*lines, f"c3.jpg,dora,door,gallery,{box}", header=f"{HEADER},box"))


def test_a_box_in_a_file_that_is_no_image_is_named_by_its_line(tmp_path: Path, write: Write) -> None:
    (tmp_path / "page.jpg").write_text("Not Found")
    lines = [f"{line}," for line in LINES]
    with pytest.raises(DataError, match=r"line 11: .*page\.jpg: cannot be read as an image"):
        load(write(*lines, "page.jpg,dora,door,gallery,0 0 4 8", header=f"{HEADER},box"))


def test_the_same_image_is_query_and_gallery_only_where_cameras_keep_it_from_finding_itself(
    write: Write,
) -> None:
    lines = (*LINES, "c1.jpg,carl,door,gallery")
    assert load(write(*lines)).query[0].path == load(write(*lines)).gallery[-1].path
    with pytest.raises(
        DataError, match=r"line 11: the same image as in line 6, as query and gallery.*remove one"
    ):
        load(write(*without_cameras(lines)))


def test_one_image_with_two_boxes_is_two_images(write: Write) -> None:
    lines = [f"{line}," for line in without_cameras(LINES)]
    two = ("a1.jpg,carl,,query,0 0 20 80", "a1.jpg,carl,,gallery,20 0 40 80")
    assert len(load(write(*lines, *two, header=f"{HEADER},box")).query) == 2


def test_a_manifest_needs_a_line_but_not_one_of_each_split(write: Write) -> None:
    for split in ("train", "query", "gallery"):
        data = load(write(*(line for line in LINES if not line.endswith(split))))
        assert not getattr(data, split)
    with pytest.raises(DataError, match="has no images"):
        load(write())


JOSE, DECOMPOSED = "José", "Jose\u0301"


def test_a_name_in_two_unicode_forms_is_one_name(tmp_path: Path, write: Write) -> None:
    (tmp_path / f"{DECOMPOSED}.jpg").write_bytes((write() and tmp_path / "a1.jpg").read_bytes())
    lines = [f"a1.jpg,{JOSE},Südtür,query", f"{JOSE}.jpg,{DECOMPOSED},door,gallery"]
    data = load(write(*lines, "a2.jpg,dora,Su\u0308dtu\u0308r,gallery"))
    assert data.query[0].pid == data.gallery[0].pid
    assert data.query[0].camid == data.gallery[1].camid
    assert data.gallery[0].path.name == f"{DECOMPOSED}.jpg"
    with pytest.raises(DataError, match=r"line 3: identity .* has split gallery here and train in line 2"):
        load(write(lines[0].replace("query", "train"), lines[1]))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("c1.jpg,an\u200bna,door,query", r"line 2: identity 'an\\u200bna' has an invisible U\+200B"),
        ("c1.jpg,anna,do\u00ador,query", r"line 2: camera .* invisible U\+00AD \(SOFT HYPHEN\)"),
        ("c1.jpg,anna,door,\ufeffquery", r"line 2: split .* invisible U\+FEFF"),
        ("c1.jpg,an\x00na,door,query", r"line 2: identity .* invisible U\+0000"),
        ("\u202ac1.jpg,anna,door,query", r"line 2: no file .*invisible U\+202A .*position 1"),
    ],
)
def test_an_invisible_character_is_refused_by_its_line(write: Write, line: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(write(line, *LINES[:4]))


@pytest.mark.parametrize("other", ["1.0", "01", "1.", "1\u200d"])
@pytest.mark.parametrize("kind", ["identity", "camera"])
def test_names_that_look_alike_are_refused_with_both_lines(write: Write, kind: str, other: str) -> None:
    lines = [line.replace("anna" if kind == "identity" else "door", "1") for line in LINES]
    field = f"{other},1" if kind == "identity" else f"dora,{other}"
    with pytest.raises(DataError, match=rf"line 11: {kind} .* looks like '1' in line 2"):
        load(write(*lines, f"c3.jpg,{field},gallery"))


def test_names_that_differ_otherwise_are_names_of_their_own(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = ("10", "-1", "1", "0", "1e1", "x1", "x01", "ab\u200cc")
    lines = [f"a1.jpg,{name},1,gallery,{n} 0 9 9" for n, name in enumerate(numbers)]
    load(write(*lines, header=f"{HEADER},box"))
    assert not caplog.records
    load(write("a1.jpg,Anna,1,train", "a2.jpg,anna,1,train"))
    assert "'Anna' (line 2) and 'anna' (line 3)" in caplog.text


def test_a_set_in_which_no_query_has_a_match_is_refused(write: Write) -> None:
    same_camera = [line.replace("carl,yard", "dora,yard") for line in LINES]
    with pytest.raises(
        DataError, match=r"no query has a match.* 1 queries, 0 have an identity .* and 1 have"
    ):
        load(write(*same_camera))
    absent = [line.replace("carl,door,query", "dora,door,query") for line in LINES]
    with pytest.raises(DataError, match="1 queries, 1 have an identity that is not in the gallery, and 0"):
        load(write(*absent))


def test_a_missing_manifest_says_how_to_name_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.csv: no such file.*data\.source\.manifest=/path"):
        load(tmp_path / "none.csv")


def test_a_file_that_is_no_csv_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "images.csv"
    Image.new("RGB", (4, 8)).save(place, "PNG")
    with pytest.raises(DataError, match=r"images\.csv: not a CSV file in UTF-8"):
        load(place)


def test_an_empty_file_lacks_every_column(tmp_path: Path) -> None:
    place = tmp_path / "images.csv"
    place.touch()
    with pytest.raises(DataError, match=r"line 1: .*missing: path, identity, camera, split"):
        load(place)
