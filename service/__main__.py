"""Start the service: `python -m service`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from typing import TYPE_CHECKING

from service import __version__
from service.errors import StartupError

if TYPE_CHECKING:
    from service.engine import Engine
    from service.settings import Settings
    from service.store import Store

_DESCRIPTION = """\
Serve facial emotion recognition over WebSocket.

Settings come from the environment and from a .env file in the current folder:
HOST, PORT, DATABASE_URL, MODEL_PATH and others (README.md lists them).

examples:
  python -m service
  PORT=9000 DATABASE_URL=postgresql://me:secret@db/visionai python -m service
  python -m service --migrate-only
"""

# Exit codes: 0 a clean shutdown, 1 a fault while serving, 2 it could not start.
_EXIT_FAILED = 1
_EXIT_CANNOT_START = 2


def main() -> int:
    """Parse the command line, serve, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m service",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", help="address to listen on, over HOST")
    parser.add_argument("--port", type=int, help="port to listen on, over PORT")
    parser.add_argument("--migrate-only", action="store_true", help="bring the database up to date, and exit")
    parser.add_argument("--version", action="version", version=f"VisionAI {__version__}")
    arguments = parser.parse_args()
    try:
        return _start(arguments)
    except StartupError as exc:
        print(f"VisionAI cannot start: {exc}", file=sys.stderr)
        return _EXIT_CANNOT_START
    except KeyboardInterrupt:
        return 130  # Ctrl-C before the service listened for signals: 128 + SIGINT


def _start(arguments: argparse.Namespace) -> int:
    # Imported here so that --help and --version answer at once.
    from dataclasses import replace

    from service.emotions import DESCRIPTIONS
    from service.engine import Engine
    from service.settings import load_settings, resolve_model
    from service.store import Store

    settings = load_settings()
    if arguments.host is not None:
        settings = replace(settings, host=arguments.host)
    if arguments.port is not None:
        settings = replace(settings, port=arguments.port)
    logging.basicConfig(
        level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    # Alembic tells of each of its plugins; the store says itself what it migrated.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    engine = Engine(resolve_model(settings.model_path), settings.provider)
    card = engine.card
    store = Store.open(
        settings.database_url,
        labels=card.labels,
        version_tag=card.version_tag,
        model_filename=card.path.name,
        descriptions=DESCRIPTIONS["es"],
    )
    try:
        if arguments.migrate_only:
            return 0
        run = asyncio.run
        if sys.platform != "win32":
            import uvloop

            run = uvloop.run
        return run(_serve(settings, engine, store))
    finally:
        if lost := store.close(timeout=settings.drain_seconds):
            print(f"VisionAI stopped with {lost} predictions that could not be stored", file=sys.stderr)


async def _serve(settings: Settings, engine: Engine, store: Store) -> int:
    from service.server import Service, stop_on_signals

    service = Service(settings, engine, store)
    task = asyncio.current_task()
    assert task is not None
    stop_on_signals(service.stop, task.cancel)
    async with service.running() as (host, port):
        shown = f"[{host}]" if ":" in host else host
        card = engine.card
        print(
            f"VisionAI {__version__} is ready on ws://{shown}:{port} "
            f"(model {card.version_tag}, {settings.executors} executors, {engine.provider})",
            flush=True,
        )
        await service.wait_stopped()
    return 0 if service.failure is None else _EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
