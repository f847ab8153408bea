"""The command `flowtok serve`: a model behind an HTTP service.

Reads the arguments, opens the model and hands both to serving/launch.py, or to serving/on_ray.py.
"""

import os
from typing import Annotated

from typer import Argument, Option

from flowtok.app import output
from flowtok.app.options import DeviceOption, DtypeOption, open_model
from flowtok.app.threads import aside
from flowtok.checkpoints.catalogue import is_folder
from flowtok.errors import FlowTokError

API_KEY = "FLOWTOK_API_KEY"
ENGINES = ("local", "ray")


def serve(
    model: Annotated[str, Argument(help="A shipped model, a model folder or a Hub id.", metavar="[MODEL]")] = "emoji",
    overrides: Annotated[
        list[str] | None,
        Argument(help="Limits, such as batch_size=8, queue=64 or deadline_seconds=20.", metavar="KEY=VALUE..."),
    ] = None,
    host: Annotated[str, Option(help="Address to listen at; 0.0.0.0 is everywhere.")] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="Port; 0 is any free one.")] = 8000,
    engine: Annotated[str, Option(help="local, or ray for replicas on a Ray cluster.")] = "local",
    replicas: Annotated[int | None, Option(min=1, help="With --engine ray: copies of the model.")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
) -> None:
    """Serves a model over HTTP as OpenAI's image API; FLOWTOK_API_KEY, where it is set, is the key to it."""
    if "=" in model and not is_folder(model):  # a limit, with the model left out
        model, overrides = "emoji", [model, *(overrides or [])]
    if engine not in ENGINES:
        raise FlowTokError(f"--engine {engine}: the engines are {', '.join(ENGINES)}")
    if replicas is not None and engine != "ray":
        raise FlowTokError("--replicas has an effect only with --engine ray")
    _check_extra("serve", "fastapi", "uvicorn", "multipart", "prometheus_client")
    key = os.environ.get(API_KEY) or None
    if key is None and host not in ("127.0.0.1", "localhost", "::1"):
        output.note(f"whoever reaches {host}:{port} may use this server: {API_KEY} is not set")
    if engine == "ray":
        _check_extra("ray", "ray")
        from flowtok.app.serving.on_ray import run_on_ray

        arguments = {"model": model, "limits": overrides or [], "replicas": replicas or 1, "device": device}
        run_on_ray({**arguments, "dtype": dtype}, host=host, port=port)
        return
    from flowtok.app.serving.launch import listen, run
    from flowtok.app.serving.limits import ServingConfig
    from flowtok.config import apply_overrides

    config = apply_overrides(ServingConfig(), overrides or [])
    # Before the model is opened: a port that is taken should be said at once.
    with listen(host, port) as socket:
        run(aside(open_model, model, device, dtype), config, socket, api_key=key)


def _check_extra(extra: str, *packages: str) -> None:
    """Raises FlowTokError where packages of an extra are missing."""
    from importlib.util import find_spec

    if missing := [name for name in packages if find_spec(name) is None]:
        raise FlowTokError(
            f"flowtok serve needs {', '.join(missing)}, which is not installed: pip install 'flowtok[{extra}]'"
        )
