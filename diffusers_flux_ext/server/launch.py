"""Listening: a socket, and uvicorn on it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import uvicorn
from fastapi import FastAPI

from .service import JobService


# Beyond these, connections are refused before they take memory.
CONNECTIONS = 512
SHUTDOWN_SECONDS = 5


def is_loopback(host: str) -> bool:
    """Whether a host is reached from this machine only."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def open_socket(host: str, port: int) -> socket.socket:
    """Listen on a port.

    Args:
        host (`str`): Name or address of this machine.
        port (`int`): The port; 0 takes a free one.

    Returns:
        `socket.socket`

    Raises:
        OSError: if that is not possible, for example because another program listens there.
    """
    family, kind, _, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        listening.close()
        raise OSError(error.errno, f"The server cannot listen on {host}:{port}: {error.strerror}.") from error
    return listening


def address_of(listening: socket.socket) -> str:
    """Return the address of a socket as a browser has it."""
    host, port = listening.getsockname()[:2]
    if ip_address(host).is_unspecified:
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class JobServer(uvicorn.Server):
    """uvicorn, which ends listening to events when it stops.

    Args:
        app (`FastAPI`): The application.
        service (`JobService`): Its jobs.
        started (`Callable[[], None]`, *optional*): Called when requests are answered.
    """

    def __init__(self, app: FastAPI, service: JobService, started: Callable[[], None] = lambda: None) -> None:
        # Addresses with tokens in them are never logged.
        config = uvicorn.Config(
            app, access_log=False, log_level="warning", ws="none", server_header=False, limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS, http="h11",
        )  # fmt: skip
        super().__init__(config)
        self._service = service
        self._told = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        await super().startup(sockets)
        if not self.should_exit:
            self._told()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop; connections that listen to events would hold it up."""
        self._service.stop()
        await super().shutdown(sockets)


def serve(app: FastAPI, service: JobService, listening: socket.socket, started: Callable[[], Any]) -> None:
    """Answer requests until a signal comes.

    Args:
        app (`FastAPI`): The application.
        service (`JobService`): Its jobs.
        listening (`socket.socket`): The socket.
        started (`Callable[[], None]`): Called when requests are answered.
    """
    JobServer(app, service, started).run(sockets=[listening])
