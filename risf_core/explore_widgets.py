"""The sliders of 01_explore: choosers, a slider over c, and the pictures that follow it. All computing is elsewhere."""

from __future__ import annotations

from html import escape

import ipywidgets as widgets
from IPython.display import Markdown

from risf_core.data.dataset import ImageRecord
from risf_core.errors import RisfError
from risf_core.explore import Cell, CellKey, View
from risf_core.explore_sources import Exploration
from risf_core.params import ExploreParams
from risf_core.report.explore_svg import WIDTH, boxes_svg, curves_svg, photo_html, size_of, table_html
from risf_core.report.pictures import read_rgb

NAMES = {"split": "split", "shots": "K", "loss": "loss", "arm": "arm", "seed": "seed"}
LAYER = {"grid_area": "1 / 1 / 2 / 2", "margin": "0"}  # photo and boxes share one cell of a grid
LEGEND = (
    "Boxes: black, annotated; blue, right (class and IoU ≥ 0.5); orange and dashed, wrong. Numbers are those of the "
    "table. Boxes and classes never change, only scores do."
)
NO_SLIDERS = (
    "*The sliders stand here when the notebook is opened in JupyterLab (`make lab`) and run; the figure below is what "
    "they begin with.*"
)


def explore_panel(exploration: Exploration, key: CellKey, view: View, params: ExploreParams, run):
    """What the notebook shows: the widgets, or for a run by the launcher, which nobody watches, one sentence."""
    if not run.is_scratch:
        return Markdown(NO_SLIDERS)
    return ExplorePanel(exploration, key, view, c=params.c, draw_thresh=params.draw_thresh).widget


