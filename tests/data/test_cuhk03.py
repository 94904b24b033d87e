"""CUHK03 from files in the authors' format: a MATLAB v7.3 file whose cells are references."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import hydra.utils
import numpy as np
import numpy.typing as npt
import pytest
import pytorch_lightning as pl
from hydra import compose, initialize_config_dir
from PIL import Image

from sharpreid.config.paths import CONF_DIR
from sharpreid.config.resolvers import register_resolvers
from sharpreid.data.cuhk03 import PUBLISHED_NEW, load_cuhk03, load_cuhk03_new, new_protocol_queries
from sharpreid.data.cuhk03.images import RECORD, unpack
from sharpreid.data.cuhk03.mat_file import KINDS, MAT
from sharpreid.data.reid_data import DataError, ReIDData, Sample, identities
from sharpreid.evaluation.protocol import Protocol
from sharpreid.evaluation.ranking import evaluate_ranking
from sharpreid.run.build import build_data, build_module
from sharpreid.run.console import protocol_line
from sharpreid.run.records import describe_scores

PAIRS = (7, 2, 1, 1, 1)
REAL_PAIRS = (843, 440, 77, 58, 49)
CELLS = 2 * 10 * sum(PAIRS)
TEST_SETS = [[(1, 1 + split % 7), (2, 1 + split % 2)] for split in range(20)]
EMPTY = {(1, 1, 4), (1, 1, 5), (1, 3, 10), (2, 1, 6), *((3, 1, column) for column in range(6, 11))}
"""Cells (pair, number, column) without an image; the identity of pair 3 is never seen in its second view."""
HEADER = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Mon Jan  6 12:00:00 2014 HDF5 schema 1.00 ."


def pixels_of(kind: str, pair: int, number: int, column: int) -> npt.NDArray[np.uint8]:
    """The noise in a cell, (height, width, 3); no two cells have the same."""
    rng = np.random.default_rng((KINDS.index(kind), pair, number, column))
    return rng.integers(0, 256, (9 + number, 4 + column, 3), dtype=np.uint8)


def write_mat(path: Path, *, test_sets: Any = TEST_SETS, kinds: tuple[str, ...] = KINDS) -> Path:
    """A small CUHK03, as MATLAB saves it: axes reversed, cells as references, a header of 512 bytes."""
    with h5py.File(path, "w", userblock_size=512) as file:
        store = file.create_group("#refs#")

        def put(value: npt.NDArray[Any], matlab_class: str, *, empty: bool = False) -> h5py.Reference:
            stored = store.create_dataset(f"r{len(store)}", data=value)
            stored.attrs["MATLAB_class"] = np.bytes_(matlab_class)
            if empty:
                stored.attrs["MATLAB_empty"] = np.uint8(1)
            return stored.ref

        def put_cells(references: list[list[h5py.Reference]]) -> npt.NDArray[Any]:
            cells = np.empty((len(references), len(references[0])), dtype=h5py.ref_dtype)
            for place in np.ndindex(cells.shape):
                cells[place] = references[place[0]][place[1]]
            return cells

        def put_image(kind: str, pair: int, number: int, column: int) -> h5py.Reference:
            if (pair, number, column) in EMPTY:
                return put(np.zeros(2, dtype=np.uint64), "double", empty=True)
            return put(pixels_of(kind, pair, number, column).transpose(2, 1, 0), "uint8")

        for kind in kinds:
            pairs = [
                put(
                    put_cells(
                        [
                            [put_image(kind, pair, number, column) for number in range(1, people + 1)]
                            for column in range(1, 11)
                        ]
                    ),
                    "cell",
                )
                for pair, people in enumerate(PAIRS, start=1)
            ]
            file.create_dataset(kind, data=put_cells([pairs])).attrs["MATLAB_class"] = np.bytes_("cell")
        lists = [put(np.array(one, dtype=np.float64).T, "double") for one in test_sets]
        file.create_dataset("testsets", data=put_cells([lists])).attrs["MATLAB_class"] = np.bytes_("cell")
    with path.open("r+b") as opened:
        opened.write(HEADER.ljust(124) + b"\x00\x02IM")
    return path


def write_fake_dataset(root: Path) -> list[str]:
    """Write a small cuhk-03.mat and unpack its images; return the overrides that select them."""
    root.mkdir(parents=True)
    unpack(write_mat(root / MAT), root / "images")
    batch = ["data.validation_identities=0", "data.identities_per_batch=2"]
    return [f"data.source.root={root}", "data.source.allow_subset=true", *batch]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cuhk-03.mat; tests only read it."""
    return write_mat(tmp_path_factory.mktemp("original") / MAT)


