"""What tests ask of a Prefect server: over HTTP, so that the test process needs no settings."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from collections.abc import Iterator

_AGAIN = frozenset({429, 502, 503})
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class Api:
    """A Prefect server, as a test sees it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = httpx.Client(base_url=url, timeout=30)

    def get(self, path: str) -> Any:
        return self._ask("GET", path, None)

    def post(self, path: str, **body: Any) -> Any:
        return self._ask("POST", path, body)

    def _ask(self, method: str, path: str, body: Any) -> Any:
        """Asks as Prefect's own clients do: again, where the server has no time (a busy SQLite)."""
        for pause_s in (0.5, 1.0, 2.0, 4.0, 8.0, 0.0):
            try:
                answer = self._http.request(method, path, json=body)
            except httpx.TransportError:
                # it is being started again
                if not pause_s:
                    raise
            else:
                if answer.status_code not in _AGAIN or not pause_s:
                    break
            time.sleep(pause_s)
        assert answer.is_success, f"{path}: {answer.text}"
        return answer.json()

    def deployment(self, name: str) -> dict[str, Any]:
        return self.get(f"/deployments/name/{name}")

    def run(self, deployment: str, **parameters: Any) -> str:
        """Starts a run of a deployment (`flow/deployment`); gives its id."""
        path = f"/deployments/{self.deployment(deployment)['id']}/create_flow_run"
        made = self.post(path, parameters=parameters, state={"type": "SCHEDULED"})
        return str(made["id"])

    def state(self, run: str) -> dict[str, Any]:
        return self.get(f"/flow_runs/{run}")["state"]

    def set_state(self, run: str, kind: str, name: str | None = None) -> None:
        """Does what the UI's buttons do: SCHEDULED AwaitingRetry, CANCELLING."""
        self.post(f"/flow_runs/{run}/set_state", state={"type": kind, "name": name})

    def wait(self, run: str, *kinds: str, limit_s: float = 120) -> dict[str, Any]:
        """Waits until a run is in one of some states (default: in a final one); gives its state."""
        limit = time.monotonic() + limit_s
        while (state := self.state(run))["type"] not in (kinds or FINAL):
            if time.monotonic() > limit:
                raise AssertionError(f"still {state['name']} after {limit_s} s:\n{self.logs(run)}")
            time.sleep(0.2)
        return state

    def expect(self, run: str, kind: str, limit_s: float = 120) -> dict[str, Any]:
        """Waits until a run has ended as it should; shows its log if it has not."""
        state = self.wait(run, limit_s=limit_s)
        assert state["type"] == kind, f"{state['name']}: {state['message']}\n{self.logs(run)}"
        return state

    def flow_runs(self, **filters: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.post("/flow_runs/filter", flow_runs=filters)
        return found

    def shards(self, build: str) -> dict[int, dict[str, Any]]:
        """The runs of a build's shards, by number."""
        runs = self.flow_runs(tags={"all_": [f"build:{build}"]})
        found = {run["parameters"]["shard"]: run for run in runs}
        assert len(found) == len(runs), [run["name"] for run in runs]
        return found

    def everything(self, kind: str) -> Iterator[dict[str, Any]]:
        """All the server has of a kind (`flow_runs`, `logs`, `artifacts`)."""
        offset = 0
        while page := self.post(f"/{kind}/filter", offset=offset, limit=200):
            yield from page
            offset += len(page)

    def pause(self, deployment: str) -> None:
        """Switches a deployment's schedules off, by its id."""
        self._http.post(f"/deployments/{deployment}/pause_deployment").raise_for_status()

    def set_defaults(self, name: str, **parameters: Any) -> None:
        """Adds to a deployment's own parameters, as `parameters` in `prefect.yaml` does."""
        known = self.deployment(name)
        body = {"parameters": {**known["parameters"], **parameters}}
        self._http.patch(f"/deployments/{known['id']}", json=body).raise_for_status()

    def artifact(self, run: str, kind: str) -> str:
        """A run's newest artifact of a kind: `table`, `progress`, `markdown`; its id."""
        wanted = {"flow_run_id": {"any_": [run]}, "type": {"any_": [kind]}}
        found = self.post("/artifacts/filter", artifacts=wanted)
        assert found, f"the run has no artifact {kind}"
        return str(max(found, key=lambda one: str(one["created"]))["id"])

    def logs(self, run: str) -> str:
        wanted = {"flow_run_id": {"any_": [run]}}
        return "\n".join(line["message"] for line in self.post("/logs/filter", logs=wanted))

    def online(self, pool: str) -> set[str]:
        """Names of the workers that a pool has."""
        found = self.post(f"/work_pools/{pool}/workers/filter")
        return {worker["name"] for worker in found if worker["status"] == "ONLINE"}