class ExplorePanel:
    """Choosers of cell, image and label space; sliders over c and the drawn score; two pictures, curves and a table.

    Args:
        exploration: What there is to choose from.
        key: The cell shown first.
        view: The image shown first.
        c: Where the slider begins.
        draw_thresh: Where the slider of the drawn score begins.
    """

    def __init__(
        self, exploration: Exploration, key: CellKey, view: View, *, c: float, draw_thresh: float
    ) -> None:
        self.exploration, self._view, self._is_choosing = exploration, view, False
        wide = {"style": {"description_width": "initial"}}
        self.choosers = {
            name: widgets.Dropdown(description=NAMES[name], layout={"width": "auto"}, **wide)
            for name in CellKey._fields
        }
        self.image = widgets.Dropdown(description="image", layout={"width": "300px"}, **wide)
        self.space = widgets.Dropdown(description="CLIP's names", layout={"width": "auto"}, **wide)
        slider = {"min": 0.0, "max": 1.0, "step": 0.01, "readout_format": ".2f", "layout": {"width": "420px"}}
        self.c = widgets.FloatSlider(value=c, description="c", **slider)
        self.thresh = widgets.FloatSlider(value=draw_thresh, description="drawn above", **slider, **wide)
        self.photos = [widgets.HTML(layout=LAYER) for _ in range(2)]
        self.layers = [widgets.HTML(layout=LAYER) for _ in range(2)]
        self.titles = [widgets.HTML(layout={"margin": "0"}) for _ in range(3)]
        self.curves, self.table = widgets.HTML(layout={"margin": "0"}), widgets.HTML()
        self.message = widgets.HTML()
        self._offer(key)
        self._offer_images(view.record.image_id, view.label_space)
        self._show_photo()
        self._redraw()
        for chooser in self.choosers.values():
            chooser.observe(self._on_cell, "value")
        for chooser in (self.image, self.space):
            chooser.observe(self._on_image, "value")
        for one in (self.c, self.thresh):
            one.observe(self._on_slider, "value")
        self.widget = self._layout()

    @property
    def key(self) -> CellKey:
        """The cell that the choosers name."""
        return CellKey(*(chooser.value for chooser in self.choosers.values()))

    def _layout(self) -> widgets.Widget:
        panels = []
        for title, photo, layer in zip(self.titles, self.photos, self.layers, strict=False):
            picture = widgets.GridBox([photo, layer], layout={"grid_template_columns": f"{WIDTH}px"})
            panels.append(
                widgets.VBox([title, picture], layout={"margin": "0 12px 0 0", "overflow": "visible"})
            )
        panels.append(widgets.VBox([self.titles[2], self.curves]))
        wrap = {"flex_flow": "row wrap", "align_items": "flex-start"}
        shown = [one for one in self.choosers.values() if len(self._all_values(one)) > 1]
        box = widgets.VBox(
            [
                widgets.HBox([self.image, *shown, self.space], layout=wrap),
                widgets.HBox([self.c, self.thresh], layout=wrap),
                self.message,
                widgets.HBox(panels, layout=wrap),
                widgets.HTML(f'<div style="font-size:12px;line-height:1.4">{LEGEND}</div>'),
                self.table,
            ]
        )
        box.add_class("risf-explore")
        return box

    def _all_values(self, chooser: widgets.Dropdown) -> set:
        """All values that a chooser may ever offer."""
        place = list(self.choosers.values()).index(chooser)
        return {key[place] for key in self.exploration.loaders}

    def _offer(self, wanted: CellKey) -> None:
        """Let each chooser offer what there is after the choices before it; keep the wanted value if it is there."""
        keys = list(self.exploration.loaders)
        for place, chooser in enumerate(self.choosers.values()):
            values = sorted({key[place] for key in keys}) if place in (0, 1, 4) else _in_order(keys, place)
            chooser.options = values
            chooser.value = wanted[place] if wanted[place] in values else values[0]
            keys = [key for key in keys if key[place] == chooser.value]

    def _offer_images(self, image_id: int, label_space: str) -> None:
        cell, records = self.exploration.cell(self.key), self.exploration.images(self.key)
        self.image.options = [(_image_name(record, cell), record.image_id) for record in records]
        ids = [record.image_id for record in records]
        self.image.value = image_id if image_id in ids else ids[0]
        self.space.options = cell.label_spaces
        self.space.value = label_space if label_space in cell.label_spaces else cell.label_spaces[0]

    def _on_cell(self, _change) -> None:
        if not self._is_choosing:
            self._guarded(self._choose_cell)

    def _choose_cell(self) -> None:
        self._offer(self.key)
        self._offer_images(self.image.value, self.space.value)
        self._choose_image()

    def _on_image(self, _change) -> None:
        if not self._is_choosing:
            self._guarded(self._choose_image)

    def _choose_image(self) -> None:
        self._view = self.exploration.cell(self.key).view(self.image.value, self.space.value)
        self._show_photo()
        self._redraw()

    def _on_slider(self, _change) -> None:
        self._guarded(self._redraw)

    def _guarded(self, work) -> None:
        """Do what an event asks for; an error a user can mend is shown in the panel, not in the kernel's log."""
        self._is_choosing, self.message.value = True, ""
        try:
            work()
        except RisfError as error:
            words = escape(f"{type(error).__name__}: {error}")
            self.message.value = f'<div style="color:#b00020;white-space:pre-wrap">{words}</div>'
        finally:
            self._is_choosing = False

    def _show_photo(self) -> None:
        html = photo_html(self._view, read_rgb(self._view.record))
        for photo in self.photos:
            photo.value = html
        width, height = size_of(self._view)
        for layer in (*self.photos, *self.layers):
            layer.layout.width, layer.layout.height = f"{width}px", f"{height}px"

    def _redraw(self) -> None:
        """All that depends on the sliders."""
        c, thresh = self.c.value, self.thresh.value
        texts = ("detector alone (c = 1)", f"re-scored, c = {c:.2f}", "score of each box over c")
        for title, text in zip(self.titles, texts, strict=True):
            title.value = f'<b style="font-size:13px">{text}</b>'
        for layer, weight in zip(self.layers, (1.0, c), strict=True):
            layer.value = boxes_svg(self._view, weight, thresh)
        self.curves.value = curves_svg(self._view, c, thresh)
        self.table.value = table_html(self._view, c)


def _in_order(keys: list[CellKey], place: int) -> list:
    return list(dict.fromkeys(key[place] for key in keys))


def _image_name(record: ImageRecord, cell: Cell) -> str:
    """An image's id and what it shows."""
    names = dict.fromkeys(cell.data.class_names[label] for label in record.labels[~record.is_crowd])
    return f"{record.image_id}: {', '.join(names) or 'no object'}"
