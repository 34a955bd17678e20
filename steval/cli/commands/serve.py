"""`steval serve`."""

import errno
import ipaddress
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steval.cli import options
from steval.cli.output import say
from steval.errors import ConfigError
from steval.wording import needs_extra

if TYPE_CHECKING:
    from steval.service.settings import ServiceSettings

MALLOC = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "134217728"}
"""For glibc, where the caller's environment does not say otherwise: answers of megabytes made by many threads would
leave holes in an arena each, and a worker's memory would creep up by some 100 kB a request (docs/performance.md). Arrays
of up to 32 MB, the most that glibc takes, are used again: giving each back and mapping it anew costs a page fault for
every 4 kB, which was a quarter of a worker's processor time with a small network."""


def serve(
    checkpoint: Annotated[
        Path | None, typer.Argument(metavar="CKPT", help="The .safetensors checkpoint to serve.", show_default=False)
    ] = None,
    models: Annotated[
        Path | None,
        typer.Option(
            "--models", metavar="DIR", help="Serve every checkpoint below DIR by its name; CKPT is the default."
        ),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter", metavar="NAME=FILE", help="An adapter to CKPT that requests may name (may be repeated)."
        ),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", min=1, max=65535, help="Port to listen on.")] = 3000,
    controls: Annotated[
        Path | None,
        typer.Option("--controls", help="Control cells that CKPT starts from.", show_default="the checkpoint's own"),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N.", show_default="auto")
    ] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="float32 or bf16.", show_default="float32")] = None,
    threads: options.Threads = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Processes, each with the model in memory.", show_default="1"),
    ] = None,
    data_dir: options.DataDirs = None,
    job_dir: Annotated[
        Path | None,
        typer.Option("--job-dir", help="Where scoring jobs are kept.", show_default="a temporary directory"),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", help="Hashed API keys; needed to listen beyond this machine.")
    ] = None,
    new_key: Annotated[
        str | None,
        typer.Option("--new-key", metavar="NAME", help="Make a key, add its hash to --api-key-file, print it, exit."),
    ] = None,
    rotate_key: Annotated[
        str | None,
        typer.Option(
            "--rotate-key", metavar="NAME", help="Give NAME a second key beside its present one, print it, exit."
        ),
    ] = None,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Answer anybody without a key.")] = False,
    cors_origin: Annotated[
        list[str] | None, typer.Option("--cors-origin", help="Web origin that may call the service (may be repeated).")
    ] = None,
    shutdown_seconds: Annotated[
        int, typer.Option("--shutdown-seconds", min=1, max=10**6, help="On SIGTERM, time to finish what was accepted.")
    ] = 120,
) -> None:
    """Serve predictions and scores of one checkpoint or several over HTTP, with a page at `/`.

    Example: `steval serve runs/first/checkpoints/best-val.safetensors`. Then open http://127.0.0.1:3000
    """
    if new_key is not None or rotate_key is not None:
        _make_key(new_key, rotate_key, api_key_file)
        return
    from steval.limits import require_processes
    from steval.service.settings import named_paths

    adapters = named_paths(adapter or [], "--adapter")
    settings = _settings(
        checkpoint=checkpoint, models=models, adapters=adapters, controls=controls, device=device, dtype=dtype, threads=threads,
        workers=workers, data_dir=data_dir, job_dir=job_dir, api_key_file=api_key_file, no_auth=no_auth or None,
        cors_origins=cors_origin,
    )  # fmt: skip
    settings.require_paths()
    require_processes(settings.workers, "--workers")
    require_processes(settings.threads or 1, "--threads")
    _require_keys(settings, host)
    _require_free(host, port)
    _check_checkpoint(settings)
    command = [sys.executable, "-m", "bentoml", "serve", "steval.service.app:StevalService"]
    command += ["--host", host, "--port", str(port), "--timeout-graceful-shutdown", str(shutdown_seconds)]
    _require_packages()
    say(f"serving {settings.checkpoint or settings.models} on http://{host}:{port} (Ctrl-C to stop)", err=True)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("STEVAL_")}
    environment = {**MALLOC, **inherited, **settings.to_environment(), "BENTOML_DO_NOT_TRACK": "True"}
    sys.stderr.flush()
    os.execve(sys.executable, command, environment)  # BentoML's supervisor takes this process over, and its signals


