"""Gathers the music that the small backbone is pre-trained on: real recordings, and composed music.

    apt-get download 0ad-data hyperrogue-music singularity-music supertuxkart-data
    python scripts/compose_pretraining_music.py OUT/gm --hours 0.5 --seed 11 --soundfont sf_GMbank.sf2
    python scripts/compose_pretraining_music.py OUT/opl3 --hours 0.3 --seed 12 --soundfont OPL-3_FM_128M.sf2
    python scripts/gather_pretraining_music.py PACKAGES OUT --composed gm opl3

PACKAGES is the folder of the downloaded .deb files; nothing is installed. Writes OUT/recordings (FLAC,
16 kHz, mono, excerpts of at most 30 s), OUT/manifest.jsonl with package, piece, authors and licence of each
file, and OUT/AUTHORS.md. The sound fonts are in csound-soundfont (public domain) and opl3-soundfont
(CC-BY-SA-4.0). scripts/pretraining_recordings.py names the pieces.

Of each recording there is a second, altered copy (`--copies`): played faster or slower by up to four
semitones, its spectrum tilted, half of the time in a room or with noise, at another level. The splits are by
piece: about a tenth of the pieces are for validation, and their copies with them. Needs `dpkg-deb`.
"""

import argparse
import fnmatch
import io
import json
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import soundfile as sf
import soxr
from pretraining_recordings import SOURCES, Source
from scipy.signal import fftconvolve, lfilter

RATE_HZ = 16_000
EXCERPT_SECONDS = 30.0
SHORTEST_SECONDS = 8.0
VALIDATION_SHARE = 0.1
LARGEST_SHIFT_SEMITONES = 4.0
PEAK = 0.95


def read_pieces(package: Path, sources: list[Source]) -> Iterator[tuple[Source, str, bytes]]:
    """Yield the pieces of a package that its sources name: source, name, content of the file."""
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                for source in sources:
                    if source.archive is None and _is_named(member.name, source):
                        yield source, Path(member.name).stem, _content(tar, member)
                inside = [source for source in sources if source.archive == member.name]
                if inside:
                    with zipfile.ZipFile(io.BytesIO(_content(tar, member))) as archive:
                        for name in sorted(archive.namelist()):
                            for source in inside:
                                if _is_named(name, source):
                                    yield source, Path(name).stem, archive.read(name)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


def _is_named(path: str, source: Source) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in source.pieces)


def decode(content: bytes) -> np.ndarray:
    """Decode a file to mono at `RATE_HZ`: float32, (samples,)."""
    samples, rate_hz = sf.read(io.BytesIO(content), dtype="float32", always_2d=True)
    mono: np.ndarray = soxr.resample(samples.mean(axis=1), rate_hz, RATE_HZ)
    return mono


def altered(samples: np.ndarray, random: Random) -> np.ndarray:
    """Play a recording at another speed, and through a filter, a room and noise; (samples,)."""
    semitones = random.uniform(-LARGEST_SHIFT_SEMITONES, LARGEST_SHIFT_SEMITONES)
    noise = np.random.default_rng(random.getrandbits(32))
    changed = soxr.resample(samples, RATE_HZ * 2 ** (semitones / 12), RATE_HZ)
    # One pole or one zero: the treble softer, or the bass.
    amount = random.uniform(-0.6, 0.6)
    changed = lfilter([1.0 - amount], [1.0, -amount], changed)
    if random.random() < 0.5:
        decay_seconds = random.uniform(0.1, 0.8)
        times = np.arange(round(decay_seconds * RATE_HZ)) / RATE_HZ
        # The energy of the tail falls by 60 dB in its length.
        tail = noise.standard_normal(len(times)) * 10 ** (-3 * times / decay_seconds)
        tail *= random.uniform(0.1, 0.5) / np.sqrt(np.sum(tail**2))
        tail[0] += 1.0
        changed = fftconvolve(changed, tail)[: len(changed)]
    if random.random() < 0.5:
        level = np.sqrt(np.mean(changed**2)) * 10 ** (random.uniform(-50.0, -25.0) / 20)
        changed = changed + level * noise.standard_normal(len(changed))
    level = 10 ** (random.uniform(-12.0, 0.0) / 20)
    result: np.ndarray = level * changed / max(np.abs(changed).max(), 1e-9)
    return result


