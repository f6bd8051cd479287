"""An image is a file of the store and a row of the database. Here the two are kept in step, also beside other programs and machines.

A row is added after its file is there (`add`), so an interruption leaves a file too many and never a row without its file. Files that
no row refers to are taken away by `collect`. The two may meet: a file that is about to be referred to looks as if nobody wanted it. So

- a file is removed within a transaction in which no row can be added (`writing` is alone), and only if no row refers to it then;
- a row is added in a transaction that looks once more whether the file is there, and writes it again where it was just removed;
- a file younger than a day is left alone, and writing a file that is there makes it young again.

The first two are enough, whatever the clocks say, where a file is gone when its removal returns; the third keeps work from being done
twice. A service or a network disk that stalls may carry a removal out after the transaction has ended: then it has failed, and `remove`
says so and names what was lost.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from pathlib import Path

from hfi.bucket import Stored
from hfi.errors import HfiError
from hfi.images import ImageStore, sha_of
from hfi.progress import Advance
from hfi.store import kept, queries
from hfi.store.queries import Provenance
from hfi.store.session import Engine, reading, writing

GRACE = timedelta(days=1)
_BATCH = 200  # files removed in one transaction, during which others wait to write
_SCRATCH = timedelta(hours=1)  # a file is written in seconds
_AT_ONCE = 8  # files that are copied side by side: a bucket is far away rather than slow


def _batches(items: Iterable[Stored], size: int) -> Iterator[list[Stored]]:
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch


def prepare(engine: Engine, store: ImageStore, new: bool = False) -> None:
    """HfiError, before long work, for a store that cannot be written, and for a shared folder that does not know this workspace, whose
    images it should have: it may not be mounted. Unless it is `new`. A shared store learns of this workspace."""
    if not store.shared:
        return store.check_writable("")
    with reading(engine) as session:
        name, filled = kept.identity(session), kept.last_image(session) > 0
    if filled and not new and (said := strange(engine, store)):
        raise HfiError(said)
    if name is None:
        with writing(engine) as session:
            name = kept.ensure_identity(session)
    return store.check_writable(name)


def strange(engine: Engine, store: ImageStore) -> str | None:
    """What is wrong with a shared folder that this workspace never wrote to, None for any other store."""
    if not store.shared or not isinstance(store.root, Path):
        return None
    with reading(engine) as session:
        name = kept.identity(session)
    if name in store.workspaces():
        return None
    return (
        f"{store.root} holds no mark of this workspace, whose database refers to images: mount the folder or check HFI_IMAGES_URL; "
        f"to move there, unset HFI_IMAGES_URL and run 'hfi images copy --to {store.root.as_uri()}'"
    )


def add(engine: Engine, store: ImageStore, data: bytes, about: Provenance) -> bool:
    """Adds the row of a picture whose PNG file `store.write` has just kept. Whether it is new."""
    with writing(engine) as session:
        known = bool(queries.has_keys(session, [about.key]))
        queries.add_image(session, about)
        if not store.has(about.sha256):
            store.write(data)
    return not known


@dataclass(frozen=True)
class Inventory:
    """A store as a database sees it: files and bytes, those of images that it refers to, and the others; `missing` images that it
    refers to have no file."""

    files: int
    bytes: int
    known: int
    missing: int
    unknown: tuple[Stored, ...]


def take_stock(engine: Engine, store: ImageStore) -> Inventory:
    """Lists the whole store; what is in memory grows with the unknown files alone."""
    files = size = known = 0
    unknown: list[Stored] = []
    with reading(engine) as session:
        last = kept.last_image(session)
        missing = kept.count_referenced(session, last)
    for batch in _batches(store.files(), 1000):
        # a transaction of its own: a listing takes long, and one that is held open keeps SQLite from tidying up
        with reading(engine) as session:
            there = kept.referenced(session, filter(None, map(sha_of, batch)))
        files += len(batch)
        size += sum(file.size for file in batch)
        known += len(there)
        missing -= sum(first <= last for first in there.values())  # images made since are not among those that were counted
        unknown += [file for file in batch if sha_of(file) not in there]
    return Inventory(files, size, known, missing, tuple(unknown))


def collectable(
    engine: Engine, store: ImageStore, found: Inventory, grace: timedelta = GRACE, now: datetime | None = None, most: bool = False
) -> list[Stored]:
    """The unknown files that are older than `grace`. HfiError where the database is hardly this store's: it has no image, other
    workspaces use the store as well, or, unless `most` is given, more files are unknown than known."""
    with reading(engine) as session:
        empty, name = kept.last_image(session) == 0, kept.identity(session)
    if empty:
        raise HfiError(
            f"the database has no image, so every file in {store.root} would go: restore the database, or remove them by hand"
        )
    if store.shared:
        marks = store.workspaces()
        if name not in marks:
            raise HfiError(
                f"{store.root} holds no mark of this workspace: nothing was ever written from here, so its files may be another's"
            )
        if others := len(marks - {name}):
            raise HfiError(
                f"{store.root} is used by {others} more workspace{'s' * (others > 1)}, whose images this database does not know: give "
                f"each a store of its own, or remove the marks in {store.root}/workspaces of those that are gone"
            )
    now = now or datetime.now(UTC)
    old = [file for file in found.unknown if now - file.modified >= (grace if sha_of(file) else max(grace, _SCRATCH))]
    if len(old) > found.known and not most:
        raise HfiError(
            f"{len(old)} of the {found.files} files in {store.root} would go, which is most of them: restore a newer database, or give "
            "--most if you are sure that this is the store's database"
        )
    return old


def remove(engine: Engine, store: ImageStore, files: Sequence[Stored], advance: Advance = lambda n, note: None) -> list[Stored]:
    """Removes those of the files that no row refers to now, and returns them. Where that fails, the HfiError says whether an image was
    lost by it: a transaction that has ended, by a timeout say, keeps nobody from referring to a file that is still being removed."""
    gone: list[Stored] = []
    for batch in _batches(files, _BATCH):
        unwanted: list[Stored] = []
        try:
            with writing(engine) as session:
                there = kept.referenced(session, filter(None, map(sha_of, batch)))
                unwanted = [file for file in batch if sha_of(file) not in there]
                store.remove(unwanted, partial(kept.check_open, session))
        except HfiError as e:
            if not unwanted:
                raise
            raise HfiError(_after(engine, store, unwanted, e)) from e
        gone += unwanted
        advance(len(batch), "")
    return gone


def _after(engine: Engine, store: ImageStore, files: Sequence[Stored], e: HfiError) -> str:
    """What became of files whose removal failed."""
    try:
        with reading(engine) as session:
            there = kept.referenced(session, filter(None, map(sha_of, files)))
        lost = [sha for sha in there if not store.has(sha)]
    except HfiError:
        lost = []
    if lost:
        return (
            f"{len(lost)} images were removed after the database came to refer to them, first {lost[0][:12]}: restore them from a "
            f"backup, and see what stalls ({e})"
        )
    return f"{e}; files may still go after this, so run 'hfi images status' when all is well again: it says what is missing"


@dataclass(frozen=True)
class Copied:
    """`faults`: sentences on images that could not be read."""

    copied: int
    known: int
    bytes: int
    faults: tuple[str, ...]


def copy(source: ImageStore, target: ImageStore, begin: Callable[[int], Advance] = lambda total: lambda n, note: None) -> Copied:
    """Copies every image that the target does not have with the same length; each that is copied is read back and its hash compared.
    One that is damaged in the source is named and left out. Interrupted, the same call goes on. `begin` is told how many there are."""
    there = {file.name: file.size for file in target.files()}
    files = [file for file in source.files() if sha_of(file)]
    todo = [file for file in files if there.get(file.name) != file.size]
    advance = begin(len(todo))
    faults: list[str] = []
    size = 0

    def one(file: Stored) -> int | str:
        try:
            data = source.read(str(sha_of(file)))
        except HfiError as e:
            return str(e)
        target.read(target.write(data))
        return len(data)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for batch in _batches(todo, 64):  # so that an interruption, or a target that fails, ends it soon
            for done in pool.map(one, batch):
                if isinstance(done, str):
                    faults.append(done)
                else:
                    size += done
                advance(1, "")
    return Copied(len(todo) - len(faults), len(files) - len(todo), size, tuple(faults))