def _settings(**given: Any) -> "ServiceSettings":
    """The options given, over the STEVAL_* variables, over the defaults."""
    from steval.service.settings import ServiceSettings

    inherited = ServiceSettings.from_environment()
    values = {**dict(inherited), **{name: value for name, value in given.items() if value}}
    settings = ServiceSettings.parse(_fetched(values), source="the options of steval serve")
    if settings.checkpoint is None and settings.models is None:
        raise ConfigError(
            "name the checkpoint to serve: steval serve CKPT.safetensors, or a directory: steval serve --models DIR"
        )
    if settings.checkpoint is None and settings.controls is not None:
        raise ConfigError("--controls are cells that CKPT starts from; checkpoints below --models start from their own")
    return settings


def _fetched(values: dict[str, Any]) -> dict[str, Any]:
    """The values with files of a hub in place of references to them, so that every worker serves the same commit."""
    from steval.checkpoints.location import is_hub, local, locate_checkpoint

    checkpoint, adapters = values.get("checkpoint"), values.get("adapters") or {}
    if checkpoint is not None and is_hub(checkpoint):
        values["checkpoint"] = locate_checkpoint(checkpoint)
    return {**values, "adapters": {name: local(path) for name, path in adapters.items()}}


def _make_key(new: str | None, rotated: str | None, path: Path | None) -> None:
    from steval.service.http.keys import add_key, rotate_key

    if path is None:
        raise ConfigError("say where the new key's hash goes: steval serve --new-key NAME --api-key-file FILE")
    if new is not None and rotated is not None:
        raise ConfigError("--new-key makes a key and --rotate-key changes one; give one of them")
    key = add_key(path, new) if new is not None else rotate_key(path, rotated or "")
    typer.echo(key)
    say(f"this is the only time the key of {new or rotated!r} is shown; {path} holds its hash", err=True)
    if rotated is not None:
        say(
            f"the key from before is valid too, until its hash (the first in the line of {rotated!r}) is deleted",
            err=True,
        )


def _require_keys(settings: "ServiceSettings", host: str) -> None:
    """Beyond this machine, only with keys or by the user's own word."""
    if settings.api_key_file is not None:
        from steval.service.http.keys import read_keys

        read_keys(settings.api_key_file)
        return
    if settings.no_auth or _is_loopback(host):
        return
    raise ConfigError(
        f"--host {host} can be reached from other machines, and there are no API keys. Make one with: steval serve --new-key NAME "
        "--api-key-file keys.txt, and serve with --api-key-file keys.txt; or open the service to everybody with --no-auth"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise ConfigError(f"--host takes an IP address such as 127.0.0.1 or 0.0.0.0, got {host!r}") from None


def _require_free(host: str, port: int) -> None:
    """A `ConfigError` where nobody can listen there: BentoML would end with a traceback, after the checkpoint was read."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as one:
            one.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # as the server does: the last one's connections may linger
            one.bind((host, port))
    except OSError as error:
        reasons = {
            errno.EADDRINUSE: "another program listens there; stop it, or choose another port with --port",
            errno.EACCES: "ports below 1024 need privileges; choose another with --port",
            errno.EADDRNOTAVAIL: "this machine has no such address; --host 127.0.0.1 is this machine alone, 0.0.0.0 all addresses",
        }
        reason = reasons.get(error.errno or 0, error.strerror or str(error))
        raise ConfigError(f"cannot listen on {host} port {port}: {reason}") from error


def _check_checkpoint(settings: "ServiceSettings") -> None:
    """Whether it can be served: read and verified whole before a worker starts. Those of a directory are on first use."""
    if settings.checkpoint is None:
        return
    from steval.checkpoints.adapters.adapter_file import require_its_base
    from steval.checkpoints.store import load_checkpoint
    from steval.data.files import require_file
    from steval.service.settings import require_checkpoint

    path = require_checkpoint(settings)
    checkpoint = load_checkpoint(path)
    for adapter in settings.adapters.values():
        require_its_base(adapter, path)
    if settings.controls is not None:
        require_file(settings.controls, "file of control cells")
    elif checkpoint.controls is None:
        raise ConfigError(
            f"{settings.checkpoint} carries no control cells, so predictions have nothing to start from; give --controls FILE.h5ad"
        )


def _require_packages() -> None:
    import importlib.util

    if importlib.util.find_spec("bentoml") is None:
        raise ConfigError(needs_extra("steval serve", "BentoML", "serve"))
    from steval.service.http.tracing import require_exporter

    require_exporter(os.environ)
