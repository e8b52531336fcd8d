"""Contact: how the agents find the driver, by what it leaves in the store that torchrun's processes share.

Whoever reaches that store can read and change it, for it asks for no proof. Where SECRET_VARIABLE is set, on every
machine to the same, the key in the store is not enough to be let in: both sides mix the secret into it.
"""

from __future__ import annotations

import hmac
import os
import secrets
from datetime import timedelta
from typing import Annotated, Any

from pydantic import Field, ValidationError
from torch.distributed.rendezvous import rendezvous

from profiles.records import Record, Text
from runtime.transport.handshake import KEY_BYTES, HostAndPort

SECRET_VARIABLE = "DIFFUSION_PARTITIONER_SECRET"

Port = Annotated[int, Field(gt=0, lt=2**16)]
HexKey = Annotated[str, Field(pattern=rf"^[0-9a-f]{{{2 * KEY_BYTES}}}$")]


class JobKey:
    """The key by which the agents of a job prove that they belong to it.

    Args:
        shared: random bytes, which lie in torchrun's store.
    """

    def __init__(self, shared: bytes) -> None:
        secret = os.environ.get(SECRET_VARIABLE, "")
        self.shared = shared
        self.with_secret = bool(secret)
        self.proof = hmac.digest(secret.encode(), shared, "sha256") if secret else shared

    @classmethod
    def new(cls) -> JobKey:
        return cls(secrets.token_bytes(KEY_BYTES))


class Contact(Record):
    """Where the driver listens for agents. key: what is shared of its JobKey. with_secret: whether it has a secret."""

    host: Text
    port: Port
    key: HexKey
    with_secret: bool

    @classmethod
    def of(cls, address: HostAndPort, key: JobKey) -> Contact:
        """That of a driver in this process."""
        return cls(host=address[0], port=address[1], key=key.shared.hex(), with_secret=key.with_secret)

    def job_key(self) -> JobKey:
        """The key, as this process knows it.

        Raises:
            ConnectionError: only one of the driver and this process has been given a secret.
        """
        key = JobKey(bytes.fromhex(self.key))
        if key.with_secret != self.with_secret:
            has, has_not = ("this process", "the driver") if key.with_secret else ("the driver", "this process")
            raise ConnectionError(
                f"{has} has the variable {SECRET_VARIABLE} and {has_not} has not; set it to the same on every machine"
            )
        return key


def launcher_store(timeout_s: float) -> Any:
    """The store that the processes which torchrun has started share. timeout_s: to reach it, and for each read."""
    store, _rank, _world = next(rendezvous("env://", timeout=timedelta(seconds=timeout_s)))
    return store


def leave_contact(store: Any, contact: Contact) -> None:
    """Leave the contact in the store."""
    store.set(driver_key(), contact.model_dump_json())


def find_contact(timeout_s: float) -> Contact:
    """The contact that the driver has left; waits for it.

    Raises:
        OSError, RuntimeError: it is not there in time, or is none.
    """
    found = launcher_store(timeout_s).get(driver_key())
    try:
        return Contact.model_validate_json(found)
    except ValidationError:
        raise ConnectionError("what torchrun's store holds in the place of the driver's address is none") from None


def driver_key() -> str:
    """The key in torchrun's store under which the driver leaves its contact, anew after each restart of the job."""
    return f"diffusion-partitioner/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
