import base64
import io
import re
import subprocess
import sys
from html.parser import HTMLParser

import matplotlib
import nbformat
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from nbconvert import HTMLExporter
from nbconvert.preprocessors import ExecutePreprocessor
from PIL import Image

from xaicourse import plotting

MAP = torch.linspace(-1, 2, 3 * 20 * 30).reshape(3, 20, 30)
PHOTOGRAPH = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0))
NEURONS = [torch.tensor([0.5, -1.5, 2.0]), torch.tensor([-0.25, 1.25]), torch.tensor([1.0])]
MESSAGES = [torch.tensor([[0.5, 0.0], [-1.0, -0.5], [0.25, 1.75]]), torch.tensor([[-0.25], [1.25]])]

DRAWINGS = {
    "heatmap": lambda alt: plotting.heatmap(MAP, alt=alt),
    "overlay": lambda alt: plotting.overlay(PHOTOGRAPH, MAP, alt=alt),
    "grid": lambda alt: plotting.grid({"a": MAP, "b": -MAP}, PHOTOGRAPH, alt=alt),
    "photograph": lambda alt: plotting.photograph(PHOTOGRAPH, alt=alt),
    "network_graph": lambda alt: plotting.network_graph(NEURONS, MESSAGES, alt=alt),
    "lines": lambda alt: plotting.lines({"a": [1.0, 2.0]}, xlabel="x", ylabel="y", alt=alt),
    "bars": lambda alt: plotting.bars(["a", "b"], [1.0, -2.0], [3.0, 4.0], alt=alt),
}
every_drawing = pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)


def texts(picture: plotting.Picture) -> str:
    """All that can be read in a picture, one piece per line, in our own typography."""
    picture.figure.draw_without_rendering()  # the text of axes is made when they are drawn
    pieces = picture.figure.findobj(matplotlib.text.Text)
    return "\n".join(piece.get_text() for piece in pieces if piece.get_visible() and piece.get_text())


def colour_scales(picture: plotting.Picture) -> list[tuple[float, float]]:
    """Ends of the scales of the maps, the image of each colour bar left out."""
    images = [image for axes in picture.figure.axes for image in axes.images]
    return [(image.norm.vmin, image.norm.vmax) for image in images if image.cmap.name != "gray"]