def write_excerpts(
    folder: Path, name: str, samples: np.ndarray, facts: dict[str, Any]
) -> list[dict[str, Any]]:
    """Write a piece in excerpts, and return their lines of the manifest; silence is left out."""
    rows = []
    length = round(EXCERPT_SECONDS * RATE_HZ)
    for index, start in enumerate(range(0, len(samples), length)):
        excerpt = samples[start : start + length]
        if len(excerpt) < SHORTEST_SECONDS * RATE_HZ or np.sqrt(np.mean(excerpt**2)) < 1e-3:
            continue
        excerpt = excerpt * min(1.0, PEAK / np.abs(excerpt).max())
        identifier = f"{name}-{index:02d}"
        path = folder / "recordings" / f"{identifier}.flac"
        sf.write(path, excerpt, RATE_HZ, subtype="PCM_16", format="FLAC")
        seconds = round(len(excerpt) / RATE_HZ, 2)
        rows.append(
            {"id": identifier, "path": f"recordings/{path.name}", **facts, "seconds": seconds}
        )
    return rows


def split_of(piece: str) -> str:
    """Return the split of a piece, by its name."""
    share = zlib.crc32(piece.encode()) / 2**32
    return "validation" if share < VALIDATION_SHARE else "train"


def gather(packages: Path, output: Path, *, copies: int) -> list[dict[str, Any]]:
    """Write the recordings of all packages, and return their lines of the manifest."""
    (output / "recordings").mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for package in sorted({source.package for source in SOURCES}):
        found = sorted(packages.glob(f"{package}_*.deb"))
        if not found:
            raise SystemExit(f"{packages} has no {package}_*.deb; run: apt-get download {package}")
        sources = [source for source in SOURCES if source.package == package]
        for source, piece, content in read_pieces(found[-1], sources):
            samples = decode(content)
            name = f"{package}-{piece}".replace(" ", "_")
            facts = {
                "split": split_of(name),
                "album": name,
                "package": package,
                "piece": piece,
                "authors": source.authors,
                "licence": source.licence,
            }
            rows += write_excerpts(output, name, samples, facts)
            for copy in range(1, copies):
                changed = altered(samples, Random(f"{name}/{copy}"))
                rows += write_excerpts(output, f"{name}-altered{copy}", changed, facts)
        seconds = sum(row["seconds"] for row in rows)
        print(f"{package}: {seconds / 3600:.2f} hours so far", flush=True)
    return rows


def composed_rows(output: Path, name: str) -> list[dict[str, Any]]:
    """Return the lines of composed music in a subfolder, with splits."""
    lines = (output / name / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rows = []
    for line in lines:
        row = json.loads(line)
        identifier = f"{name}-{row['id']}"
        rows.append(
            {
                "id": identifier,
                "path": f"{name}/{row['path']}",
                "split": split_of(identifier),
                "album": identifier,
                "package": f"composed with {name}",
                "seconds": row["seconds"],
            }
        )
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a manifest."""
    text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def authors_page() -> str:
    """Return the list of pieces, authors and licences, in Markdown."""
    lines = ["| package | pieces | authors | licence |", "|---|---|---|---|"]
    for source in SOURCES:
        pieces = ", ".join(f"`{Path(piece).name}`" for piece in source.pieces)
        lines.append(f"| {source.package} | {pieces} | {source.authors} | {source.licence} |")
    return "\n".join(lines)


def main() -> None:
    """Gather the recordings, add the composed music, write the manifest."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("packages", type=Path, help="folder of the .deb files")
    parser.add_argument("output", type=Path, help="the folder")
    parser.add_argument(
        "--copies", type=int, default=2, help="of each piece (default: %(default)s)"
    )
    parser.add_argument("--composed", nargs="*", default=[], help="subfolders with composed music")
    arguments = parser.parse_args()
    recordings = arguments.output / "recordings.jsonl"
    if not recordings.is_file():
        rows = gather(arguments.packages, arguments.output, copies=arguments.copies)
        write_rows(recordings, rows)
    rows = [json.loads(line) for line in recordings.read_text(encoding="utf-8").splitlines()]
    for name in arguments.composed:
        rows += composed_rows(arguments.output, name)
    write_rows(arguments.output / "manifest.jsonl", rows)
    (arguments.output / "AUTHORS.md").write_text(authors_page() + "\n", encoding="utf-8")
    for split in ("train", "validation"):
        own = [row for row in rows if row["split"] == split]
        hours = sum(row["seconds"] for row in own) / 3600
        print(f"{split}: {len(own)} files, {hours:.2f} hours")


if __name__ == "__main__":
    main()
