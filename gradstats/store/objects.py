"""Object stores, such as S3, by obstore: requests that fail soon, and errors in one form."""

from __future__ import annotations

import asyncio
import datetime
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gradstats.store.places import Place, first_line

if TYPE_CHECKING:
    from zarr.abc.store import Store

#: Whoever asks tries again by itself: a request that takes longer has failed.
_OPTIONS: dict[str, Any] = {"timeout": "60s", "connect_timeout": "5s"}
_RETRIES: Any = {"max_retries": 2, "retry_timeout": datetime.timedelta(seconds=10)}
#: Requests at a time.
LANES = 8
CONFLICT = "another process has written there since"
REPLACED = "the run that was there has been replaced or deleted since"


class Conflict(OSError):
    """Raised if the object to be replaced has changed: another writer has written it."""


class InObjects(Place):
    """An address in an object store, such as `s3://bucket/run.zarr`.

    Credentials, region and endpoint come from the environment, as the tools of that object store
    read them (`AWS_ACCESS_KEY_ID`, `AWS_REGION`, `AWS_ENDPOINT_URL`, ...).

    Raises:
        ImportError: obstore is missing.
        ValueError: no such kind of store.
        OSError: in every method: the store does not answer, or refuses.
    """

    def _connected(self) -> Any:
        try:
            import obstore.exceptions
            import obstore.store
        except ImportError as error:
            remedy = "pip install 'gradstats[cloud]'"
            raise ImportError(f"cannot open {self.root}: obstore is missing; {remedy}") from error
        plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http:")
        options = {**_OPTIONS, "allow_http": True} if plain else _OPTIONS
        try:
            connect: Any = obstore.store.from_url
            return connect(self.root, client_options=options, retry_config=_RETRIES)
        except (obstore.exceptions.BaseError, ValueError) as error:
            raise ValueError(f"cannot open {self.root}: {first_line(error)}") from error

    def _below(self) -> set[str]:
        import obstore

        with self._asking():
            listing = obstore.list_with_delimiter(self.content, self.key or None)
        keys = (*listing["common_prefixes"], *(each["path"] for each in listing["objects"]))
        return {key.rstrip("/").rpartition("/")[2] for key in keys}

    def is_file(self) -> bool:
        """Return whether there is an object of exactly this name."""
        return self.tag() is not None

    def tag(self) -> str | None:
        """Return the tag of the object's present content; None if there is no object."""
        import obstore

        try:
            with self._asking():
                return obstore.head(self.content, self.key)["e_tag"]
        except FileNotFoundError:
            return None

    def read_bytes(self) -> bytes:
        """Return the whole object."""
        return self.read_tagged()[0]

    def read_tagged(self) -> tuple[bytes, str | None]:
        """Return the whole object, and the tag of exactly this content."""
        import obstore

        with self._asking():
            answer = obstore.get(self.content, self.key)
            return bytes(answer.bytes()), answer.meta["e_tag"]

    def size(self) -> int:
        """Return the bytes of all objects at this address and below it."""
        return sum(each["size"] for each in self._objects())

    def zarr_store(self) -> Store:
        """The object store as Zarr reads it."""
        from zarr.storage import ObjectStore  # see opening.py

        return ObjectStore(self.content, read_only=True)

    def put(self, data: bytes) -> None:
        """Put the whole object."""
        import obstore

        with self._asking():
            obstore.put(self.content, self.key, data)

    async def tag_async(self) -> str | None:
        """The same as `tag`, while others ask too."""
        import obstore

        try:
            with self._asking():
                return (await obstore.head_async(self.content, self.key))["e_tag"]
        except FileNotFoundError:
            return None

    def put_over(self, data: bytes, tag: str | None) -> str | None:
        """Put the whole object over the one with this tag; with None, only if no object exists.

        Returns:
            The tag of the object after the call.

        Raises:
            Conflict: the object at this address is another one.
        """
        import obstore
        import obstore.exceptions as exceptions

        mode: Any = "create" if tag is None else {"e_tag": tag}
        try:
            with self._asking():
                done = obstore.put(self.content, self.key, data, mode=mode, use_multipart=False)
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
            stored, current = self.read_tagged()
            if stored == data:  # an answer was lost on its way, and the request repeated
                return current
            raise Conflict(f"cannot write {self}: {CONFLICT}") from error
        return done["e_tag"]

    async def put_over_async(self, data: bytes, tag: str | None) -> str | None:
        """The same, but what is there is not looked at.

        Raises:
            Conflict: another object is there, or none.
        """
        import obstore
        import obstore.exceptions as exceptions

        refused = (exceptions.AlreadyExistsError, exceptions.PreconditionError, FileNotFoundError)
        mode: Any = "create" if tag is None else {"e_tag": tag}
        try:
            with self._asking():
                done = await obstore.put_async(
                    self.content, self.key, data, mode=mode, use_multipart=False
                )
        except refused as error:
            raise Conflict(f"cannot write {self}: {CONFLICT}") from error
        return done["e_tag"]

    def delete_below(self, kept: str) -> None:
        """Delete all objects below this address but one."""
        import obstore

        keys = [each["path"] for each in self._objects() if each["path"] != kept]
        with self._asking():
            for start in range(0, len(keys), 1000):
                obstore.delete(self.content, keys[start : start + 1000])

    def _objects(self) -> Iterable[Any]:
        import obstore

        with self._asking():
            return [each for page in obstore.list(self.content, self.key or None) for each in page]

    @contextmanager
    def _asking(self) -> Iterator[None]:
        from obstore.exceptions import (
            AlreadyExistsError,
            BaseError,
            NotFoundError,
            PreconditionError,
        )

        try:
            yield
        except (AlreadyExistsError, PreconditionError, FileNotFoundError):
            raise
        except NotFoundError as error:
            raise FileNotFoundError(f"nothing is at {self}") from error
        except BaseError as error:
            raise OSError(f"cannot reach {self}: {first_line(error)}") from error


def in_lanes(ask: Callable[[str], Awaitable[None]], names: Iterable[str]) -> None:
    """Ask something of each name, several at a time, by asyncio.

    A recording that is closed as Python ends could start no thread any more.
    """

    async def all_of_them() -> None:
        lanes = asyncio.Semaphore(LANES)

        async def one(name: str) -> None:
            async with lanes:
                await ask(name)

        await asyncio.gather(*map(one, names))

    asyncio.run(all_of_them())
