"""Real recordings of Debian packages that may be pre-trained on: files, authors, licences.

Read from each package's copyright file (Debian 12). All of them allow derived work; the pieces of one package
that do not say so, or only under the GPL, are not named here. The licence of weights trained on them is
CC-BY-SA-4.0: CC BY-SA 3.0 asks for the names of the authors, and for the same licence or a later version.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Source:
    """Pieces of a package with the same authors and licence.

    Attributes:
        package: Debian package.
        pieces: Glob patterns of the pieces, over the paths in the package, or in its archive.
        authors: Names to be attributed.
        licence: SPDX identifier.
        archive: Path of the zip archive in the package that has the pieces; None if they are files of it.
    """

    package: str
    pieces: tuple[str, ...]
    authors: str
    licence: str = "CC-BY-SA-3.0"
    archive: str | None = None


def _kart(pieces: tuple[str, ...], authors: str, licence: str = "CC-BY-SA-3.0") -> Source:
    patterns = tuple(f"*/data/music/{piece}.ogg" for piece in pieces)
    return Source(package="supertuxkart-data", pieces=patterns, authors=authors, licence=licence)


SOURCES = (
    Source(
        package="0ad-data",
        archive="./usr/share/games/0ad/mods/public/public.zip",
        pieces=("audio/music/*.ogg",),
        authors="Wildfire Games (http://www.wildfiregames.com): Allan Brown, Omri Lahav, Sam Gossner, "
        "Boris Hansen, Jeff Willet, Mike Skalandunas, Shlomi Nogay and musicians",
    ),
    Source(
        package="hyperrogue-music",
        pieces=("*/hr3-*.ogg",),
        authors="Shawn Parrotte (http://www.shawnparrotte.com)",
    ),
    Source(package="hyperrogue-music", pieces=("*/hr-domina-*.ogg",), authors="Lincoln Domina"),
    Source(
        package="hyperrogue-music",
        pieces=("*/hr-savino-*.ogg",),
        authors="Will Savino (http://www.willsavino.net)",
    ),
    Source(package="singularity-music", pieces=("*/music/*.ogg",), authors="Max McCracken"),
    _kart(("bay", "egypt", "overworld", "demonhill"), "0zone0ne"),
    _kart(("celtic", "farm", "landing_in_gran_paradiso"), "0zone0ne and Krobonil"),
    _kart(("ravenbridge_mansion",), "0zone0ne and Krobonil"),
    _kart(("Boom_boom_boom",), "Keith Baylis aka Vim", "CC-BY-SA-4.0"),
    _kart(("garden", "valley"), "DJHelium"),
    _kart(("hacienda", "menutheme", "subsea", "win_theme"), "Claude Werner (bollen)"),
    _kart(("jumping_to_the_stars_remake",), "GeekPenguinBR, Heuchi1"),
    _kart(("kart_grand_prix", "lose_theme", "race_win_theme"), "Weirwood"),
    _kart(("Lava",), "Kalsan"),
    _kart(("race_summary",), "Dundersylt"),
    _kart(("SkyVibe-HighFrequency",), "Speedsound, modified by Constantin Pelikan"),
    _kart(("Snowy", "West"), "Chris Leutwyler (Krobonil)"),
    _kart(("xeon6",), "commissioned by Bart Kelsey (http://opengameart.org)"),
    _kart(("alien_signal",), "Heuchi1", "CC-BY-SA-4.0"),
)

HELD_OUT = (
    "fretsonfire-songs-muldjord",
    "fretsonfire-songs-sectoid",
    "nexuiz-music",
    "planetblupi-music-ogg",
    "wesnoth-1.16-music",
    "hydrogen-drumkits",
    "freepats",
    "musescore-general-soundfont-lossless",
    "fluid-soundfont-gm",
)
"""Packages that only evaluation reads (benchmarks/real_sound.py)."""