@pytest.fixture(scope="module")
def unpacked(original: Path) -> Path:
    """Folder with the file and its unpacked images; tests only read it."""
    unpack(original, original.parent / "images")
    return original.parent


@pytest.fixture
def root(original: Path, tmp_path: Path) -> Path:
    """A folder of the test's own with the file alone."""
    folder = tmp_path / "cuhk03_release"
    folder.mkdir()
    shutil.copy(original, folder)
    return folder


@pytest.fixture
def complete(unpacked: Path, tmp_path: Path) -> Path:
    """A folder of the test's own with the file and its images."""
    return Path(shutil.copytree(unpacked, tmp_path / "complete"))


def load(root: Path, **changes: Any) -> ReIDData:
    settings: dict[str, Any] = {
        "crops": "labeled",
        "split": 0,
        "cameras": "view",
        "name": "cuhk03_labeled",
        "allow_subset": True,
    }
    return load_cuhk03(root=root, **settings | changes)


def names(samples: tuple[Sample, ...]) -> set[str]:
    return {sample.path.stem for sample in samples}


def people(samples: tuple[Sample, ...]) -> set[tuple[int, int]]:
    return {(int(name[0]), int(name[2:5])) for name in names(samples)}


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_every_image_is_unpacked_pixel_for_pixel(unpacked: Path) -> None:
    wanted = {
        f"{kind}/{pair}_{number:03d}_{1 if column < 6 else 2}_{column:02d}.png": (kind, pair, number, column)
        for kind in KINDS
        for pair, people in enumerate(PAIRS, start=1)
        for number in range(1, people + 1)
        for column in range(1, 11)
        if (pair, number, column) not in EMPTY
    }
    assert files(unpacked / "images") == sorted([*wanted, RECORD])
    for name, place in wanted.items():
        with Image.open(unpacked / "images" / name) as image:
            np.testing.assert_array_equal(np.asarray(image), pixels_of(*place))