class Images(HTMLParser):
    """The attributes of every image on a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[dict[str, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.found.append(dict(attrs))


# text for those who cannot see ----------------------------------------------------------------------------


@every_drawing
@pytest.mark.parametrize("alt", ["", "  \n"])
def test_a_picture_without_its_text_is_refused(draw, alt):
    with pytest.raises(ValueError, match="alt must say what the picture shows"):
        draw(alt)


@every_drawing
def test_alt_must_be_a_string(draw):
    with pytest.raises(TypeError, match="alt must be a string, got NoneType"):
        draw(None)


@every_drawing
def test_the_notebook_receives_one_image_that_carries_the_text(draw):
    alt = 'A "cat" & <dog>: R > 0'
    bundle = draw(alt)._repr_mimebundle_()
    (image,) = Images(bundle["text/html"]).found
    assert image["alt"] == bundle["text/plain"] == alt
    kind, _, content = image["src"].partition("base64,")
    assert kind == "data:image/png;"
    width = Image.open(io.BytesIO(base64.b64decode(content))).width
    assert width in (int(image["width"]), 2 * int(image["width"]), 2 * int(image["width"]) + 1)
    assert int(image["width"]) <= 1000  # fits a notebook page


def test_alt_survives_in_an_executed_notebook_and_its_web_page_and_nothing_is_drawn_twice():
    source = (
        "%matplotlib inline\n"
        "import torch\n"
        "from xaicourse import plotting\n"
        "plotting.heatmap(torch.eye(8), alt='an identity matrix')"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    ExecutePreprocessor(timeout=120, kernel_name="python3").preprocess(notebook, {})
    (output,) = notebook.cells[0].outputs
    assert set(output.data) == {"text/html", "text/plain"}
    assert [image["alt"] for image in Images(output.data["text/html"]).found] == ["an identity matrix"]
    page, _ = HTMLExporter().from_notebook_node(notebook)
    assert [image.get("alt") for image in Images(page).found] == ["an identity matrix"]


# honest scales --------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    values=st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=6, max_size=6),
    limit=st.none() | st.floats(1e-3, 1e6),
)
def test_a_scale_is_symmetric_and_a_picture_says_whenever_it_leaves_something_out(values, limit):
    relevance = np.array(values).reshape(2, 3)
    picture = plotting.heatmap(relevance, alt="random numbers", limit=limit)
    ((low, high),) = colour_scales(picture)
    assert -low == high > 0
    assert ("of pixels beyond" in texts(picture)) == bool((np.abs(relevance) > high).any())
    if limit is None and relevance.any():
        assert high == np.abs(relevance).max()


def test_the_signed_sum_is_printed_over_all_channels_also_when_pixels_are_beyond_the_scale():
    relevance = torch.tensor([[[1.0, -3.0]], [[0.25, 0.5]]])
    for settings_ in ({}, {"limit": 0.1}, {"quantile": 0.5}):
        assert "sum R = −1.25" in texts(plotting.heatmap(relevance, alt="two pixels", **settings_))


def test_channels_are_summed_before_the_scale_is_set():
    relevance = torch.tensor([[[5.0, 1.0]], [[-5.0, 1.0]]])
    assert colour_scales(plotting.heatmap(relevance, alt="cancels")) == [(-2.0, 2.0)]


def test_what_lies_beyond_a_limit_is_said_with_its_share_and_its_size():
    relevance = torch.zeros(10, 10)
    relevance[0, :3] = torch.tensor([4.0, -2.0, 1.0])
    assert "2 % of pixels beyond,\nup to |R| = 4" in texts(plotting.heatmap(relevance, alt="clipped", limit=1.0))
    assert "beyond" not in texts(plotting.heatmap(relevance, alt="not clipped", limit=4.0))


def test_a_quantile_sets_the_limit_and_says_what_it_leaves_out():
    relevance = torch.arange(1.0, 101).reshape(10, 10)
    picture = plotting.heatmap(relevance, alt="one to a hundred", quantile=0.9)
    ((_, high),) = colour_scales(picture)
    assert high == pytest.approx(90.1)
    assert "10 % of pixels beyond,\nup to |R| = 100" in texts(picture)


def test_a_quantile_at_zero_falls_back_on_the_largest_value():
    relevance = torch.zeros(10, 10)
    relevance[0, 0] = 2.0
    assert colour_scales(plotting.heatmap(relevance, alt="one pixel", quantile=0.5)) == [(-2.0, 2.0)]


def test_a_map_of_zeros_is_drawn_in_white_with_sum_zero():
    picture = plotting.heatmap(torch.zeros(4, 4), alt="nothing")
    assert colour_scales(picture) == [(-1.0, 1.0)]
    assert "sum R = 0" in texts(picture)


def test_positive_relevance_is_red_negative_blue_and_zero_white():
    picture = plotting.heatmap(torch.tensor([[-1.0, 0.0, 1.0]]), alt="three colours")
    (image,) = (image for axes in picture.figure.axes for image in axes.images)
    blue, white, red = image.to_rgba(image.get_array())[0, :, :3]
    assert red[0] > 2 * red[2] and blue[2] > 2 * blue[0] and white.min() > 0.95


def test_an_overlay_is_clear_where_relevance_is_zero_and_opaque_at_the_limit():
    picture = plotting.overlay(torch.ones(1, 3), torch.tensor([[-2.0, 0.0, 2.0]]), alt="opacity")
    image = picture.figure.axes[0].images[-1]
    assert image.to_rgba(image.get_array())[0, :, 3].round(2).tolist() == [1.0, 0.0, 1.0]


# the grid -------------------------------------------------------------------------------------------------


def test_each_panel_has_its_own_scale_and_sum_and_the_figure_says_so():
    picture = plotting.grid({"small": MAP, "large": 1000 * MAP}, PHOTOGRAPH, alt="two maps")
    (_, small), (_, large) = colour_scales(picture)
    assert large == pytest.approx(1000 * small)
    words = texts(picture)
    assert "each panel has its own scale" in words and "one scale" not in words
    assert {"photograph", "small", "large", "sum R = +900", "sum R = +9×10⁵"} <= set(words.split("\n"))


@pytest.mark.parametrize("settings_", [{"shared": True}, {"limit": 5.0}, {"shared": True, "quantile": 0.9}])
def test_a_shared_scale_is_one_scale_and_the_figure_says_so(settings_):
    picture = plotting.grid({"small": MAP, "large": 1000 * MAP}, alt="two maps", **settings_)
    assert len(set(colour_scales(picture))) == 1
    assert "one scale for all panels" in texts(picture) and "its own scale" not in texts(picture)


@settings(max_examples=15, deadline=None)
@given(count=st.integers(1, 9), columns=st.none() | st.integers(1, 6), image=st.booleans(), shared=st.booleans())
def test_a_grid_shows_every_map_once_in_order_whatever_its_shape(count, columns, image, shared):
    maps = {f"map {i}": MAP * (i + 1) for i in range(count)}
    picture = plotting.grid(maps, PHOTOGRAPH if image else None, alt="maps", columns=columns, shared=shared)
    shown = [line for line in texts(picture).split("\n") if line.startswith("map ")]
    assert shown == list(maps)
    assert len(colour_scales(picture)) == count


def no_two_texts_overlap(picture: plotting.Picture) -> bool:
    picture.figure.draw_without_rendering()
    renderer = FigureCanvasAgg(picture.figure).get_renderer()
    boxes = [
        text.get_window_extent(renderer)
        for text in picture.figure.findobj(matplotlib.text.Text)
        if text.get_visible() and text.get_text().strip() and text.get_window_extent(renderer).width > 0
    ]
    ours = [box.shrunk(0.9, 0.9) for box in boxes]
    return not any(a.overlaps(b) for i, a in enumerate(ours) for b in ours[:i])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("factor", [1e-7, 1.0, 123.4, 1e9])
@pytest.mark.parametrize("settings_", [{}, {"quantile": 0.9}, {"shared": True, "quantile": 0.9}])
def test_no_two_texts_of_a_grid_overlap(count, factor, settings_):
    maps = {f"gradient x input, number {i}": MAP * factor for i in range(count)}
    picture = plotting.grid(maps, PHOTOGRAPH, alt="maps", title="A title of some length", **settings_)
    assert no_two_texts_overlap(picture)


@pytest.mark.parametrize("factor", [1e-7, 123.4])
@pytest.mark.parametrize("settings_", [{}, {"quantile": 0.9}, {"shared": True, "quantile": 0.9}])
def test_maps_of_sizes_have_a_scale_from_zero_to_red_and_no_sum(factor, settings_):
    maps = {"small": factor * MAP.abs(), "large": 10 * factor * MAP.abs()}
    picture = plotting.grid(maps, PHOTOGRAPH, alt="sizes", unsigned=True, **settings_)
    assert no_two_texts_overlap(picture)
    assert all(low == 0 < high for low, high in colour_scales(picture))
    assert "sum" not in texts(picture) and "−" not in texts(picture).replace("10⁻", "")
    shown = [
        image for axes in picture.figure.axes for image in axes.images if image.norm.vmin == 0 and image.norm.vmax != 1
    ]
    white, _, red = shown[0].cmap([0.0, 0.5, 1.0])[:, :3]
    assert white.min() > 0.95 and red[0] > 2 * red[2]
    assert ("of pixels beyond" in texts(picture)) == ("quantile" in settings_)
    assert colour_scales(plotting.heatmap(MAP.abs(), alt="one", unsigned=True))[0][0] == 0
    assert "sum" not in texts(plotting.heatmap(MAP.abs(), alt="one", unsigned=True))


def test_a_grid_of_what_does_not_add_up_prints_no_sums():
    assert "sum R" not in texts(plotting.grid({"a": MAP}, alt="no sums", sums=False))
    assert colour_scales(plotting.grid({"a": MAP}, alt="no sums", sums=False))[0][0] < 0, "still signed"


def test_an_unsigned_map_must_not_be_negative():
    with pytest.raises(ValueError, match=r"relevances\['b'\] must not be negative where unsigned=True, got -3"):
        plotting.grid({"a": MAP.abs(), "b": -MAP.abs()}, alt="wrong", unsigned=True)
    with pytest.raises(ValueError, match="relevance must not be negative"):
        plotting.heatmap(-MAP.abs(), alt="wrong", unsigned=True)
    with pytest.raises(TypeError, match="unsigned must be True or False, got int"):
        plotting.heatmap(MAP.abs(), alt="wrong", unsigned=1)
    with pytest.raises(TypeError, match="sums must be True or False, got str"):
        plotting.grid({"a": MAP}, alt="wrong", sums="no")


# the network graph ----------------------------------------------------------------------------------------


def lines(picture: plotting.Picture) -> list[matplotlib.lines.Line2D]:
    return picture.figure.axes[0].lines


def test_the_graph_shows_each_neuron_each_message_and_each_layers_sum():
    picture = plotting.network_graph(
        NEURONS,
        MESSAGES,
        alt="a small network",
        labels=[["x1", "x2", "x3"], ["z4", "z5"], ["z6"]],
        layers=["input", "hidden", "output"],
        title="LRP",
    )
    words = texts(picture).split("\n")
    for value in (
        "+0.50",
        "−1.50",
        "+2.00",
        "−0.25",
        "+1.25",
        "+1.00",
        "−1.00",
        "−0.50",
        "+0.25",
        "+1.75",
        "0",
    ):
        assert value in words
    assert {"x1", "x2", "x3", "z4", "z5", "z6", "input", "hidden", "output", "LRP"} <= set(words)
    assert words.count("sum R") == 3 and words.count("+1") == 3
    assert len(lines(picture)) == 8


def test_an_edge_is_as_wide_as_its_message_is_large_and_coloured_by_its_sign():
    drawn = lines(plotting.network_graph(NEURONS, MESSAGES, alt="edges", limit=2.0))
    values = [float(value) for matrix in MESSAGES for value in matrix.ravel()]
    for line, value in zip(drawn, values, strict=True):
        red, _, blue = to_rgb(line.get_color())
        assert (red > blue, red < blue) == (value > 0, value < 0)
        if value:
            assert line.get_linewidth() == pytest.approx(max(plotting._THICKEST * abs(value) / 2, 0.9))


def test_the_graph_stays_in_place_while_values_move():
    def places(factor: float) -> list[list[float]]:
        picture = plotting.network_graph(
            [factor * values for values in NEURONS],
            [factor * m.flip(0) for m in MESSAGES],
            alt="moves",
            limit=2.0,
        )
        numbers = [t for t in picture.figure.axes[0].texts if t.get_bbox_patch() is not None]
        return [[*line.get_xdata(), *line.get_ydata()] for line in lines(picture)] + [
            list(text.get_position()) for text in numbers
        ]

    assert places(0.3) == places(1.7)


def test_the_graph_says_how_many_values_lie_beyond_a_limit():
    assert "3 of 14 values beyond, up to |R| = 2" in texts(
        plotting.network_graph(NEURONS, MESSAGES, alt="clipped", limit=1.25)
    )
    assert "beyond" not in texts(plotting.network_graph(NEURONS, MESSAGES, alt="not clipped"))


@pytest.mark.parametrize("sizes", [(3, 1), (3, 3, 2, 1), (4, 4, 2), (5, 4, 3, 2)])
def test_no_two_numbers_of_a_graph_overlap(sizes):
    neurons = [torch.full((n,), -1.25) for n in sizes]
    messages = [torch.full((n, m), -0.25) for n, m in zip(sizes, sizes[1:], strict=False)]
    assert no_two_texts_overlap(plotting.network_graph(neurons, messages, alt="numbers"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((NEURONS[:1], []), "relevance must have at least two layers, got 1"),
        ((NEURONS, MESSAGES[:1]), "messages must have one matrix per pair of layers, 2, got 1"),
        ((NEURONS, [MESSAGES[0].T, MESSAGES[1]]), r"messages\[0\] must have shape \(3, 2\), got \(2, 3\)"),
        (([torch.zeros(3, 1), *NEURONS[1:]], MESSAGES), r"relevance\[0\] must have shape \(n,\)"),
        (([NEURONS[0] / 0, *NEURONS[1:]], MESSAGES), r"relevance\[0\] must be finite, got 3 NaN or infinite"),
        (([torch.zeros(11), torch.zeros(1)], [torch.zeros(11, 1)]), "n up to 10"),
    ],
)
def test_a_graph_whose_parts_do_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        plotting.network_graph(*arguments, alt="wrong")


def test_labels_and_layers_must_fit_the_network():
    with pytest.raises(ValueError, match=r"labels must name the neurons of each layer, \[3, 2, 1\], got \[1\]"):
        plotting.network_graph(NEURONS, MESSAGES, alt="wrong", labels=[["x"]])
    with pytest.raises(ValueError, match="layers must name all 3 layers, got 1"):
        plotting.network_graph(NEURONS, MESSAGES, alt="wrong", layers=["input"])


# bars -----------------------------------------------------------------------------------------------------


def test_bars_state_both_sums_of_each_layer_and_name_each_layer():
    words = texts(plotting.bars(["conv1", "fc"], [-1.5, 1.0], [4.0, 3e11], alt="sums"))
    assert "−1.5  of  4" in words and "+1  of  3×10¹¹" in words
    assert "conv1" in words and "fc" in words


def test_bars_turn_to_a_logarithmic_axis_only_where_sizes_span_far_and_say_so():
    near = plotting.bars(["a", "b"], [1.0, 2.0], [3.0, 4.0], alt="near")
    far = plotting.bars(["a", "b"], [1.0, 2.0], [3.0, 4e6], alt="far")
    zero = plotting.bars(["a", "b"], [0.0, 0.0], [0.0, 0.0], alt="nothing", log=True)
    assert near.figure.axes[0].get_xscale() == zero.figure.axes[0].get_xscale() == "linear"
    assert far.figure.axes[0].get_xscale() == "log"
    assert "logarithmic" in texts(far) and "logarithmic" not in texts(near)


def test_bars_refuse_sums_that_cannot_be():
    with pytest.raises(ValueError, match="at least |sum R| in every layer; in layer 'b' it is 1 and the sum is -2"):
        plotting.bars(["a", "b"], [1.0, -2.0], [1.0, 1.0], alt="impossible")
    with pytest.raises(ValueError, match="signed must have one number per name, 2, got shape"):
        plotting.bars(["a", "b"], [1.0], [1.0, 1.0], alt="short")
    with pytest.raises(ValueError, match="absolute must be finite"):
        plotting.bars(["a"], [1.0], [float("inf")], alt="infinite")
    with pytest.raises(ValueError, match="must not be empty"):
        plotting.bars([], [], [], alt="empty")


# bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("relevance", "error", "message"),
    [
        (MAP / 0, ValueError, r"must be finite, got \d+ NaN or infinite of 1800 values"),
        (MAP[None], ValueError, r"shape \(H, W\) or \(C, H, W\), got \(1, 3, 20, 30\); take one item"),
        (MAP[0, 0], ValueError, r"got \(30,\)"),
        (MAP[:, :0], ValueError, "must not be empty"),
        ("a map", TypeError, "must hold real numbers, got str"),
    ],
)
def test_what_is_no_map_of_relevance_is_refused(relevance, error, message):
    with pytest.raises(error, match="relevance.*" + message):
        plotting.heatmap(relevance, alt="wrong")
    with pytest.raises(error, match=r"relevances\['a'\].*" + message):
        plotting.grid({"a": relevance}, alt="wrong")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (PHOTOGRAPH * 2 - 1, r"image must have values in \[0, 1\].*models.denormalize"),
        (PHOTOGRAPH[None], r"image must have shape \(3, H, W\) or \(H, W\), got \(1, 3, 20, 30\)"),
        (PHOTOGRAPH.log() * float("inf"), "image must be finite"),
        (PHOTOGRAPH[:, :10], r"must have the size of the image, \(10, 30\), got \(20, 30\)"),
    ],
)
def test_what_is_no_photograph_is_refused(image, message):
    with pytest.raises(ValueError, match=message):
        plotting.overlay(image, MAP, alt="wrong")
    with pytest.raises(ValueError, match=message):
        plotting.grid({"a": MAP}, image, alt="wrong")


@pytest.mark.parametrize(
    ("settings_", "error", "message"),
    [
        ({"limit": 0.0}, ValueError, "limit must be positive and finite, got 0.0"),
        ({"limit": float("nan")}, ValueError, "limit must be positive and finite, got nan"),
        ({"limit": "all"}, TypeError, "limit must be a number, got str"),
        ({"quantile": 1.5}, ValueError, r"quantile must be in \(0, 1\], got 1.5"),
        ({"limit": 1.0, "quantile": 0.5}, ValueError, "exclude each other"),
    ],
)
def test_scales_that_mean_nothing_are_refused(settings_, error, message):
    for draw in (
        lambda: plotting.heatmap(MAP, alt="wrong", **settings_),
        lambda: plotting.grid({"a": MAP}, alt="wrong", **settings_),
    ):
        with pytest.raises(error, match=message):
            draw()


def test_a_grid_refuses_what_is_no_collection_of_maps():
    with pytest.raises(ValueError, match="at least one map"):
        plotting.grid({}, alt="empty")
    with pytest.raises(TypeError, match="relevances must map names to tensors, got list"):
        plotting.grid([MAP], alt="a list")
    with pytest.raises(ValueError, match="columns must be a positive integer or None, got 0"):
        plotting.grid({"a": MAP}, alt="no columns", columns=0)


def test_tensors_of_any_kind_are_drawn_and_left_as_they_were():
    relevance = MAP.to(torch.bfloat16).requires_grad_()
    before = relevance.detach().clone()
    plotting.heatmap(relevance, alt="bfloat16 with a gradient").png()
    assert torch.equal(relevance, before) and relevance.grad is None
    picture = plotting.heatmap(torch.arange(6).reshape(2, 3), alt="integers")
    assert "sum R = +15" in texts(picture)


# pictures in general --------------------------------------------------------------------------------------


@every_drawing
def test_a_picture_is_the_same_whatever_style_the_notebook_has_set(draw):
    plain = draw("the same").png()
    with matplotlib.rc_context(
        {"font.size": 30, "image.cmap": "jet", "figure.facecolor": "black", "axes.facecolor": "red"}
    ):
        assert draw("the same").png() == plain
        assert matplotlib.rcParams["font.size"] == 30


def test_drawing_never_imports_pyplot():
    program = """
