"""A caller of the platform's interface, written from the platform's reference alone: it shares no code with ours."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from sfasync.lab import Lab

S18, S24 = "/janus/20180725", "/janus/20240725"


class Caller:
    def __init__(self, http: httpx2.AsyncClient) -> None:
        self.http = http

    async def log_in(self, user: str, password: str) -> httpx2.Response:
        modulus = (await self.call("GET", "/janus/public-key"))["public_key"]
        assert modulus.endswith("\n")
        key = rsa.RSAPublicNumbers(65537, int(modulus.strip(), 16)).public_key()
        encrypted = key.encrypt(password.encode(), padding.PKCS1v15()).hex()
        body = {"auth": {"passwordCredentials": {"username": user, "password": encrypted}}}
        answer = await self.http.post("/janus/authenticate", json=body)
        if answer.status_code == 200:
            self.http.headers["Authorization"] = "Token " + answer.json()["data"]["access"]["token"]["id"]
        return answer

    async def call(self, method: str, path: str, **how: Any) -> Any:
        answer = await self.http.request(method, path, **how)
        envelope = answer.json()
        assert answer.status_code in (200, 201), envelope
        assert envelope.get("code", 0) == 0
        assert not envelope.get("errcode")
        return envelope["data"]

    async def refused(self, method: str, path: str, **how: Any) -> tuple[int, str]:
        answer = await self.http.request(method, path, **how)
        assert answer.status_code >= 400, answer.text
        return answer.status_code, answer.json()["message"]

    async def end_of(self, task_id: str) -> dict[str, Any]:
        while True:
            task: dict[str, Any] = await self.call("GET", f"{S18}/tasks/{task_id}")
            if task["status"] in ("finish", "failure"):
                return task
            assert task["status"] in ("waiting", "doing")
            await asyncio.sleep(0.01)

    async def done(self, method: str, path: str, **how: Any) -> Any:
        """A call that starts a task, which ends well."""
        data = await self.call(method, path, **how)
        task = await self.end_of(data["task_id"])
        assert (task["status"], task["progress"]) == ("finish", 100), task
        return data

    async def server(self, name: str) -> str:
        listed = await self.call("GET", f"{S24}/servers", params={"page_num": 0, "page_size": 100})
        found: str = next(each["id"] for each in listed["data"] if each["name"] == name)
        return found

    async def snapshot(self, server: str, name: str = "a snapshot") -> str:
        path = f"/janus/20190725/servers/{server}/snapshots"
        made: str = (await self.done("POST", path, json={"name": name}))["resource_id"]
        return made

    async def resource(self, server: str, kind: str = "backup", lock_time: int = 60) -> str:
        body = {"server_id": server, "type": kind, "lock_time": lock_time}
        made: str = (await self.done("POST", f"{S18}/backup-resources", json=body))["resource_id"]
        return made


@asynccontextmanager
async def caller(lab: Lab, *, logged_in: bool = True) -> AsyncIterator[Caller]:
    trust = ssl.create_default_context(cadata=lab.ca_pem.decode())
    async with httpx2.AsyncClient(base_url=lab.url, verify=trust, timeout=20) as http:
        made = Caller(http)
        if logged_in:
            answer = await made.log_in(lab.accounts.user, lab.accounts.password)
            assert answer.status_code == 200
        yield made