def test_the_record_holds_counts_and_test_sets(unpacked: Path) -> None:
    record = json.loads((unpacked / "images" / RECORD).read_text())
    assert record["images"] == dict.fromkeys(KINDS, CELLS // 2 - len(EMPTY))
    assert record["pairs"] == list(PAIRS)
    assert record["test_sets"] == [[list(identity) for identity in one] for one in TEST_SETS]


def test_progress_counts_every_cell(root: Path) -> None:
    seen: list[tuple[int, int]] = []
    load(root, progress=lambda *now: seen.append(now))
    assert seen == [(done, CELLS) for done in range(1, CELLS + 1)]
    load(root, progress=lambda *now: seen.append(now))
    assert len(seen) == CELLS, "the second time nothing is left to do"


def test_without_a_callback_a_bar_is_shown(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(root)
    shown = capsys.readouterr()
    assert "unpacking cuhk-03.mat" in shown.err
    assert f"{CELLS}/{CELLS}" in shown.err
    assert not shown.out


def test_a_split_tests_its_identities_and_trains_on_all_others(unpacked: Path) -> None:
    everybody = {(pair, number + 1) for pair, size in enumerate(PAIRS, 1) for number in range(size)}
    for split, tested in enumerate(TEST_SETS):
        data = load(unpacked, split=split)
        assert data.split == split
        assert people(data.query) == set(tested)
        assert people(data.train) == everybody - set(tested)
        assert data.gallery == data.query, "every test image is a query and is in the gallery"
        assert len(data.train) + len(data.query) == CELLS // 2 - len(EMPTY)


def test_identities_are_numbered_through_the_pairs(unpacked: Path) -> None:
    data = load(unpacked)
    numbers = {sample.path.name[:5]: sample.pid for sample in (*data.train, *data.query)}
    assert numbers == {
        **{f"1_{number:03d}": number for number in range(1, 8)},
        "2_001": 8,
        "2_002": 9,
        "3_001": 10,
        "4_001": 11,
        "5_001": 12,
    }


@pytest.mark.parametrize(("cameras", "wanted"), [("view", {1, 2}), ("pair_and_view", {1, 2, 3, 4})])
def test_cameras_are_the_two_views_or_those_of_each_pair(
    unpacked: Path, cameras: str, wanted: set[int]
) -> None:
    data = load(unpacked, cameras=cameras)
    assert {sample.camid for sample in data.query} == wanted
    for sample in (*data.train, *data.query):
        pair, view = int(sample.path.name[0]), int(sample.path.name[6])
        assert sample.camid == (view if cameras == "view" else 2 * pair - 2 + view)
        assert (view == 1) == (int(sample.path.stem[-2:]) <= 5)


def test_pooled_crops_are_labeled_and_detected_ones_of_the_same_people(unpacked: Path) -> None:
    labeled, detected, both = (load(unpacked, crops=crops) for crops in ("labeled", "detected", "both"))
    assert both.train == labeled.train + detected.train
    assert both.query == labeled.query + detected.query
    assert identities(both.query) == identities(labeled.query)


def test_no_query_meets_itself_and_a_perfect_embedding_scores_one(unpacked: Path) -> None:
    data = load(unpacked, split=2)
    pids = np.array([sample.pid for sample in data.query])
    camids = np.array([sample.camid for sample in data.query])
    images = np.eye(len(pids), dtype=np.float32)
    of_one_person = (pids[:, None] == np.unique(pids)).astype(np.float32)
    protocol = Protocol.cuhk03_single_shot(split=2)
    itself = evaluate_ranking(images, pids, camids, images, pids, camids, protocol=protocol)
    assert itself.rank(1) == 0, "all others are equally far, and ties count against the query"
    perfect = evaluate_ranking(of_one_person, pids, camids, of_one_person, pids, camids, protocol=protocol)
    assert (perfect.rank(1), perfect.mAP) == (1, 1)


@pytest.mark.parametrize("kind", ["labeled", "detected"])
def test_the_new_protocol_takes_its_queries_from_the_table(unpacked: Path, kind: Any) -> None:
    data = load_cuhk03_new(root=unpacked, crops=kind, name="cuhk03_new", allow_subset=True)
    queries = new_protocol_queries(kind)
    tested = {(pair, number) for pair, number in queries if number <= PAIRS[pair - 1]}
    assert len(tested) > 2
    assert people(data.query) == people(data.gallery) == tested
    assert not people(data.train) & tested
    for pair, number in tested:
        first, second = queries[pair, number]
        present = {f"{pair}_{number:03d}_1_{first:02d}", f"{pair}_{number:03d}_2_{second:02d}"}
        assert {name for name in names(data.query) if name.startswith(f"{pair}_{number:03d}")} == present
    assert not names(data.query) & names(data.gallery)
    assert len(data.train) + len(data.query) + len(data.gallery) == CELLS // 2 - len(EMPTY)
    assert data.split is None


@pytest.mark.parametrize("kind", ["labeled", "detected"])
def test_the_table_of_the_new_protocol_has_700_people_with_a_query_in_either_view(kind: Any) -> None:
    queries = new_protocol_queries(kind)
    assert len(queries) == PUBLISHED_NEW[kind]["query_identities"] == PUBLISHED_NEW[kind]["query_images"] / 2
    assert all(1 <= number <= REAL_PAIRS[pair - 1] for pair, number in queries)
    assert all(first in range(1, 6) and second in range(6, 11) for first, second in queries.values())
    assert sum(REAL_PAIRS) - len(queries) == PUBLISHED_NEW[kind]["train_identities"]


def test_published_counts_of_the_new_protocol_add_up_to_all_images() -> None:
    totals = {
        kind: sum(counts[f"{part}_images"] for part in ("train", "query", "gallery"))
        for kind, counts in PUBLISHED_NEW.items()
    }
    assert totals == {"labeled": 14_096, "detected": 14_097}


def test_people_tested_on_labeled_and_on_detected_crops_are_the_same_but_for_one() -> None:
    labeled, detected = (set(new_protocol_queries(kind)) for kind in ("labeled", "detected"))
    assert len(labeled - detected) == 1


def test_other_counts_than_the_published_are_refused_unless_allowed(unpacked: Path) -> None:
    with pytest.raises(DataError, match=r"the published cuhk03_labeled: 111 images instead of 14,096"):
        load(unpacked, allow_subset=False)
    with pytest.raises(
        DataError, match=r"cuhk03_new: .* instead of 7,368.* instead of 767.* instead of 1,40"
    ):
        load_cuhk03_new(root=unpacked, crops="labeled", name="cuhk03_new")
    assert "12 identities instead of 1,467, 2 test identities instead of 100" in str(load(unpacked).subset)


def test_a_subset_has_one_name_in_all_splits(unpacked: Path) -> None:
    assert len({load(unpacked, split=split).subset for split in range(20)}) == 1


def test_a_complete_set_is_no_subset(unpacked: Path) -> None:
    data = load(unpacked, expected={"images": 111, "test_identities": 2}, allow_subset=False)
    assert data.subset is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": 20}, "split must be from 0 to 19, got 20"),
        ({"split": -1}, "split must be from 0 to 19, got -1"),
        ({"split": "abc"}, "split must be a whole number, got 'abc'"),
        ({"split": 1.5}, "split must be a whole number, got 1.5"),
        ({"crops": "labelled"}, "crops must be one of labeled, detected, both, got 'labelled'"),
        ({"cameras": "pair"}, "cameras must be one of view, pair_and_view, got 'pair'"),
    ],
)
def test_an_option_that_does_not_exist_is_refused(
    unpacked: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load(unpacked, **changes)


def test_the_new_protocol_has_no_pooled_crops(unpacked: Path) -> None:
    crops: Any = "both"
    with pytest.raises(ValueError, match="crops must be one of labeled, detected, got 'both'"):
        load_cuhk03_new(root=unpacked, crops=crops, name="cuhk03_new")


def test_a_missing_file_says_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"cuhk-03\.mat: no such file\. .*data\.source\.root="):
        load(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"<!DOCTYPE html><html><body>Quota exceeded</body></html>", "a web page"),
        (b"\n  <html>", "a web page"),
        (b"MATLAB 5.0 MAT-file, Platform: GLNXA64", "a MATLAB v5 file"),
        (b"PK\x03\x04cuhk03_release", "a ZIP archive"),
        (HEADER, "the beginning of one that is cut off"),
        (b"", "an empty file"),
        (b"\x89PNG\r\n", r"one that starts b'\\x89PNG"),
    ],
    ids=["page", "page after spaces", "v5", "zip", "header alone", "empty", "something else"],
)
def test_another_file_under_its_name_is_told_apart(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / MAT).write_bytes(content)
    with pytest.raises(DataError, match=rf"expected a MATLAB v7\.3 \(HDF5\) file, got {what}.*; restore"):
        load(tmp_path)
    assert files(tmp_path) == [MAT]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused_before_anything_is_written(root: Path, share: float) -> None:
    os.truncate(root / MAT, int(share * (root / MAT).stat().st_size))
    with pytest.raises(
        DataError, match=r"cuhk-03\.mat: the file cannot be read \(.*damaged, incomplete.*restore"
    ):
        load(root)
    assert files(root) == [MAT]


