"""The page of sharpreid.explore, driven in a headless browser, and requests that a browser would not send."""

import json
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sharpreid.explore import main
from sharpreid.serving.model import load_model
from tests.exploration.test_explorer import filled
from tests.serving.test_model import saved

__all__ = ["saved"]  # a fixture

pytest.importorskip("gradio")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

_LOCAL = """
import signal, socket, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background
connect = socket.socket.connect
def only_here(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        print("OUTSIDE", address, file=sys.stderr, flush=True)
    return connect(self, address)
socket.socket.connect = only_here
from sharpreid.explore import main
main(sys.argv[1:])
"""
"""Program that runs the command, and reports connections to other machines."""


@pytest.fixture
def arguments(saved: Callable[..., tuple[Path, Any]], tiny_market: Path, tmp_path: Path) -> list[str]:
    folder, _ = saved("method=sab")
    filled(load_model(folder), tiny_market / "bounding_box_test", tmp_path / "store")
    rows = [f"{path.name},9,1,0.5,1" for path in sorted((tiny_market / "query").glob("*.jpg"))]
    run = tmp_path / "run"
    run.mkdir()
    (run / "queries.csv").write_text("\n".join(["image,identity,camera,ap,rank1", *rows]) + "\n")
    (run / "config.yaml").write_text(f"data: {{source: {{root: '{tiny_market}'}}}}\n")
    return [f"store={tmp_path / 'store'}", f"model={folder}", f"run={run}", "port=0"]


@pytest.fixture
def address(arguments: list[str], tmp_path: Path) -> Iterator[str]:
    errors = tmp_path / "errors.txt"
    with (
        errors.open("w") as file,
        subprocess.Popen(
            [sys.executable, "-c", _LOCAL, *arguments], stdout=subprocess.PIPE, stderr=file, text=True
        ) as process,
    ):
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            assert line.startswith("http://127.0.0.1:"), errors.read_text()
            assert "8 rows" in line
            yield line.split()[0]
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
    assert "OUTSIDE" not in errors.read_text()


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.own_interpreter
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_person_is_searched_in_a_browser(
    address: str, width: int, tiny_market: Path, tmp_path: Path
) -> None:
    from playwright.sync_api import expect, sync_playwright

    one = sorted((tiny_market / "bounding_box_test").glob("*_c1*.jpg"))[0]
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "large.jpg").write_bytes(one.read_bytes() + bytes(11 * 2**20))
    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=options)
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.set_default_timeout(20_000)
        asked, broken = set[str](), list[str]()
        page.on("request", lambda request: asked.add(request.url.partition("//")[2].partition("/")[0]))
        page.on("pageerror", lambda error: broken.append(str(error)))
        page.goto(address)
        said, search = page.locator("#answer"), page.get_by_role("button", name="Search", exact=True)

        search.click()
        expect(page.get_by_text("There is no query")).to_be_visible()
        page.set_input_files("#query input[type=file]", tmp_path / "broken.jpg")
        expect(page.get_by_text("The uploaded file cannot be read as an image").first).to_be_visible()
        page.locator("#query button[aria-label='Remove Image']").first.click()
        page.set_input_files("#query input[type=file]", tmp_path / "large.jpg")
        expect(page.get_by_text("maximum allowed size").first).to_be_visible()
        page.reload()

        page.set_input_files("#query input[type=file]", one)
        expect(said).to_contain_text("Found")
        expect(page.locator("#ranked img")).to_have_count(8)
        expect(page.locator("#ranked")).to_contain_text("1: 0.000, camera 1")
        page.locator("#cameras input").click()
        page.get_by_role("option", name="2").click()
        page.keyboard.press("Escape")
        search.click()
        expect(page.locator("#ranked img")).to_have_count(4)
        page.locator("#threshold input[type=number]").fill("0")
        search.click()
        expect(said).to_contain_text("Unknown person")
        assert page.evaluate("document.body.scrollWidth") <= width

        page.get_by_role("tab", name="Masks").click()
        page.get_by_role("button", name="Draw the masks").click()
        expect(page.locator("#masks img")).to_be_visible()
        page.get_by_role("tab", name="Map").click()
        page.get_by_role("button", name="Draw the map").click()
        expect(page.locator("#map img")).to_be_visible()
        page.get_by_role("tab", name="Worst").click()
        expect(page.locator("#worst img")).to_have_count(8)
        page.locator("#worst button:has(img)").first.click()
        expect(page.locator("#ranked img")).to_have_count(4)
        assert page.evaluate("document.body.scrollWidth") <= width
        browser.close()
    assert asked == {address.partition("//")[2].rstrip("/")}
    assert broken == []
    assert (tmp_path / "errors.txt").read_text() == "", "what is wrong is shown on the page"