import sys, torch
from xaicourse import plotting
plotting.heatmap(torch.eye(4), alt="four")._repr_mimebundle_()
plotting.bars(["a"], [1.0], [1.0], alt="one").png()
print("matplotlib.pyplot" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stderr


def test_a_picture_is_saved_as_the_png_that_the_notebook_shows(tmp_path):
    picture = DRAWINGS["heatmap"]("saved")
    picture.save(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes() == picture.png()
    assert Image.open(tmp_path / "picture.png").format == "PNG"


# numbers as text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (-0.0, "0"), (1.0, "+1"), (-1.25, "−1.25"), (11.4638, "+11.5"), (0.00012345, "+0.000123"),
        (99999.0, "+1×10⁵"), (12345.0, "+12300"), (2.93e11, "+2.93×10¹¹"), (-3e-12, "−3×10⁻¹²"),
    ],
)  # fmt: skip
def test_a_number_reads_as_a_person_would_write_it(value, text):
    assert plotting._signed(value) == text


@given(st.floats(-1e30, 1e30, allow_subnormal=False), st.integers(2, 6))
def test_a_number_is_written_with_its_sign_and_its_leading_digits(value, digits):
    text = plotting._signed(value, digits)
    plain = re.sub(
        "×10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)",
        lambda m: "e" + m[1].translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")),
        text,
    )
    assert float(plain.replace("−", "-")) == pytest.approx(value, rel=0.5 * 10 ** (1 - digits), abs=0)


