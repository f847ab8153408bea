"""The page to play with a model in a browser, and the command `flowtok demo` that shows it.

Its parts: page.py (what stands where), actions.py (what the buttons do; knows no Gradio) and views.py (what comes out,
as HTML). Gradio is imported when the command runs, never before.
"""

import sys
from typing import Annotated

from typer import Argument, Option

from flowtok.app import output
from flowtok.app.options import DeviceOption, DtypeOption, open_model
from flowtok.app.threads import aside
from flowtok.errors import FlowTokError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def demo(
    model: Annotated[str, Argument(help="A shipped model, a model folder or a Hub id.")] = "emoji",
    host: Annotated[str, Option(help="Address to listen at; 0.0.0.0 is everywhere.")] = "127.0.0.1",
    port: Annotated[int, Option(min=1, max=65535, help="Port.")] = 7860,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
) -> None:
    """Shows a page in the browser: draw, read, go round, blend words and add them, and watch the flow."""
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        raise FlowTokError("flowtok demo needs gradio, which is not installed: pip install 'flowtok[ui]'")
    from flowtok.app.ui.page import check_address, make_page, show

    check_address(host, port)  # before the model is opened: a port that is taken should be said at once
    if host not in LOOPBACK:
        output.note(f"whoever reaches {host}:{port} may use this page: it asks for no password")
    show(make_page(aside(open_model, model, device, dtype)), host, port, ready=_say_where)


def _say_where(address: str) -> None:
    output.say(f"the page is at {address} (Ctrl-C ends it)")
    sys.stdout.flush()  # whoever reads a pipe or a log shall not wait for it either
