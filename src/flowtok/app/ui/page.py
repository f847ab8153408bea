"""The page: its tabs, fields and buttons in Gradio, one purpose for each tab; and the server that shows it.

What the buttons do stands in actions.py, what results look like in views.py and page.css. Nothing of the page comes
from another host: fonts are the reader's own, and Gradio's statistics are off.
"""

import errno
import os
import socket
import threading
from collections.abc import Callable
from functools import wraps
from html import escape
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported, and again by each page

import gradio as gr
from PIL import EpsImagePlugin

from flowtok.app.ui import views
from flowtok.app.ui.actions import FRESH_SEED, MOST_BETWEEN, MOST_STEPS, Actions
from flowtok.errors import FlowTokError
from flowtok.pipeline import FlowTok

HERE = Path(__file__).parent
UPLOAD_LIMIT = "10mb"
LONGEST_PROMPT = 500
MOST_GUIDANCE = 10.0
# All buttons wait in one queue, and the model computes one request at a time.
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
MOST_WAITING = 32
# Seconds: uploads are deleted when they are this old, and when the server ends.
CLEANED_EVERY, KEPT_FOR = 600, 3600

PROMPTS = ("a red heart", "a smiling cat", "a blue fish", "a slice of pizza", "a green tree", "a yellow star")
PAIRS = (("a smiling cat", "a red heart"), ("a green apple", "a yellow sun"), ("a blue fish", "a rocket"))
SUMS = ("king - man + woman", "a red heart - red + blue", "a cat + a fish")
PICTURES = ("heart", "face", "sun", "house")
INKS: list[str | tuple[str, float]] = [
    "#1f2937",
    "#dc2626",
    "#f59e0b",
    "#16a34a",
    "#2563eb",
    "#92400e",
    "#ec4899",
    "#ffffff",
]


def make_page(model: FlowTok) -> gr.Blocks:
    """The page for a model, which is used by one request at a time; `show` puts it on the network."""
    actions = Actions(model)
    # Gradio opens drawings with any reader of PIL, and that of PostScript would start another program.
    EpsImagePlugin.gs_binary = False
    with gr.Blocks(title="FlowTok", analytics_enabled=False, delete_cache=(CLEANED_EVERY, KEPT_FOR)) as page:
        gr.HTML(
            "<h1>FlowTok</h1><p>Words and pictures as the same few tokens, and one flow between them. "
            f"This page plays with the model <em>{escape(model.name)}</em>.</p>",
            elem_id="ft-head",
        )
        with gr.Tab("Draw"):
            _draw(actions)
        if actions.reads:
            with gr.Tab("Read"):
                _read(actions)
            with gr.Tab("Round trip"):
                _round(actions)
        with gr.Tab("Blend"):
            _blend(actions)
        with gr.Tab("Add"):
            _add(actions)
    return page.queue(max_size=MOST_WAITING, api_open=False)


def _draw(actions: Actions) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            _lead("Say what to draw. The flow starts at the words and ends at the picture.")
            prompt = _prompt("Prompt", PROMPTS[0])
            button = gr.Button("Draw", variant="primary")
            examples = gr.Examples(list(PROMPTS), prompt, label="Or click one of these")
            settings = _settings(actions)
        with gr.Column(min_width=300):
            place = _place("The picture appears here, and the flow that leads to it.", moves=True)
    _on([button.click, prompt.submit], examples, actions.draw, [prompt, *settings], [place, settings[1]])


def _read(actions: Actions) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            _lead("Show a picture: the flow runs backwards, from the picture to words.")
            pickers = _pickers("Read it")
        with gr.Column(min_width=300):
            place = _place("The words appear here.")
    for (event, examples, picture), action in zip(pickers, (actions.read_upload, actions.read_drawing), strict=True):
        _on([event], examples, action, [picture], [place], checked=examples is None)


def _round(actions: Actions) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            _lead("A picture becomes words, and the words become a picture again. What is lost on the way?")
            pickers = _pickers("Go round")
            settings = _settings(actions)
        with gr.Column(min_width=300):
            place = _place("Your picture, its words and a new picture appear here.")
    for (event, examples, picture), action in zip(pickers, (actions.round_upload, actions.round_drawing), strict=True):
        _on([event], examples, action, [picture, *settings], [place, settings[1]], checked=examples is None)


def _blend(actions: Actions) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            _lead("From one prompt to another, in steps between their tokens.")
            first, last = _prompt("From", PAIRS[0][0]), _prompt("To", PAIRS[0][1])
            number = gr.Slider(2, MOST_BETWEEN, value=7, step=1, label="Pictures, both ends included")
            button = gr.Button("Blend", variant="primary")
            examples = gr.Examples(
                [list(pair) for pair in PAIRS], [first, last], label="Or click one of these",
                example_labels=[" → ".join(pair) for pair in PAIRS],
            )  # fmt: skip
            settings = _settings(actions)
        with gr.Column(min_width=300):
            place = _place("The pictures between the two appear here.", moves=True)
    triggers = [button.click, first.submit, last.submit]
    _on(triggers, examples, actions.blend, [first, last, number, *settings], [place, settings[1]])


def _add(actions: Actions) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            _lead("Add words and take words away; put + and − between spaces. Their tokens are summed, then drawn.")
            text = _prompt("Sum of words", SUMS[0])
            button = gr.Button("Add up", variant="primary")
            examples = gr.Examples(list(SUMS), text, label="Or click one of these")
            settings = _settings(actions)
        with gr.Column(min_width=300):
            place = _place("Each word's picture and the picture of the sum appear here.")
    _on([button.click, text.submit], examples, actions.add, [text, *settings], [place, settings[1]])


# Parts that several tabs share


def _lead(text: str) -> None:
    gr.Markdown(text, elem_classes="ft-lead")