def axes_of(picture: plotting.Picture):
    return picture.figure.axes[0]


def test_each_curve_stands_over_its_own_x_with_its_name_and_its_interval():
    picture = plotting.lines(
        {"a": [1.0, 4.0, 9.0], "b": ([0.0, 10.0], torch.tensor([-1.0, 1.0]))},
        x=[1, 2, 3], bands={"a": [0.5, 1.0, 2.0]}, xlabel="steps", ylabel="error", title="a title", alt="Two curves.",
    )  # fmt: skip
    a, b = (line for line in axes_of(picture).lines if not line.get_label().startswith("_"))
    assert (a.get_label(), b.get_label()) == ("a", "b")
    np.testing.assert_array_equal(a.get_xydata(), [[1, 1], [2, 4], [3, 9]])
    np.testing.assert_array_equal(b.get_xydata(), [[0, -1], [10, 1]])
    (band,) = axes_of(picture).collections
    assert {tuple(p) for p in band.get_paths()[0].vertices} >= {(1.0, 0.5), (1.0, 1.5), (3.0, 7.0), (3.0, 11.0)}
    assert a.get_color() != b.get_color() and a.get_marker() != b.get_marker(), "told apart without colour, too"
    assert {"steps", "error", "a title", "a", "b"} <= set(texts(picture).splitlines())


