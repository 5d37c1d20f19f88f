"""Load balancing over several servers of one model, with failover."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from evalkit.core.secrets import public_address
from evalkit.services.client import ApiClient, ServiceError
from evalkit.services.replies import Reply

log = logging.getLogger(__name__)

# Retries at a server that cannot be reached while others answer.
_FEW_RETRIES = 1
# Seconds before a dead server is checked again; doubled each time it is still dead.
_FIRST_BACKOFF, _LONGEST_BACKOFF = 10.0, 300.0
# Seconds a check may take, and the pause after one at which a server that answers did not tell what it is.
_LONGEST_CHECK, _PAUSE = 30.0, 60.0


class Server:
    """One server and its state.

    Attributes:
        client: talks to it.
        busy: requests in progress.
        dead: whether the last request could not reach it or was refused for the time being, or it is not
            the server it was.
        error: why.
        changed: whether it is not the server it was, until a check finds that it is again.
        checked: the absences it had when it was last found to be the same.
        asked: the absences it had when it was last checked.
        untold: when a check last did not tell what it is (the loop's time).
        checking: held while it is checked.
    """

    def __init__(self, client: ApiClient) -> None:
        self.client = client
        self.busy = 0
        self.dead = False
        self.error = ""
        self.changed = False
        self.checked = 0
        self.asked = 0
        self.untold = -math.inf
        self.checking = asyncio.Lock()
        self._backoff = _FIRST_BACKOFF
        self._until = 0.0

    @property
    def address(self) -> str:
        """Its address without credentials."""
        return public_address(self.client.service.base_url or "")

    @property
    def problem(self) -> str:
        """Which server this is, why it cannot be used and since when, for messages."""
        return f"{self.address} ({', '.join(filter(None, [self.error, str(self.client.absence)]))})"

    def available(self) -> bool:
        """Whether it may be sent a request; a dead one gets a single request after its backoff."""
        waited = self._until <= asyncio.get_running_loop().time()
        return not self.dead or (waited and not self.busy)

    def doubtful(self, reply: Reply) -> bool:
        """Whether it must be checked before this answer is taken."""
        if self.changed or reply.status == "api_error":
            return False
        over, now = self.client.absence.over, asyncio.get_running_loop().time()
        # A server that was started anew may have a smaller context than before.
        doubt = reply.status == "overflow" or over > self.checked
        return doubt and (over > self.asked or now >= self.untold + _PAUSE)

    @property
    def refusal(self) -> Reply:
        """What counts in place of an answer of another server."""
        return Reply("api_error", error=self.error, reachable=False)

    def answered(self) -> None:
        """Records an answer."""
        if self.dead:
            log.info("the server answers again: %s", self.address)
        self.dead, self._backoff = False, _FIRST_BACKOFF

    def failed(self, reply: Reply) -> None:
        """Records that it could not be reached, or is not the server it was."""
        self.dead, self.error = True, reply.error or self.error
        now = asyncio.get_running_loop().time()
        # The requests in progress fail together.
        if self._until <= now:
            self._until = now + self._backoff
            self._backoff = min(2 * self._backoff, _LONGEST_BACKOFF)


class LoadBalancer:
    """Sends each request to the least busy server that answers.

    Args:
        clients: one for each server.
        retries: retries at the only server that is alive.
        check: called before a dead server gets a request again, and before an answer is taken from one
            that was away or finds a prompt too long. Returns None when it is the server it was, in a few
            words how it is not, or the failed reply when it does not tell.
    """

    def __init__(
        self,
        clients: Sequence[ApiClient],
        *,
        retries: int,
        check: Callable[[ApiClient], Awaitable[Reply | str | None]],
    ) -> None:
        self.servers = [Server(client) for client in clients]
        self._retries = retries
        self._check = check
        self._set_retries()

    @property
    def alive(self) -> bool:
        """Whether any server is not known to be dead."""
        return any(not server.dead for server in self.servers)

    async def ask(self, path: str, body: Mapping[str, Any]) -> Reply:
        """The reply of the first server that answers; `path` and `body` as in `ApiClient.request`.

        A request that fails at a reachable server goes to each other one once. A server that has no
        credit left, or asks for a long pause, is like one that is away. The status is `api_error` only
        when no server is left.

        Raises:
            ServiceError: a server refuses every such request; for the time being, and it is the last one.
        """
        failed = Reply("api_error", error="no server answers", reachable=False)
        tried: set[Server] = set()
        while (server := self._next(tried)) is not None:
            server.busy += 1
            refused = False
            try:
                reply = await self._reply(server, path, body)
            except ServiceError as error:
                others = any(not other.dead for other in self.servers if other is not server)
                if not (error.passes and others):
                    raise
                reply, refused = Reply("api_error", error=error.what, reachable=False), True
            finally:
                server.busy -= 1
            if reply.status != "api_error":
                server.answered()
                self._set_retries()
                return reply
            failed = reply
            if reply.reachable:
                tried.add(server)
            else:
                newly = not server.dead
                server.failed(reply)
                if newly and self.alive:
                    how = "is no longer used" if server.changed or refused else "does not answer"
                    log.warning("the server %s, its requests go to others: %s", how, server.problem)
                self._set_retries()
        return failed

    async def _reply(self, server: Server, path: str, body: Mapping[str, Any]) -> Reply:
        if server.dead:
            found = await self._identify(server)
            if server.changed:
                return server.refusal
            if found is not None and not found.reachable:
                return found
        reply = await server.client.request(path, body)
        async with server.checking:
            if server.doubtful(reply):
                await self._identify(server)
        return server.refusal if server.changed else reply

    async def _identify(self, server: Server) -> Reply | None:
        """Checks a server and records what is found; the failed reply where it does not tell."""
        # It may be away and come back while it is checked.
        server.asked = over = server.client.absence.over
        try:
            async with asyncio.timeout(_LONGEST_CHECK):
                found = await self._check(server.client)
        except TimeoutError:
            found = Reply("api_error")
        if found is None:
            server.changed, server.checked, server.untold = False, over, -math.inf
        elif isinstance(found, str):
            server.changed, server.error = True, found
        else:
            # One that was found to be another is that until a check says otherwise.
            server.untold = asyncio.get_running_loop().time()
            return found
        return None

    def _next(self, tried: set[Server]) -> Server | None:
        waiting = [server for server in self.servers if server not in tried and server.available()]
        return min(waiting, key=lambda server: server.busy, default=None)

    def _set_retries(self) -> None:
        alive = [server for server in self.servers if not server.dead]
        for server in self.servers:
            others = any(other is not server for other in alive)
            server.client.retries = _FEW_RETRIES if others else self._retries
