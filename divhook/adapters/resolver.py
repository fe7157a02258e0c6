"""DNS questions of the agent itself, by dnspython on the agent's loop: nothing blocks, getaddrinfo has no part in it.

One question is at most LIFETIME_S under way, over all servers and tries; answers that are cut off are asked for again
over TCP. Servers are those given, else those of resolv.conf, which is read again when it has changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import dns.asyncbackend
import dns.asyncresolver
import dns.exception
import dns.message
import dns.name
import dns.resolver

from divhook.core.addressing import Address, address_text

RESOLV_CONF = Path("/etc/resolv.conf")
LIFETIME_S = 10.0
TIMEOUT_S = 2.5
"""For one try with one server."""


class ResolverError(Exception):
    """No answer. The text says why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """IPv4 addresses of a name, aliases followed; none where there are none. ttl_s: the lowest on the way."""

    addresses: tuple[Address, ...]
    ttl_s: int


class Resolver:
    """Resolves names to IPv4 addresses."""

    def __init__(self, servers: Sequence[Address] = (), resolv_conf: Path = RESOLV_CONF, port: int = 53) -> None:
        self._resolver = dns.asyncresolver.Resolver(configure=False)
        self._resolver.timeout, self._resolver.lifetime, self._resolver.port = TIMEOUT_S, LIFETIME_S, port
        self._fixed = [address_text(server) for server in servers]
        self._resolv_conf = resolv_conf
        self._read_at: tuple[int, int] | None = None
        self._backend = dns.asyncbackend.get_backend("asyncio")

    async def resolve(self, name: str) -> Answer:
        """A records of a full name. Raises ResolverError."""
        self._configure()
        try:
            answer = await self._resolver.resolve(
                dns.name.from_text(name), "A", raise_on_no_answer=False, search=False, backend=self._backend
            )
            found = answer.chaining_result
            records = found.answer or ()
        except dns.resolver.NXDOMAIN as error:
            found, records = _chain(error), ()
        except dns.exception.DNSException as error:
            raise ResolverError(_why(error)) from error
        except OSError as error:
            raise ResolverError(f"the name servers can't be reached: {error.strerror}") from error
        return Answer(tuple(sorted(IPv4Address(str(r.address)).packed for r in records)), int(found.minimum_ttl))

    def _configure(self) -> None:
        if self._fixed:
            self._resolver.nameservers = self._fixed
            return
        try:
            status = self._resolv_conf.stat()
            read_at = (status.st_mtime_ns, status.st_ino)
            if read_at != self._read_at:
                self._resolver.nameservers = []
                self._resolver.read_resolv_conf(str(self._resolv_conf))
                self._resolver.timeout, self._resolver.lifetime = TIMEOUT_S, LIFETIME_S
                self._read_at = read_at
        except (OSError, ValueError, dns.exception.DNSException):
            self._read_at = None
            raise ResolverError(
                f"{self._resolv_conf} names no server that is usable: put one there, or `resolvers:` into divhook.yaml"
            ) from None


def _chain(error: dns.resolver.NXDOMAIN) -> dns.message.ChainingResult:
    responses: dict[dns.name.Name, dns.message.QueryMessage] = error.kwargs["responses"]
    return next(iter(responses.values())).resolve_chaining()


def _why(error: dns.exception.DNSException) -> str:
    if isinstance(error, dns.resolver.LifetimeTimeout):
        return f"no answer within {LIFETIME_S:g} s"
    if isinstance(error, dns.resolver.NoNameservers):
        errors = error.kwargs.get("errors") or ()
        said = sorted({f"{e[0]}: {e[3] if isinstance(e[3], str) else type(e[3]).__name__}" for e in errors})
        return f"no usable answer ({'; '.join(said)})" if said else "no usable answer"
    return f"no usable answer ({error or type(error).__name__})"
