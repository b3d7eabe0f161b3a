"""Downloads a long list of images with many dead links, such as DARN's: "<folder>/<name> <url>" per line.

Images are resized and saved as `pic/<folder>/<name>.jpg`. An interrupted run can be resumed: existing images and known
dead links are not requested again. `dead_links.tsv` lists the dead links and the reasons. A list is data: its links
lead to public hosts only, unless `CCA_TRUST_DATA=1` is set.

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

from datasets.utils import tqdm
from PIL import ExifTags, Image, UnidentifiedImageError

from cca_hf.models.fetching import FetchError, fetch
from cca_hf.models.image_headers import check_header
from cca_hf.models.images import TRUST_DATA, load_image, trusts_data
from cca_hf.models.whole_files import write_text

from .annotations import read_lines

DEAD_LINKS = "dead_links.tsv"
_PAUSE = 0.5  # seconds before the second retry; doubled for each further one
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
        ValueError: if a line of the list has a wrong format; names the line.
    """
    settings = settings or DownloadSettings()
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
        for name, reason in _fetch_all(wanted, output, settings):
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
        check_header(io.BytesIO(content))
        with Image.open(io.BytesIO(content)) as image:
            given = image.size
            image.draft("RGB", (size, size))  # decodes a large JPEG to a half, a quarter or an eighth
            if image.width * image.height > _MAX_PIXELS:
                raise DeadLinkError(f"too large: {given[0]} x {given[1]} pixels")
            upright = load_image(image)
            as_it_is = (
                image.format == "JPEG"
                and image.mode == "RGB"
                and min(given) <= size
                and image.getexif().get(ExifTags.Base.Orientation, 1) == 1
            )
    except UnidentifiedImageError as error:
        raise DeadLinkError("no image") from error
    except DeadLinkError:
        raise
    except Exception as error:  # Pillow raises errors of many types for broken files
        raise DeadLinkError(f"broken image: {error.__cause__ or error}") from error
    if as_it_is:
        return content
    factor = min(1.0, size / min(upright.size))
    smaller = (max(1, round(upright.width * factor)), max(1, round(upright.height * factor)))
    encoded = io.BytesIO()
    upright.resize(smaller, Image.Resampling.LANCZOS).save(encoded, "JPEG", quality=92)
    return encoded.getvalue()


# ---- The links ----


def _fetch_all(wanted: dict[str, str], output: Path, settings: DownloadSettings) -> Iterator[tuple[str, str | None]]:
    """(name, reason for a dead link or None), in the order of completion."""
    executor = ThreadPoolExecutor(settings.workers, thread_name_prefix="fetch")
    pending: dict[Future[str | None], str] = {}
    links = iter(wanted.items())
    try:
        while True:
            for name, url in islice(links, 4 * settings.workers - len(pending)):
                pending[executor.submit(_fetch, url, _target(output, name), settings)] = name
            if not pending:
                return
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                yield pending.pop(future), future.result()
    finally:
        executor.shutdown(cancel_futures=True)


def _fetch(url: str, target: Path, settings: DownloadSettings) -> str | None:
    try:
        content = shrink(_content(url, settings), settings.size)
    except DeadLinkError as error:
        return " ".join(str(error).split())
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f"{target.name}.unfinished")
    unfinished.write_bytes(content)
    unfinished.replace(target)
    return None


def _content(url: str, settings: DownloadSettings) -> bytes:
    for retry in range(settings.retries + 1):
        if retry > 1:
            time.sleep(_PAUSE * 2 ** (retry - 1))
        try:
            return fetch(
                url,
                seconds=settings.deadline,
                idle_seconds=settings.timeout,
                max_bytes=_MAX_BYTES,
                private_hosts=trusts_data(),
            )
        except FetchError as error:
            if not error.temporary or retry == settings.retries:
                hint = f"; set {TRUST_DATA}=1 if you trust the list" if error.part == "private" else ""
                raise DeadLinkError(f"{error}{hint}") from error
    raise AssertionError("the last try returns or raises")


def _target(output: Path, name: str) -> Path:
    return output / "pic" / f"{name.removesuffix('.jpg')}.jpg"