def change_labeled(file: h5py.File, changed: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> None:
    references = file["labeled"][()]
    del file["labeled"]
    file["labeled"] = changed(references)


def put_instead(file: h5py.File, value: npt.NDArray[Any]) -> None:
    """Make a cell refer to something else than an image."""
    file["other"] = value
    pair = file[file["labeled"][0, 0]]
    pair[0, 0] = file["other"].ref


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.pop("detected"), r"variable 'detected' cannot be read .*not CUHK03"),
        (lambda file: file.pop("testsets"), r"variable 'testsets' cannot be read"),
        (lambda file: change_labeled(file, lambda _: np.zeros((1, 5))), r"variable 'labeled' cannot be read"),
        (lambda file: change_labeled(file, lambda old: old[:, :4]), r"'labeled' must be 5 cells of \(iden"),
        (
            lambda file: change_labeled(file, lambda old: old[:, [1, 0, 2, 3, 4]]),
            r"labeled and detected differ",
        ),
        (
            lambda file: put_instead(file, np.zeros((3, 4, 5))),
            r"must hold uint8 \(3, width, height\), got float64",
        ),
        (lambda file: put_instead(file, np.zeros((4, 5, 3), np.uint8)), r"got uint8 \(4, 5, 3\); restore"),
    ],
    ids=[
        "no variable",
        "no test sets",
        "no references",
        "four pairs",
        "other pairs",
        "float",
        "not transposed",
    ],
)
def test_a_file_that_is_not_laid_out_as_cuhk03_is_refused(
    root: Path, damage: Callable[[h5py.File], object], message: str
) -> None:
    with h5py.File(root / MAT, "r+") as file:
        damage(file)
    with pytest.raises(DataError, match=rf"cuhk-03\.mat: .*{message}"):
        load(root)
    assert not (root / "images" / RECORD).exists()