def test_curves_on_logarithmic_axes_must_be_above_0():
    picture = plotting.lines(
        {"a": [1.0, 100.0]}, x=[1, 10], logx=True, logy=True, xlabel="x", ylabel="y", alt="A line."
    )
    assert axes_of(picture).get_xscale() == axes_of(picture).get_yscale() == "log"
    with pytest.raises(ValueError, match=r"curves\['a'\] must be above 0 on a logarithmic axis, got 0"):
        plotting.lines({"a": [0.0, 1.0]}, logy=True, xlabel="x", ylabel="y", alt="A line.")
    with pytest.raises(ValueError, match="x of .* must be above 0"):
        plotting.lines({"a": [1.0, 1.0]}, logx=True, x=[-1, 1], xlabel="x", ylabel="y", alt="A line.")
    with pytest.raises(ValueError, match=r"x of curves\['a'\] must be given on a logarithmic axis"):
        plotting.lines({"a": [1.0, 1.0]}, logx=True, xlabel="x", ylabel="y", alt="A line.")


def test_few_points_of_a_logarithmic_axis_are_its_ticks_and_counts_keep_all_their_digits():
    x = [0.12345, 8, 64, 1024, 12345, 2**20]
    picture = plotting.lines({"a": [1.0] * 6}, x=x, logx=True, xlabel="evaluations", ylabel="error", alt="A line.")
    words = [label.get_text() for label in axes_of(picture).get_xticklabels()]
    assert words == ["0.123", "8", "64", "1024", "12345", "1.05×10⁶"]


