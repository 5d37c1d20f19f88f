"""Several servers of one model: the least busy one is asked, and a dead one's requests go to others."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from evalkit.services.client import ApiClient
from evalkit.services.refusals import public_address
from evalkit.services.replies import Reply

log = logging.getLogger(__name__)

# While others answer, a server that cannot be reached is tried this often again.
_FEW_RETRIES = 1
# Seconds before a dead server is looked at again; doubled each time it is still dead.
_FIRST_REST, _LONGEST_REST = 10.0, 300.0

Send = Callable[[ApiClient], Awaitable[Reply]]


class Server:
    """One server: how busy it is, and since when it is dead.

    Attributes:
        client: talks to it.
        busy: requests it has now.
        dead: whether it could not be reached the last time.
    """

    def __init__(self, client: ApiClient) -> None:
        self.client = client
        self.busy = 0
        self.dead = False
        self._rest = _FIRST_REST
        self._until = 0.0

    @property
    def address(self) -> str:
        """Where it is, without credentials."""
        return public_address(self.client.service.base_url or "")

    def available(self) -> bool:
        """Whether it may be asked; a dead one after its rest, by one request at first."""
        rested = self._until <= asyncio.get_running_loop().time()
        return not self.dead or (rested and not self.busy)

    def answered(self) -> None:
        """Takes note of an answer."""
        if self.dead:
            log.info("the server answers again: %s", self.address)
        self.dead, self._rest = False, _FIRST_REST

    def failed(self, reply: Reply) -> None:
        """Takes note that nobody could be reached."""
        if not self.dead:
            log.warning("the server does not answer, its requests go to others: %s", self.address)
            log.info("%s: %s", self.address, reply.error)
        self.dead = True
        self._until = asyncio.get_running_loop().time() + self._rest
        self._rest = min(2 * self._rest, _LONGEST_REST)


class Fleet:
    """Sends each request to the least busy server that answers.

    Args:
        clients: one for each server.
        retries: attempts after the first one at the last server that is alive.
        check: looks at a server that was dead before it is asked again; False: still dead.
    """

    def __init__(
        self,
        clients: Sequence[ApiClient],
        *,
        retries: int,
        check: Callable[[ApiClient], Awaitable[bool]],
    ) -> None:
        self.servers = [Server(client) for client in clients]
        self._retries = retries
        self._check = check
        self._set_patience()

    @property
    def alive(self) -> bool:
        """Whether any server is not known to be dead."""
        return any(not server.dead for server in self.servers)

    async def ask(self, send: Send) -> Reply:
        """What the first server that answers says.

        A request that a server fails though it can be reached goes to each other one once. The
        status is `api_error` only when no server is left to ask.

        Raises:
            ServiceError: a server refuses every such request.
        """
        failed = Reply("api_error", error="no server answers", reachable=False)
        tried: set[Server] = set()
        while (server := self._next(tried)) is not None:
            reply = await self._ask(server, send)
            if reply.status != "api_error":
                server.answered()
                self._set_patience()
                return reply
            failed = reply
            if reply.reachable:
                tried.add(server)
            else:
                server.failed(reply)
                self._set_patience()
        return failed

    async def _ask(self, server: Server, send: Send) -> Reply:
        server.busy += 1
        try:
            if server.dead and not await self._check(server.client):
                return Reply("api_error", error="still dead", reachable=False)
            return await send(server.client)
        finally:
            server.busy -= 1

    def _next(self, tried: set[Server]) -> Server | None:
        waiting = [server for server in self.servers if server not in tried and server.available()]
        return min(waiting, key=lambda server: server.busy, default=None)

    def _set_patience(self) -> None:
        alive = [server for server in self.servers if not server.dead]
        for server in self.servers:
            others = any(other is not server for other in alive)
            server.client.retries = _FEW_RETRIES if others else self._retries
