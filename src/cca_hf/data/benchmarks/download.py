"""Downloads a long list of images with many dead links, such as DARN's: "<folder>/<name> <url>" per line.

Images are resized and saved as `pic/<folder>/<name>.jpg`. An interrupted run can be resumed: existing images and known
dead links are not requested again. `dead_links.tsv` lists the dead links and the reasons.

img2dataset 1.47 does not fit: it numbers its files, resumes only whole shards, has no deadline per image and ignores
EXIF rotation.
"""

import io
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from datasets.utils import tqdm
from PIL import ExifTags, Image, UnidentifiedImageError

from cca_hf.models.images import UnreadableImageError, load_image
from cca_hf.models.whole_files import write_text

from .annotations import read_lines

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

DEAD_LINKS = "dead_links.tsv"
_HEADERS = {"User-Agent": "Mozilla/5.0 (compatible; cca_hf)", "Accept": "image/*,*/*;q=0.5"}
_MAX_BYTES = 64_000_000
_MAX_PIXELS = 64_000_000  # in memory, after a JPEG was decoded to a fraction of its size


@dataclass(frozen=True)
class DownloadSettings:
    """How to download images."""

    size: int = 320  # length of the shorter side in pixels; smaller images are not resized
    workers: int = 16  # number of parallel downloads
    timeout: float = 20.0  # seconds to wait for an answer, or for its next part
    deadline: float = 120.0  # seconds for a whole image
    retries: int = 2  # with growing pauses, if a connection fails, breaks off or answers 429 or 5xx

    def __post_init__(self) -> None:
        if self.size < 1 or self.workers < 1 or self.retries < 0 or self.timeout <= 0 or self.deadline <= 0:
            raise ValueError(f"size and workers must be at least 1, times above 0, retries at least 0; got {self}")


@dataclass(frozen=True)
class DownloadReport:
    """The result of a download."""

    listed: int
    present: int  # before this run
    saved: int  # in this run
    dead: dict[str, str]  # name -> reason, of all runs

    def __str__(self) -> str:
        total = self.present + self.saved
        lines = [f"{total:,} of {self.listed:,} images are present, {self.saved:,} of them downloaded now."]
        reasons = Counter(reason.partition(":")[0] for reason in self.dead.values())
        if self.dead:
            shown = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common(5))
            lines.append(f"{len(self.dead):,} links are dead ({shown}{', ...' if len(reasons) > 5 else ''}).")
        return "\n".join(lines)


class DeadLinkError(Exception):
    """A link without a usable image; the message is the reason."""


