"""The page of `sharpreid.explore`, made with Gradio: search, masks, map and worst queries."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import gradio as gr
from gradio.data_classes import ImageData
from PIL import Image

from sharpreid.data.reid_data import DataError
from sharpreid.data.transforms import read_image
from sharpreid.exploration.explorer import Explorer, WorstQuery
from sharpreid.serving.gallery import Item
from sharpreid.serving.sources import read_picture
from sharpreid.serving.store import Filter, Match

MAX_UPLOAD = "10mb"
"""Largest file that may be uploaded."""

_OFFERED, _WORST = 12, 24  # pictures
_COLUMNS = ("rank", "distance", "within", "camera", "time", "frame", "identity", "file")
_CSS = """
footer {display: none !important}
.gradio-container {max-width: 1200px !important; margin: auto}
.grid-container {grid-template-columns: repeat(auto-fill, minmax(120px, 1fr)) !important}
@media (max-width: 700px) {
  #columns {flex-direction: column}
  #columns > *, .tabitem > * {min-width: 0 !important; width: 100% !important; max-width: calc(100vw - 64px)}
}
"""
_ONLY_PAGE: dict[str, Any] = {"api_visibility": "private"}
_Value = TypeVar("_Value")


class _Search(NamedTuple):
    """The query, its matches, and the arguments of the event that searches."""

    image: gr.Image
    item: gr.State
    """`Item` of the query, if it is a row of the store or a query of a run; None for an upload."""
    matches: gr.State
    """Items of the matches, nearest first."""
    event: Mapping[str, Any]


@contextmanager
def serve_page(explorer: Explorer, *, host: str, port: int) -> Iterator[str]:
    """Serve the page and yield its address.

    The page is served by this machine alone: no other host is asked for a script, a font or anything else.

    Args:
        explorer: answers the questions.
        host: address to listen on, such as 127.0.0.1.
        port: port to listen on; 0 takes a free one.

    Raises:
        OSError: the address or port is not free.
    """
    page = build_page(explorer)
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port or _free_port(host),
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            footer_links=[],
            max_file_size=MAX_UPLOAD,
            css=_CSS,
            theme=gr.themes.Default(primary_hue="blue"),
        )
        yield address
    finally:
        page.close()


def build_page(explorer: Explorer) -> gr.Blocks:
    """Build the page with its tabs."""
    page = gr.Blocks(analytics_enabled=False, title="sharpreid")
    with page, gr.Tabs() as tabs:
        with gr.Tab("Search", id="search"):
            query = _search_tab(page, explorer)
        with gr.Tab("Masks", id="masks"):
            _attention_tab(explorer, query)
        with gr.Tab("Map", id="map"):
            _map_tab(explorer)
        if explorer.run is not None:
            with gr.Tab("Worst", id="worst"):
                _worst_tab(page, explorer, query, tabs)
    return page


def _search_tab(page: gr.Blocks, explorer: Explorer) -> _Search:
    item, matches, seed = gr.State(None), gr.State([]), gr.State(0)
    offered = gr.State(explorer.sample(_OFFERED, seed=0))
    with gr.Row(elem_id="columns"):
        with gr.Column(scale=1, min_width=280):
            image = gr.Image(
                label="Query: upload a picture of a person",
                sources=["upload"],
                height=260,
                buttons=[],
                elem_id="query",
            )
            image.preprocess = _uploaded_path  # type: ignore[method-assign]
            with gr.Accordion("Or choose a person of the store", open=False):
                offer = _gallery("People of the store", elem_id="offer")
                others = gr.Button("Show others", size="sm")
            cameras = gr.Dropdown(
                explorer.cameras, multiselect=True, label="Cameras (none chosen: all)", elem_id="cameras"
            )
            first, last = explorer.times or (None, None)
            with gr.Row(visible=first is not None):
                start = gr.Textbox(label="From (seconds)", placeholder=f"{first}", elem_id="start")
                end = gr.Textbox(label="To (seconds)", placeholder=f"{last}", elem_id="end")
            threshold = gr.Slider(
                0,
                round(explorer.largest_distance, 3),
                value=explorer.threshold or round(explorer.largest_distance / 3, 3),
                step=0.001,
                label="Threshold",
                info=_describe_threshold(explorer),
                elem_id="threshold",
            )
            count = gr.Slider(1, 48, value=12, step=1, label="Matches shown")
            search = gr.Button("Search", variant="primary")
        with gr.Column(scale=2, min_width=300):
            sentence = gr.Markdown("Upload a picture or choose a person, then search.", elem_id="answer")
            ranked = _gallery("Matches, nearest first", elem_id="ranked")
            table = gr.Dataframe(headers=list(_COLUMNS), label="Matches", interactive=False, buttons=[])

    def answer(
        path: str | None,
        item: Item | None,
        cameras: list[str],
        start: str | None,
        end: str | None,
        threshold: float,
        count: float,
    ) -> tuple[Any, ...]:
        where = Filter(cameras=tuple(cameras or ()), start=_seconds(start), end=_seconds(end))
        found = explorer.search(
            _query_picture(path, item), where, count=int(count), threshold=threshold, leave_out=item
        )
        cells = [
            (explorer.thumbnail(one.item), f"{rank}: {one.distance:.3f}{_camera(one.item)}")
            for rank, one in enumerate(found.matches, 1)
        ]
        rows = [_row(rank, one, threshold) for rank, one in enumerate(found.matches, 1)]
        return found.sentence, cells, rows, [one.item for one in found.matches]

    def show_offer(seed: int) -> tuple[list[Item], list[tuple[Image.Image, str]], int]:
        some = explorer.sample(_OFFERED, seed=seed)
        return some, [(explorer.thumbnail(one), _camera(one).strip()) for one in some], seed + 1

    def choose(some: Sequence[Item], event: gr.SelectData) -> tuple[Image.Image, Item]:
        chosen = some[event.index]
        return read_picture(chosen), chosen

    event = {
        "fn": _spoken(answer),
        "inputs": [image, item, cameras, start, end, threshold, count],
        "outputs": [sentence, ranked, table, matches],
        **_ONLY_PAGE,
    }
    for trigger in (page.load, others.click):
        trigger(_spoken(show_offer), seed, [offered, offer, seed], **_ONLY_PAGE)
    offer.select(_spoken(choose), offered, [image, item], **_ONLY_PAGE).success(**event)
    image.upload(lambda: None, None, item, **_ONLY_PAGE).success(**event)
    image.clear(lambda: None, None, item, **_ONLY_PAGE)
    for trigger in (search.click, threshold.release):
        trigger(**event)
    return _Search(image, item, matches, event)


def _attention_tab(explorer: Explorer, query: _Search) -> None:
    gr.Markdown(
        "The mean mask of each attention block for the query and, after a search, its nearest match. Black "
        "is 0 and white is 1. A soft mask is the probability with which a feature is kept (Eq. 3)."
    )
    draw = gr.Button("Draw the masks", variant="primary")
    masks = gr.Image(label="Masks", interactive=False, buttons=["fullscreen"], elem_id="masks")

    def show(path: str | None, item: Item | None, matches: Sequence[Item]) -> Image.Image:
        pictures = {"query": _query_picture(path, item)}
        if matches:
            pictures["nearest match"] = read_picture(matches[0])
        return explorer.draw_masks([*pictures.values()], [*pictures])

    draw.click(_spoken(show), [query.image, query.item, query.matches], masks, **_ONLY_PAGE)


def _map_tab(explorer: Explorer) -> None:
    gr.Markdown("The embeddings of the store in the plane (t-SNE). Near points look alike to the model.")
    colour = gr.Radio(["camera", "identity", "track"], value="camera", label="Colour by")
    draw = gr.Button("Draw the map", variant="primary")
    plot = gr.Plot(label="Map", elem_id="map")
    draw.click(_spoken(explorer.draw_map), colour, plot, **_ONLY_PAGE)


def _worst_tab(page: gr.Blocks, explorer: Explorer, query: _Search, tabs: gr.Tabs) -> None:
    worst = explorer.worst_queries(_WORST)
    gr.Markdown(
        f"The queries of `{explorer.run}` with the lowest average precision (AP). Select one to "
        "search for it."
    )
    gallery = _gallery("Worst queries", elem_id="worst")
    gr.Dataframe(
        [[one.image, one.identity, one.camera, f"{one.average_precision:.3f}", one.rank1] for one in worst],
        headers=["image", "identity", "camera", "AP", "rank-1 right"],
        interactive=False,
        buttons=[],
    )
    found = [one for one in worst if one.path is not None]

    def show() -> list[tuple[Image.Image, str]]:
        return [(explorer.thumbnail(_item(one)), f"AP {one.average_precision:.3f}") for one in found]

    def choose(event: gr.SelectData) -> tuple[Image.Image, Item, gr.Tabs]:
        item = _item(found[event.index])
        return read_picture(item), item, gr.Tabs(selected="search")

    page.load(_spoken(show), None, gallery, **_ONLY_PAGE)
    chosen = gallery.select(_spoken(choose), None, [query.image, query.item, tabs], **_ONLY_PAGE)
    chosen.success(**query.event)


def _item(query: WorstQuery) -> Item:
    return Item(str(query.path), camera=query.camera, identity=query.identity)


def _gallery(label: str, *, elem_id: str) -> gr.Gallery:
    return gr.Gallery(
        label=label,
        elem_id=elem_id,
        height="auto",
        object_fit="contain",
        allow_preview=False,
        interactive=False,
        buttons=[],
    )


def _query_picture(path: str | None, item: Item | None) -> Image.Image:
    """Read the query: an item as its file has it, otherwise the uploaded file."""
    if item is not None:
        return read_picture(item)
    if path is None:
        raise DataError("There is no query. Upload a picture of a person, or choose one of the store.")
    try:
        return read_image(Path(path))
    except DataError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise DataError(f"The uploaded file {reason}") from error


def _uploaded_path(payload: ImageData | None) -> str | None:
    """Return the uploaded file as it is; Gradio would decode it, and answer a broken one with a traceback."""
    return None if payload is None else payload.path


def _seconds(text: str | None) -> float | None:
    """Return a time in seconds; None for an empty text."""
    if not (text or "").strip():
        return None
    with suppress(ValueError):
        if math.isfinite(seconds := float(text or "")):
            return seconds
    raise ValueError(f"A time is a number of seconds; {text!r} is none.")


def _spoken(function: Callable[..., _Value]) -> Callable[..., _Value]:
    """Show the errors of a function on the page."""
    import functools

    @functools.wraps(function)
    def called(*arguments: Any) -> _Value:
        try:
            return function(*arguments)
        except (OSError, ValueError, RuntimeError) as error:
            raise gr.Error(str(error), print_exception=False, title="Not possible") from error

    return called


def _row(rank: int, match: Match, threshold: float) -> list[Any]:
    item = match.item
    time = None if item.time is None else round(item.time, 2)
    within = "yes" if match.distance <= threshold else "no"
    name = Path(item.path).name
    return [rank, f"{match.distance:.3f}", within, item.camera, time, item.frame, item.identity, name]


def _camera(item: Item) -> str:
    return "" if item.camera is None else f", camera {item.camera}"


def _describe_threshold(explorer: Explorer) -> str:
    found = explorer.model.config.threshold
    if found is None:
        return "This model has no calibrated threshold; choose one."
    return f"Calibrated: {found.false_positive_rate:.1%} of unknown people are taken for a known one."


def _free_port(host: str) -> int:
    import socket

    with socket.socket() as one:
        one.bind((host, 0))
        return int(one.getsockname()[1])
