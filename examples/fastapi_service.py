"""A small backup service: sfasync's engine inside FastAPI.

It starts backups, tells how far they are, cancels them and lists what is in the repository. The engine runs in the
server's own event loop. Whoever may call it can make it connect to any address, so put authentication in front.

    pip install sfasync fastapi uvicorn
    SFASYNC_REPOSITORY=/srv/backups uvicorn --factory fastapi_service:create_app
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

import sfasync

KEPT_JOBS = 1000
"""Ended jobs that can still be asked about; the oldest are forgotten first."""

STATUS = {2: 400, 10: 503, 11: 409, 13: 502, 20: 502}
"""HTTP status of an error by its exit code; anything else is 500."""


class BackupOrder(BaseModel):
    """What a client asks for."""

    vm: str
    disks: dict[str, str]
    tags: list[str] = []


class Service:
    """The engine, its repository and the jobs started so far."""

    def __init__(self, engine: sfasync.Engine, repository: sfasync.Repository) -> None:
        self.engine = engine
        self.repository = repository
        self.jobs: dict[str, sfasync.Job[sfasync.BackupResult]] = {}

    def start(self, order: BackupOrder) -> str:
        """Begin a backup; returns the id of its job."""
        job = self.engine.start_backup(order.vm, order.disks, tags=order.tags)
        job_id = secrets.token_hex(8)
        self.jobs[job_id] = job
        self._forget_old()
        return job_id

    def job(self, job_id: str) -> sfasync.Job[sfasync.BackupResult]:
        """A job that was started."""
        try:
            return self.jobs[job_id]
        except KeyError:
            raise HTTPException(404, f"no job {job_id}") from None

    def _forget_old(self) -> None:
        ended = [job_id for job_id, job in self.jobs.items() if job.done]
        for job_id in ended[: max(0, len(ended) - KEPT_JOBS)]:
            del self.jobs[job_id]


def create_app(location: str | os.PathLike[str] | None = None) -> FastAPI:
    """The application; its repository is at `location`, or where SFASYNC_REPOSITORY says."""
    path = Path(location if location is not None else os.environ["SFASYNC_REPOSITORY"])

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        repository = await sfasync.Repository.open(path, create=True)
        # Leaving the engine cancels what still runs, and waits until that has ended.
        async with repository, sfasync.Engine(repository) as engine:
            app.state.service = Service(engine, repository)
            yield

    app = FastAPI(title="Backups", lifespan=lifespan)
    app.add_exception_handler(sfasync.SfasyncError, _failed)
    app.post("/backups", status_code=202)(start_backup)
    app.get("/backups")(list_backups)
    app.get("/jobs/{job_id}")(show_job)
    app.delete("/jobs/{job_id}", status_code=202)(cancel_job)
    return app


async def start_backup(order: BackupOrder, request: Request) -> dict[str, str]:
    """Begin a backup and say where to ask about it."""
    job_id = _service(request).start(order)
    return {"job": job_id, "href": f"/jobs/{job_id}"}


async def list_backups(request: Request, vm: str | None = None) -> list[dict[str, Any]]:
    """What is in the repository."""
    return [
        {"id": backup.id, "vm": backup.vm, "time": backup.time, "disks": {disk.id: disk.size for disk in backup.disks}}
        for backup in await _service(request).repository.backups(vm)
    ]


async def show_job(job_id: str, request: Request) -> dict[str, Any]:
    """How far a job is, and in the end what it made or why it failed."""
    job = _service(request).job(job_id)
    progress = job.progress()
    told: dict[str, Any] = {name: getattr(progress, name) for name in ("state", "size", "done", "read", "seconds")}
    told["disks"] = [asdict(disk) for disk in progress.disks]
    if job.done:
        try:
            told["backup"] = (await job.result()).id
        except sfasync.SfasyncError as error:
            told["error"] = {"code": error.code, "message": str(error)}
        except asyncio.CancelledError:
            if not job.done:  # it is this request that was cancelled
                raise
    return told


async def cancel_job(job_id: str, request: Request) -> dict[str, str]:
    """Ask a job to end; nothing of it becomes visible."""
    _service(request).job(job_id).cancel()
    return {"job": job_id}


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _failed(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, sfasync.SfasyncError), "registered for these only"
    return JSONResponse({"code": error.code, "message": str(error)}, STATUS.get(error.exit_code, 500))