def _prompt(label: str, value: str) -> gr.Textbox:
    return gr.Textbox(value, label=label, max_length=LONGEST_PROMPT, max_lines=3)


def _place(what: str, *, moves: bool = False) -> gr.HTML:
    """Where a result appears."""
    script = (HERE / "player.js").read_text(encoding="utf-8") if moves else None
    return gr.HTML(views.waiting(what), js_on_load=script, elem_classes="ft-result-place", apply_default_css=False)


def _settings(actions: Actions) -> list[Any]:
    """The fields that say how a picture is drawn: new seed or not, seed, guidance, steps."""
    usual = actions.model.sampling
    with gr.Accordion("Seed, guidance and steps", open=False):
        fresh = gr.Checkbox(True, label=FRESH_SEED)
        seed = gr.Number(
            0, label="Seed", precision=0, minimum=0, interactive=False,
            info="The same seed gives the same picture. After a drawing it is the one that was used.",
        )  # fmt: skip
        guidance = gr.Slider(
            0, max(MOST_GUIDANCE, usual.guidance_scale), usual.guidance_scale, step=0.1, label="Guidance",
            info="How much more the words count; 1 is none.",
        )  # fmt: skip
        steps = gr.Slider(
            1, MOST_STEPS, min(usual.num_inference_steps, MOST_STEPS), step=1, label="Steps",
            info="More steps follow the flow more closely and take longer.",
        )  # fmt: skip
    fresh.change(lambda on: gr.update(interactive=not on), fresh, seed, queue=False, api_visibility="private")
    return [fresh, seed, guidance, steps]


def _pickers(label: str) -> list[tuple[Any, Any, Any]]:
    """Two ways to give a picture, a file and a drawing: of each its button's click, its examples or None, its field."""
    with gr.Tab("A file"):
        upload = gr.Image(
            type="filepath",
            sources=["upload", "clipboard"],
            label="Picture",
            height=300,
            buttons=[],
            elem_classes="ft-frame-box",
        )
        upload_button = gr.Button(label, variant="primary")
        files = [[str(HERE / "pictures" / f"{name}.png")] for name in PICTURES]
        examples = gr.Examples(files, upload, label="Or click one of these", example_labels=list(PICTURES))
    with gr.Tab("A drawing") as drawing_tab:
        drawing = gr.Sketchpad(
            type="pil", image_mode="RGB", label="Draw here", canvas_size=(512, 512), height=400,
            layers=False, buttons=[], transforms=(), elem_classes="ft-frame-box",
            brush=gr.Brush(default_size=22, colors=INKS, default_color=INKS[1], color_mode="fixed"),
        )  # fmt: skip
        drawing_button = gr.Button(label, variant="primary")
    script = (HERE / "brush.js").read_text(encoding="utf-8")
    drawing_tab.select(None, js=script, queue=False, api_visibility="private")
    return [(upload_button.click, examples, upload), (drawing_button.click, None, drawing)]


def _on(
    triggers: list[Any],
    examples: Any,
    action: Callable[..., Any],
    inputs: list[Any],
    outputs: list[Any],
    *,
    checked: bool = True,
) -> None:
    """Has an action follow its button, the Enter key and a click on an example.

    Without `checked` the action is given the fields as they were sent: Gradio would open an uploaded file first, and
    say no more than "Error" of one that is no picture.
    """
    how: dict[str, Any] = {
        "fn": _clearly(action), "inputs": inputs, "outputs": outputs, "preprocess": checked, **ONE_AT_A_TIME,
    }  # fmt: skip
    gr.on(triggers, **how)
    if examples is not None:
        examples.load_input_event.then(**how)


def _clearly(action: Callable[..., Any]) -> Callable[..., Any]:
    """The action; what the user can mend is shown as one sentence, of anything else no more than that it failed."""

    @wraps(action)
    def run(*fields: Any) -> Any:
        try:
            return action(*fields)
        except FlowTokError as error:
            # Gradio shows the message as HTML, and it may hold a prompt.
            raise gr.Error(escape(str(error)), print_exception=False) from error
        except Exception as error:  # its trace goes to the terminal
            raise gr.Error("that did not work; the terminal in which the page runs says why") from error

    return run


# The server


def theme() -> gr.Theme:
    """Warm greys, one accent, and the reader's own fonts."""
    return gr.themes.Base(
        primary_hue="indigo",
        neutral_hue="stone",
        radius_size="lg",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
    ).set(
        body_background_fill="*neutral_50",
        body_text_color_subdued="*neutral_500",
        block_background_fill="transparent",
        block_border_width="0px",
        block_shadow="none",
        block_padding="0px",
        input_background_fill="white",
        input_border_color="*neutral_300",
        input_border_width="1px",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_text_color="white",
    )


def check_address(host: str, port: int) -> None:
    """Tries the address.

    Raises:
        FlowTokError: Nothing can listen there, or something does.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        reason = "something listens there already" if taken else error.strerror or str(error)
        raise FlowTokError(f"cannot listen at {host}:{port}: {reason}; give another --host or --port") from error


def show(page: gr.Blocks, host: str, port: int, ready: Callable[[str], None] | None = None) -> None:
    """Serves the page until the process is stopped.

    Args:
        page: As `make_page` makes it.
        host: Where to listen.
        port: The port.
        ready: Told the address once the page answers.
    """
    _, address, _ = page.launch(
        server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, share=False, inbrowser=False,
        ssr_mode=False, show_error=False, enable_monitoring=False, footer_links=[], max_file_size=UPLOAD_LIMIT,
        theme=theme(), css_paths=HERE / "page.css",
    )  # fmt: skip
    try:
        if ready is not None:
            ready(address)
        threading.Event().wait()
    finally:
        page.close(verbose=False)