@pytest.mark.slow
@pytest.mark.own_interpreter
def test_no_file_of_the_machine_can_be_read(address: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    for place in (
        secret,
        "/etc/passwd",
        f"{tmp_path}/store/../secret.txt",
        tmp_path / "store" / "store.json",
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{address}gradio_api/file={place}", timeout=20)
        assert refused.value.code in (403, 404)
        refused.value.close()
    functions = json.load(urllib.request.urlopen(f"{address}config", timeout=20))["dependencies"]
    number = next(one["id"] for one in functions if one["api_name"] == "answer")
    query = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    body = {"data": [query, None, [], "", "", 1.0, 3], "fn_index": number, "session_hash": "x"}
    request = urllib.request.Request(
        f"{address}gradio_api/queue/join", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=20).close()
    with urllib.request.urlopen(f"{address}gradio_api/queue/data?session_hash=x", timeout=20) as stream:
        told = [json.loads(line[5:]) for line in stream if line.startswith(b"data:") and b"completed" in line]
    assert told[0]["success"] is False
    assert "secret" not in json.dumps(told[0]["output"]).replace(str(secret), "")


@pytest.mark.parametrize(
    ("given", "status", "message"),
    [
        (["store=s"], 2, "model=... is missing"),
        (["store=s", "model=m", "port=x"], 2, "port must be"),
        (["store=s", "model=m", "modle=x"], 2, "did you mean model"),
        (["store=nowhere", "model=nowhere"], 1, "no store"),
    ],
)
def test_wrong_arguments(
    given: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(given)
    assert ended.value.code == status
    assert message in capsys.readouterr().err


def test_the_store_of_another_model_is_refused(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = json.loads((tmp_path / "store" / "store.json").read_text())
    (tmp_path / "store" / "store.json").write_text(json.dumps({**about, "digest": "0" * 64}))
    with pytest.raises(SystemExit):
        main(arguments)
    assert "another model" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["noon", "nan", "inf"])
def test_a_time_that_is_no_number_is_named(text: str) -> None:
    from sharpreid.exploration.page import _seconds

    assert [_seconds(given) for given in (None, " ", "1.5")] == [None, None, 1.5]
    with pytest.raises(ValueError, match=f"'{text}' is none"):
        _seconds(text)


@pytest.mark.parametrize("kind", [OSError, ValueError, RuntimeError])
def test_an_error_is_shown_on_the_page(kind: type[Exception]) -> None:
    import gradio

    from sharpreid.exploration.page import _spoken

    def fail() -> None:
        raise kind("the store is gone")

    with pytest.raises(gradio.Error, match="the store is gone"):
        _spoken(fail)()


def test_a_query_is_read_as_its_file_has_it(tmp_path: Path) -> None:
    """Gradio would save a copy of the picture, with losses."""
    from sharpreid.exploration.page import _query_picture
    from sharpreid.serving.gallery import Item

    Image.new("RGB", (20, 40), (1, 2, 3)).save(tmp_path / "a.png")
    item = Item(str(tmp_path / "a.png"), box=(0, 0, 10, 40))
    assert _query_picture("something else", item).size == (10, 40)