def download_images(
    urls: Path, output: Path, settings: DownloadSettings | None = None, *, retry_dead: bool = False
) -> DownloadReport:
    """Downloads the missing images of a list.

    Args:
        urls: the file with the list.
        output: folder for `pic/` and `dead_links.tsv`.
        retry_dead: whether to request the dead links of earlier runs again.

    Raises:
        ImportError: without urllib3.
        ValueError: if a line of the list has a wrong format; names the line.
    """
    settings = settings or DownloadSettings()
    pool = _connection_pool(settings)
    listed = read_url_list(urls)
    present = {name for name in listed if (file := _target(output, name)).is_file() and file.stat().st_size}
    missing = {name: url for name, url in listed.items() if name not in present}
    dead_links, dead = output / DEAD_LINKS, {}
    if dead_links.is_file() and not retry_dead:
        lines = dead_links.read_text(encoding="utf-8").split("\n")[:-1]  # a killed run leaves an incomplete last line
        rows = [line.split("\t") for line in lines]
        dead = {row[0]: row[2] for row in rows if len(row) == 3 and row[0] in missing}
    output.mkdir(parents=True, exist_ok=True)
    write_text("".join(f"{name}\t{listed[name]}\t{reason}\n" for name, reason in dead.items()), dead_links)
    wanted = {name: url for name, url in missing.items() if name not in dead}
    saved = 0
    with (
        dead_links.open("a", encoding="utf-8") as record,
        tqdm(total=len(listed), initial=len(listed) - len(wanted), desc="Downloading", unit=" images") as progress,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `shrink` refuses these images
        for name, reason in _fetch_all(pool, wanted, output, settings):
            if reason is None:
                saved += 1
            else:
                dead[name] = reason
                record.write(f"{name}\t{listed[name]}\t{reason}\n")
                record.flush()
            progress.set_postfix(dead=len(dead), refresh=False)
            progress.update()
    return DownloadReport(len(listed), len(present), saved, dead)


def read_url_list(path: Path) -> dict[str, str]:
    """Name -> URL; the first URL of a repeated name."""
    listed: dict[str, str] = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line:
            continue
        name, _, url = line.replace("\t", " ").partition(" ")
        url = url.strip()
        inside = not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
        if not inside or not url.startswith(("http://", "https://")):
            raise ValueError(f"{path}, line {number}: expected '<folder>/<name> <http URL>', got {line!r}")
        listed.setdefault(name, url)
    return listed


def shrink(content: bytes, size: int) -> bytes:
    """An upright JPEG with a shorter side of at most `size` pixels. Content that fits already is not changed.

    Raises:
        DeadLinkError: if the content is no image, incomplete, or too large.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            given = image.size
            image.draft("RGB", (size, size))  # decodes a large JPEG to a half, a quarter or an eighth
            if image.width * image.height > _MAX_PIXELS:
                raise DeadLinkError(f"too large: {given[0]} x {given[1]} pixels")
            upright = load_image(image)
            as_it_is = image.format == "JPEG" and image.mode == "RGB"
            as_it_is &= image.getexif().get(ExifTags.Base.Orientation, 1) == 1 and min(given) <= size
    except UnidentifiedImageError as error:
        raise DeadLinkError("no image") from error
    except (UnreadableImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DeadLinkError(f"broken image: {error.__cause__ or error}") from error
    if as_it_is:
        return content
    factor = min(1.0, size / min(upright.size))
    smaller = (max(1, round(upright.width * factor)), max(1, round(upright.height * factor)))
    encoded = io.BytesIO()
    upright.resize(smaller, Image.Resampling.LANCZOS).save(encoded, "JPEG", quality=92)
    return encoded.getvalue()


# ---- The links ----


def _connection_pool(settings: DownloadSettings) -> "PoolManager":
    try:
        from urllib3 import PoolManager, Retry, Timeout
    except ImportError as error:
        raise ImportError('downloading needs urllib3: pip install "cca_hf[download]"') from error
    retry = Retry(
        settings.retries,
        redirect=5,
        status_forcelist=(429, 500, 502, 503, 504),
        backoff_factor=0.5,
        respect_retry_after_header=False,  # may be an hour
        raise_on_status=False,
    )
    timeout = Timeout(connect=settings.timeout, read=settings.timeout)
    return PoolManager(200, headers=_HEADERS, retries=retry, timeout=timeout, maxsize=settings.workers)


def _fetch_all(
    pool: "PoolManager", wanted: dict[str, str], output: Path, settings: DownloadSettings
) -> Iterator[tuple[str, str | None]]:
    """(name, reason for a dead link or None), in the order of completion."""
    executor = ThreadPoolExecutor(settings.workers, thread_name_prefix="fetch")
    pending: dict[Future[str | None], str] = {}
    links = iter(wanted.items())
    try:
        while True:
            for name, url in islice(links, 4 * settings.workers - len(pending)):
                pending[executor.submit(_fetch, pool, url, _target(output, name), settings)] = name
            if not pending:
                return
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                yield pending.pop(future), future.result()
    finally:
        executor.shutdown(cancel_futures=True)


def _fetch(pool: "PoolManager", url: str, target: Path, settings: DownloadSettings) -> str | None:
    try:
        content = shrink(_content(pool, url, settings), settings.size)
    except DeadLinkError as error:
        return " ".join(str(error).split())
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f"{target.name}.unfinished")
    unfinished.write_bytes(content)
    unfinished.replace(target)
    return None


def _content(pool: "PoolManager", url: str, settings: DownloadSettings) -> bytes:
    from urllib3.exceptions import HTTPError, MaxRetryError

    retries_left = settings.retries
    while True:
        try:
            response = pool.request("GET", url, preload_content=False)
        except (HTTPError, ValueError) as error:  # after the retries of urllib3
            cause = error.reason if isinstance(error, MaxRetryError) and error.reason is not None else error
            raise DeadLinkError(f"no answer: {type(cause).__name__}") from error
        with response:
            if response.status != 200:
                raise DeadLinkError(f"HTTP {response.status}")
            try:
                return _body(response, settings.deadline)
            except HTTPError as error:  # urllib3 does not retry once the body has begun
                if not retries_left:
                    raise DeadLinkError(f"broke off: {type(error).__name__}") from error
        retries_left -= 1


def _body(response: "BaseHTTPResponse", deadline: float) -> bytes:
    until = time.monotonic() + deadline
    content = bytearray()
    while chunk := response.read1(65_536):  # returns any data at once, so that the deadline also stops a slow server
        content += chunk
        if len(content) > _MAX_BYTES:
            raise DeadLinkError(f"too large: more than {_MAX_BYTES:,} bytes")
        if time.monotonic() > until:
            raise DeadLinkError(f"too slow: not complete after {deadline:g} s")
    return bytes(content)


def _target(output: Path, name: str) -> Path:
    return output / "pic" / f"{name.removesuffix('.jpg')}.jpg"