@pytest.mark.parametrize(
    ("test_sets", "message"),
    [
        ([[(6, 1)]], "'testsets' names identity 1 of pair 6, which is not there"),
        ([[(2, 3)]], "'testsets' names identity 3 of pair 2, which is not there"),
        ([[(1, 1, 1)]], r"each of 'testsets' must be \(identities, 2\), got \(1, 3\)"),
    ],
)
def test_test_sets_of_people_who_are_not_there_are_refused(
    tmp_path: Path, test_sets: Any, message: str
) -> None:
    write_mat(tmp_path / MAT, test_sets=test_sets)
    with pytest.raises(DataError, match=message):
        load(tmp_path)


class StopError(Exception):
    """Stands for whatever ends a process."""


def stop_at(cell: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == cell:
            raise StopError

    return progress


def test_an_interrupted_run_goes_on_where_it_stopped(root: Path, unpacked: Path) -> None:
    with pytest.raises(StopError):
        load(root, progress=stop_at(CELLS // 2 + 7))
    images = root / "images"
    written = {name: (images / name).stat().st_mtime_ns for name in files(images)}
    assert 0 < len(written) < CELLS - 2 * len(EMPTY)
    assert RECORD not in written
    load(root)
    assert {name: (images / name).stat().st_mtime_ns for name in written} == written, (
        "nothing is written twice"
    )
    assert files(images) == files(unpacked / "images")


def test_a_run_killed_in_the_middle_of_a_file_leaves_nothing_that_counts(root: Path, unpacked: Path) -> None:
    (root / "images" / "labeled").mkdir(parents=True)
    (root / "images" / "labeled" / ".1_001_1_01-k1ll3d.png").write_bytes(b"\x89PNG half of i")
    assert load(root).counts() == load(unpacked).counts()


def test_of_two_runs_at_once_both_end_with_the_same_images(root: Path, unpacked: Path) -> None:
    """The faster run starts and ends while the slower one is at its fifth cell."""

    def overtake(done: int, total: int) -> None:
        if done == 5:
            load(root)

    assert load(root, progress=overtake).counts() == load(unpacked).counts()
    assert files(root / "images") == files(unpacked / "images")


@pytest.mark.slow
def test_two_processes_unpack_side_by_side(root: Path, unpacked: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from sharpreid.data.cuhk03.images import ensure_unpacked; "
        "root = Path(sys.argv[1]); print(dict(ensure_unpacked(root / 'cuhk-03.mat', root / 'images').images))"
    )
    command = [sys.executable, "-c", program, str(root)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert told[0] == told[1] != ""
    assert files(root / "images") == files(unpacked / "images")


def test_the_file_may_go_once_its_images_are_unpacked(complete: Path, unpacked: Path) -> None:
    (complete / MAT).unlink()
    assert load(complete).counts() == load(unpacked).counts()


def test_images_may_lie_elsewhere_than_the_file(root: Path, tmp_path: Path) -> None:
    data = load(root, images=tmp_path / "fast disk")
    assert files(root) == [MAT]
    assert data.query[0].path.parent == tmp_path / "fast disk" / "labeled"


def test_a_lost_image_is_unpacked_again(complete: Path, unpacked: Path) -> None:
    (complete / "images" / "detected" / "1_002_1_01.png").unlink()
    load(complete)
    assert files(complete) == files(unpacked)


def test_a_lost_image_without_the_file_is_named_by_its_count(complete: Path) -> None:
    (complete / MAT).unlink()
    (complete / "images" / "detected" / "1_002_1_01.png").unlink()
    with pytest.raises(DataError, match=r"images: 110 detected images instead of 111; restore cuhk-03\.mat"):
        load(complete)


def test_images_too_many_are_refused(complete: Path) -> None:
    folder = complete / "images" / "labeled"
    shutil.copy(folder / "1_002_1_01.png", folder / "1_001_1_05.png")
    with pytest.raises(DataError, match=r"112 labeled images instead of 111"):
        load(complete)


def test_images_of_another_file_are_refused(complete: Path) -> None:
    with (complete / MAT).open("ab") as opened:
        opened.write(b"more")
    with pytest.raises(DataError, match=r"unpacked from a cuhk-03\.mat of .* bytes, but .* delete .*images"):
        load(complete)


@pytest.mark.parametrize("text", ["", "[]", '{"pairs": [7', '{"pairs": [7], "images": {}, "test_sets": []}'])
def test_a_damaged_record_is_refused(complete: Path, text: str) -> None:
    (complete / "images" / RECORD).write_text(text)
    with pytest.raises(DataError, match=r"cuhk03\.json: cannot be read \(.*; delete"):
        load(complete)
    (complete / "images" / RECORD).unlink()
    assert load(complete).query


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No file can be made, whoever runs the tests."""

    def refuse(*args: Any, **settings: Any) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("sharpreid.data.cuhk03.images.replacing", refuse)
        yield


@pytest.mark.usefixtures("read_only")
def test_a_folder_that_cannot_be_written_is_named_with_what_to_do(root: Path) -> None:
    with pytest.raises(
        PermissionError, match=r"images: .* cannot be written \(Permission denied\).*data\.source\.images="
    ):
        load(root)
    assert files(root) == [MAT]


@pytest.mark.usefixtures("read_only")
def test_unpacked_images_are_read_from_a_folder_that_cannot_be_written(unpacked: Path) -> None:
    assert load(unpacked).query


def test_a_file_in_the_place_of_the_folder_is_an_error(root: Path) -> None:
    (root / "images").touch()
    with pytest.raises(OSError, match=r"images: the images of CUHK03 cannot be written"):
        load(root)


def test_a_full_disk_keeps_what_is_written(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Image.Image.save

    def full(image: Image.Image, path: Path, form: str) -> None:
        if path.parent.name == "detected":
            raise OSError(28, "No space left on device")
        save(image, path, form)

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match=r"cannot be written \(No space left on device\).* are kept") as error:
        load(root)
    assert error.value.errno == 28
    assert len(files(root / "images")) == CELLS // 2 - len(EMPTY), "and no half of a file beside them"


def test_the_home_directory_may_be_abbreviated(unpacked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(unpacked.parent))
    assert load(Path(f"~/{unpacked.name}")).train


def composed(*overrides: str) -> Any:
    register_resolvers()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("train", list(overrides), return_hydra_config=True)


@pytest.mark.parametrize("name", ["labeled", "openreid"])
def test_it_is_trained_on_and_scored_single_shot_with_a_multi_shot_map(
    unpacked: Path, tiny_overrides: list[str], quiet: dict[str, Any], name: str
) -> None:
    own = [one for one in tiny_overrides if not one.startswith(("data=", "data.source"))]
    data = [f"data=cuhk03_{name}", f"data.source.root={unpacked}", "data.source.allow_subset=true"]
    cfg = composed(*own, *data, "data.validation_identities=2", "model.blocks=[4]")
    module, built = build_module(cfg), build_data(cfg)
    trainer = pl.Trainer(**quiet, max_steps=1)
    trainer.fit(module, built)
    trainer.test(module, built, verbose=False)
    record = describe_scores(cfg, module.test_metric.protocol, built.data, module.last_scores("test"))
    draws = 10 if name == "openreid" else 20
    assert f"repeats {draws}" in protocol_line(record["protocol"])
    assert "mAP on the full gallery (multi-shot)" in protocol_line(record["protocol"])
    assert record["dataset"]["split"] == 0
    assert 0 < record["scores"]["mAP"] <= 1
    assert record["scores"]["rank1_std"] >= 0


@pytest.mark.parametrize("name", ["labeled", "detected", "openreid", "new_labeled", "new_detected"])
def test_the_config_of_each_variant_reads_its_images(unpacked: Path, name: str) -> None:
    cfg = composed(
        f"data=cuhk03_{name}", f"data.source.root={unpacked}", "data.source.allow_subset=true", "seed=1"
    )
    classic = not name.startswith("new")
    assert cfg.data.validation_identities == (100 if classic else 0)
    cfg.data.validation_identities = 3 if classic else 0
    data = build_data(cfg)
    data.setup("fit")
    assert data.data.name == f"cuhk03_{name}"
    assert len(set(data.train.labels)) == len(identities(data.data.train)) - cfg.data.validation_identities
    folders = Counter(sample.path.parent.name for sample in data.data.query)
    assert set(folders) == ({"labeled", "detected"} if name == "openreid" else {name.rpartition("_")[2]})


@pytest.mark.parametrize(
    ("name", "protocol"),
    [
        ("labeled", Protocol.cuhk03_single_shot(split=7)),
        ("detected", Protocol.cuhk03_single_shot(split=7)),
        ("openreid", replace(Protocol.cuhk03_single_shot(split=7, repeats=10), name="openreid_compat")),
    ],
)
def test_the_split_reaches_the_draws_of_the_protocol(name: str, protocol: Protocol) -> None:
    cfg = composed(f"data=cuhk03_{name}", "data.source.split=7")
    assert hydra.utils.instantiate(cfg.protocol) == protocol
    assert protocol.repeats == (10 if name == "openreid" else 20)


@pytest.mark.parametrize("name", ["new_labeled", "new_detected"])
def test_the_new_protocol_has_the_rules_of_market1501(name: str) -> None:
    assert hydra.utils.instantiate(composed(f"data=cuhk03_{name}").protocol) == Protocol.cuhk03_new()


@pytest.mark.parametrize("name", ["labeled", "detected", "openreid"])
def test_one_command_runs_all_splits_and_each_has_a_directory_of_its_own(name: str) -> None:
    command = ["+experiment=cuhk03_splits", f"data=cuhk03_{name}"]
    hydra_cfg = composed(*command).hydra
    assert hydra_cfg.mode.name == "MULTIRUN"
    assert hydra_cfg.sweeper.params["data.source.split"] == "range(0,20)"
    assert hydra_cfg.sweep.dir == "outputs/cuhk03_splits"
    places = {composed(*command, f"data.source.split={split}").hydra.sweep.subdir for split in (0, 1, 19)}
    assert len(places) == 3
    assert all(place.startswith(f"cuhk03_{name}/") for place in places)