@pytest.mark.parametrize("values", [(1.0, 4.0, 9.0), (1.0, 4.0), (torch.tensor(1.0), np.float64(4.0))])
def test_a_tuple_of_numbers_holds_the_values_of_a_curve(values):
    (line, *_) = axes_of(plotting.lines({"a": values}, xlabel="x", ylabel="y", alt="A line.")).lines
    np.testing.assert_array_equal(line.get_ydata(), [float(value) for value in values])
    np.testing.assert_array_equal(line.get_xdata(), range(len(values)))


@pytest.mark.parametrize(
    ("curves", "settings_", "message"),
    [
        ({}, {}, "curves must map 1 to 7 names to values, got 0"),
        ({str(n): [1.0] for n in range(8)}, {}, "got 8"),
        ([1.0], {}, "got list"),
        ({"a": [1.0, 2.0]}, {"x": [1.0]}, "one value for each of 1 points, got 2"),
        ({"a": [1.0, float("nan")]}, {}, "NaN"),
        ({"a": [[1.0]]}, {}, "shape"),
        ({"a": ([1.0], [2.0], [3.0])}, {}, r"curves\['a'\] must have shape \(n,\), not empty, got \(3, 1\)"),
        ({"a": [1.0]}, {"bands": {"b": [1.0]}}, "bands must belong to curves, got .*'b'"),
        ({"a": [1.0]}, {"bands": {"a": [-1.0]}}, "widths of at least 0"),
        ({"a": [1.0]}, {"bands": {"a": [1.0, 2.0]}}, "must hold 1 widths"),
    ],
)
def test_what_is_no_curve_is_refused(curves, settings_, message):
    with pytest.raises(ValueError, match=message):
        plotting.lines(curves, xlabel="x", ylabel="y", alt="A line.", **settings_)
